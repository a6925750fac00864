"""Make speech with captions: a sound file and the times of its sentences (.srt or .vtt).

    python examples/captions.py talk.txt -o talk.vtt        # and talk.wav

The server counts the samples that it sends, so the times are exact.  Needs: websockets.
"""

import argparse
import json
import os
import re
import wave
from pathlib import Path

from websockets.sync.client import connect

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("text", type=Path, help="a text file")
parser.add_argument("-o", "--output", type=Path, required=True, help="ends with .srt or .vtt")
parser.add_argument("--server", default="ws://localhost:8000", help="vox_serve")
flags = parser.parse_args()


def clock(seconds: float, comma: str) -> str:
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    rest = f"{milliseconds // 1000:02}{comma}{milliseconds % 1000:03}"
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest}"


srt = flags.output.suffix == ".srt"
key = {"X-Api-Key": os.environ.get("VOX_SERVE_API_KEY", "none")}
sentences = re.split(r"(?<=[.!?]) ", " ".join(flags.text.read_text().split()))
captions, start = [], 0.0
with (
    connect(f"{flags.server}/v1/audio/stream", additional_headers=key) as socket,
    wave.open(str(flags.output.with_suffix(".wav")), "wb") as sound,
):
    socket.send(json.dumps({"type": "start", "format": "pcm"}))
    sound.setparams((1, 2, json.loads(socket.recv())["sample_rate"], 0, "NONE", ""))
    for sentence in sentences:
        socket.send(json.dumps({"type": "text", "text": sentence}))
        socket.send(json.dumps({"type": "flush"}))
        for message in socket:
            if isinstance(message, bytes):
                sound.writeframes(message)
            elif (event := json.loads(message))["type"] == "error":
                print(f"left out {sentence!r}: {event['error']['message']}")
            elif event["type"] == "flushed":  # has the length of all sound so far
                break
        if event["seconds"] > start:
            span = " --> ".join(clock(at, "," if srt else ".") for at in (start, event["seconds"]))
            captions.append(f"{len(captions) + 1}\n{span}\n{sentence}\n")
            start = event["seconds"]
flags.output.write_text(("" if srt else "WEBVTT\n\n") + "\n".join(captions))
