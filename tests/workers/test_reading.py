"""Reading texts and audio files in other processes: same results, limits, crashes, output."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import soundfile

from tests.tone import ToneModel
from tests.workers.work import bomb, crash, hang, obey
from vox_serve.audio import AudioUnreadable, read_audio
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.errors import NothingToSpeak, PluginError, SequenceFailed
from vox_serve.messages import SpeechRequest
from vox_serve.parts import in_parts
from vox_serve.text import FrontEnd, Lexicon, with_lexicon
from vox_serve.voice import Segment
from vox_serve.workers import reading
from vox_serve.workers.jobs import Jobs
from vox_serve.workers.reading import TextReader, read_clip
from vox_serve_demo_voice.text import FRONT_END

RATE = 8000
INFO = Engine(ToneModel(), EngineConfig(model="tone")).info("tone", "tone", 0.0)
T = TypeVar("T")


def clip(kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(np.arange(20_000) / 10), RATE, subtype, format=kind)
    return file.getvalue()


def damaged(kind: str, subtype: str, *places: int) -> bytes:
    found = bytearray(clip(kind, subtype))
    for place in places:
        found[place] = 255
    return bytes(found)


NOISY = damaged("SDS", "PCM_16", *range(149, 60_000, 127))
"""libsndfile prints messages about every block of this file."""


def with_jobs(work: Callable[[Jobs], Awaitable[T]], seconds: float = 10.0) -> T:
    async def main() -> T:
        jobs = Jobs("test", processes=1, seconds=seconds, waiting=0)
        try:
            return await work(jobs)
        finally:
            jobs.close()

    return asyncio.run(main())


def speak(*texts: str, front_end: FrontEnd = FRONT_END, seconds: float = 10.0) -> list[object]:
    """The reader's result for each text, or the error that it raises."""

    async def work(jobs: Jobs) -> list[object]:
        reader = TextReader(front_end, jobs)
        return [
            (
                await asyncio.gather(
                    reader.split(SpeechRequest(str(number), text), INFO), return_exceptions=True
                )
            )[0]
            for number, text in enumerate(texts)
        ]

    return with_jobs(work, seconds)


def test_a_clip_is_read_with_the_same_result_as_in_this_process() -> None:
    expected = read_audio(io.BytesIO(clip()), 24_000, 30)
    found = with_jobs(lambda jobs: read_clip(jobs, io.BytesIO(clip()), 24_000, 30))
    assert np.array_equal(found, expected)


def test_the_output_of_libraries_is_discarded(capfd: pytest.CaptureFixture[str]) -> None:
    async def both(jobs: Jobs) -> None:
        assert len(await read_clip(jobs, io.BytesIO(NOISY), RATE, 30)) > 0

    with_jobs(both)
    assert capfd.readouterr() == ("", "")
    read_audio(io.BytesIO(NOISY), RATE, 30)  # as a control: in this process it prints
    assert len("".join(capfd.readouterr())) > 1000


@pytest.mark.parametrize(
    ("decoder", "reason"),
    [
        (crash, "its process was killed by SIGSEGV"),
        (hang, "it took longer than 0.5 seconds"),
        (bomb, "it needs more than 512 MiB of memory"),
    ],
)
def test_a_failing_decoder_refuses_the_clip_and_the_next_one_is_read(
    decoder: Callable[..., None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(jobs: Jobs) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(reading, "_read_clip", decoder)
            with pytest.raises(AudioUnreadable, match=f"audio cannot be read: {reason}"):
                await read_clip(jobs, io.BytesIO(clip()), RATE, 30)
        assert len(await read_clip(jobs, io.BytesIO(clip()), RATE, 30)) == 20_000

    with_jobs(work, seconds=0.5)


def test_a_file_in_the_working_directory_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libsndfile mistakes `._` in the working directory for part of an mp3, and refuses the mp3."""
    (tmp_path / "._").touch()
    monkeypatch.chdir(tmp_path)
    content = clip("MP3")
    assert len(with_jobs(lambda jobs: read_clip(jobs, io.BytesIO(content), RATE, 30))) > 10_000
    with pytest.raises(AudioUnreadable):  # as a control
        read_audio(io.BytesIO(content), RATE, 30)


def test_a_clip_that_is_too_large_is_refused_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "MAX_CLIP_BYTES", 2**20)
    with pytest.raises(AudioUnreadable, match="more than 1 MiB"):
        with_jobs(lambda jobs: read_clip(jobs, io.BytesIO(bytes(2**21)), RATE, 30))


def test_a_text_is_read_with_the_same_result_as_in_this_process() -> None:
    lexicon = Lexicon({"nginx": "engine x"})
    front_end = with_lexicon(FRONT_END, lexicon)
    audio = np.ones(10, np.float32)
    request = SpeechRequest(
        "1",
        "nginx costs $2.50. [pause 1s] " + "More words follow here. " * 20,
        context=(Segment(1, "on May 5", audio),),
        pronunciations={"More": "less"},
    )
    found = with_jobs(lambda jobs: TextReader(front_end, jobs).split(request, INFO, 0.5))
    expected = in_parts(request, INFO, front_end, 0.5)
    assert (found.text, found.following, found.pauses) == (
        expected.text,
        expected.following,
        expected.pauses,
    )
    assert "engine ex costs two dollars" in found.text
    (turn,) = found.context
    assert (turn.speaker, turn.text) == (1, expected.context[0].text)
    assert turn.audio is audio


def test_a_front_end_that_fails_on_a_text_fails_only_that_text() -> None:
    front_end = FrontEnd(finish=obey)
    crashed, hung, raised, empty, fine = speak(
        "crash", "hang", "raise", "***", "fine", front_end=front_end, seconds=2.0
    )
    assert isinstance(crashed, SequenceFailed)
    assert "was killed by SIGSEGV" in crashed.message
    assert isinstance(hung, SequenceFailed)
    assert "took longer than 2 seconds" in hung.message
    assert isinstance(raised, SequenceFailed)
    assert raised.message == "the text could not be read: KeyError"
    assert isinstance(empty, NothingToSpeak)
    assert isinstance(fine, SpeechRequest)
    assert fine.text == "fine."


def test_a_front_end_that_cannot_be_sent_is_refused_at_the_start() -> None:
    with pytest.raises(PluginError, match="functions of modules"):
        TextReader(FrontEnd(finish=lambda text: text), Jobs("test", processes=1))
