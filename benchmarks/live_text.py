"""Latency of speech for text from a language model, sent word by word or by the sentence.

    python -m benchmarks.live_text http://127.0.0.1:8000 [--rate 20] [--runs 5]

Sends the words of a text at a fixed rate over the WebSocket of a running server, once as live text
and once with a pronunciation that matches no word, which makes every model speak whole sentences.
Prints the time from the first word to the first audio, and how late later audio was for a
listener who plays without a buffer.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import threading
import time
from typing import Any

from websockets.sync.client import ClientConnection, connect

TEXT = (
    "The past is just a story that we tell ourselves, and we tell it a little differently each "
    "time somebody asks. So it changes with us, and we change with it."
)


def send_words(socket: ClientConnection, rate: float) -> None:
    begun = time.monotonic()
    for number, word in enumerate(re.findall(r"\s*\S+", TEXT)):
        time.sleep(max(0.0, begun + number / rate - time.monotonic()))
        socket.send(json.dumps({"type": "text", "text": word}))
    socket.send(json.dumps({"type": "end"}))


def listen(url: str, rate: float, **start: Any) -> tuple[float, float, float]:
    """Seconds to the first audio, the greatest lateness, and the seconds of audio."""
    address = url.replace("http", "ws", 1).rstrip("/") + "/v1/audio/stream"
    with connect(address) as socket:
        socket.send(json.dumps({"type": "start", "format": "pcm", **start}))
        samples_per_second = json.loads(socket.recv())["sample_rate"]
        begun = time.monotonic()
        sender = threading.Thread(target=send_words, args=(socket, rate))
        sender.start()
        first = late = heard = 0.0
        for message in socket:
            if isinstance(message, bytes):
                now = time.monotonic() - begun
                first = first or now
                late = max(late, now - first - heard)
                heard += len(message) / 2 / samples_per_second
        sender.join()
    return first, late, heard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, default=20.0, help="words a second")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--max-seconds", type=float, default=4.0, help="of each segment")
    asked = parser.parse_args()
    for name, extra in (("by the sentence", {"pronunciations": {"qqq": "q"}}), ("live", {})):
        fields = {"max_seconds": asked.max_seconds, "seed": 1, **extra}
        runs = [listen(asked.url, asked.rate, **fields) for _ in range(asked.runs)]
        firsts = sorted(first for first, _, _ in runs)
        late = statistics.median(late for _, late, _ in runs)
        print(
            f"{name:<16} first audio after {statistics.median(firsts):.2f} s "
            f"({firsts[0]:.2f} to {firsts[-1]:.2f}), up to {late:.2f} s late, "
            f"{statistics.median(heard for _, _, heard in runs):.1f} s of audio",
            flush=True,
        )


if __name__ == "__main__":
    main()
