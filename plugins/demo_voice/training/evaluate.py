"""Stage 5: evaluates the sound of a checkpoint, compared with its teachers.

The sentences of `heard.txt`, which are neither generated nor used for training, are read by the
teacher, passed through the checkpoint's codec, and spoken by the checkpoint with the engine.
Prints a table and writes the same as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import soundfile
import torch
from tqdm import tqdm

from plugins.demo_voice.training import hearing
from plugins.demo_voice.training.config import SAMPLE_RATE, TEACHERS, Array
from plugins.demo_voice.training.measure import cepstra, listen, warped_distance
from plugins.demo_voice.training.speaking import speak, through_codec
from plugins.demo_voice.training.teacher import GAINS, render_all
from vox_serve import LoadOptions
from vox_serve.config import DTYPES, EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.load import number_formats
from vox_serve_csm.checkpoint import load_model
from vox_serve_demo_voice.plugin import CHECKPOINT
from vox_serve_demo_voice.text import normalise

SENTENCES = Path(__file__).parent / "heard.txt"
BATCH = 8
TIMED = 10
SYSTEMS = ("teacher", "codec", "generated")


@attrs.frozen
class Sentence:
    """`kind` is `pair` for sentences that are spoken twice, as statement and as question."""

    kind: str
    text: str


def sentences() -> list[Sentence]:
    """The sentences of `heard.txt`; for a pair, first the statement, then the question."""
    found: list[Sentence] = []
    for written in SENTENCES.read_text(encoding="utf-8").splitlines():
        kind, bar, text = written.partition("|")
        if bar:
            marks = (".", "?") if kind == "pair" else ("",)
            found += [Sentence(kind, text + mark) for mark in marks]
    return found


def measure(
    said: Sequence[Sentence],
    sounds: Sequence[Array],
    teacher: Sequence[Array],
    recogniser: hearing.Recogniser,
    name: str,
) -> dict[str, float]:
    """The figures of one system and speaker: means over the sentences, with pairs separate."""
    rows: list[dict[str, float]] = []
    endings: list[float] = []
    breaths: list[float] = []
    fricatives: list[float] = []
    pauses: list[Array] = []
    words: dict[str, list[int]] = {"all": [], "long": []}
    errors: dict[str, list[int]] = {"all": [], "long": []}
    for sentence, sound, theirs in zip(tqdm(said, desc=name), sounds, teacher, strict=True):
        f0 = hearing.pitch(sound)
        if sentence.kind == "pair":
            endings.append(hearing.ending(f0))
            continue
        # Spell the reference text as the recogniser spells what it hears.
        wanted = recogniser.plain(sentence.text)
        missed = hearing.wrong(wanted, recogniser.words(sound))
        for kind in ("all", sentence.kind):
            if kind in words:
                words[kind].append(len(wanted))
                errors[kind].append(missed)
        overall, p808 = hearing.quality(sound)
        fricatives += hearing.hiss(sound)
        pauses.append(hearing.pause_spectrum(sound))
        if sentence.kind == "two":
            breaths.append(hearing.longest_pause(sound))
        heard = listen(sound)
        row = {
            "dnsmos": overall,
            "p808": p808,
            "harmonics_db": hearing.harmonics_to_noise(sound, f0),
            "peak": heard.peak,
            "floor_db": heard.floor_db,
            "tail_db": heard.tail_db,
        }
        if sound is not theirs:
            own = cepstra(sound), cepstra(theirs)
            row["distance_db"] = warped_distance(*own)
            row["duration"] = len(sound) / len(theirs)
            row["pitch_correlation"] = hearing.pitch_correlation(own, (f0, hearing.pitch(theirs)))
        rows.append(row)
    figures = {key: float(np.nanmean([row[key] for row in rows])) for key in rows[0]}
    apart = np.array(endings[1::2]) - np.array(endings[::2])
    strongest, hertz = hearing.line(pauses)
    return figures | {
        "peak": max(row["peak"] for row in rows),
        "word_errors": 100 * sum(errors["all"]) / sum(words["all"]),
        # A small choice of sentences may have no long one.
        "word_errors_long": 100 * sum(errors["long"]) / (sum(words["long"]) or np.nan),
        "repetition": float(np.mean(fricatives)) if fricatives else float("nan"),
        "pause_ms": float(np.mean(breaths)) if breaths else float("nan"),
        "line_db": strongest,
        "line_hertz": hertz,
        "asks": int((apart > 3).sum()),
        "ask_semitones": float(np.nanmean(apart)),
    }


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    directory = Path(options.checkpoint)
    config = EngineConfig(str(directory), device="cpu", dtype=options.dtype, max_batch_size=BATCH)
    model = load_model(LoadOptions(directory, "cpu", *number_formats(config, "cpu")))
    engine = Engine(model, config)
    engine.warm_up()
    said = sentences()[:: options.every]
    # A pair keeps both of its halves.
    said = [s for s in said if s.kind != "pair"] + [s for s in sentences() if s.kind == "pair"]
    texts = [normalise(s.text) for s in said]
    recogniser = hearing.Recogniser(options.threads)
    speakers: list[dict[str, Any]] = []
    for speaker, teacher in enumerate(options.teachers):
        pairs = [(text, speaker) for text in texts]
        alone = speak(engine, pairs[:TIMED], options.temperature, 1)
        spoken = speak(engine, pairs, options.temperature, BATCH)
        read = [r.pcm.astype(np.float32) / 32768 for r in render_all(texts, teacher)]
        sounds = {
            "teacher": read,
            "codec": [through_codec(model.codec, x) for x in tqdm(read, desc="codec")],
            # A second of silence replaces sound that is too short to measure.
            "generated": [u.sound if len(u.sound) > 9600 else np.zeros(24000) for u in spoken],
        }
        if options.sounds:
            keep(options.sounds, speaker, sounds)
        seconds = sum(len(u.sound) for u in alone) / SAMPLE_RATE
        speakers.append(
            {
                "teacher": teacher,
                "ended": float(np.mean([u.ended for u in spoken])),
                "not_ended": [t for t, u in zip(texts, spoken, strict=True) if not u.ended],
                "real_time_factor": sum(u.seconds for u in alone) / seconds,
                "first_audio_ms": 1000 * float(np.median([u.first_audio_seconds for u in alone])),
                "systems": {
                    name: measure(said, sounds[name], read, recogniser, f"{name} {speaker}")
                    for name in SYSTEMS
                },
            }
        )
    return {
        # The shipped checkpoint without the path of this checkout.
        "checkpoint": "shipped" if directory == CHECKPOINT else directory.name,
        "sentences": sum(s.kind != "pair" for s in said),
        "temperature": options.temperature,
        "speakers": speakers,
    }


def keep(folder: Path, speaker: int, sounds: Mapping[str, Sequence[Array]]) -> None:
    """Write all sounds, for listening."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, some in sounds.items():
        for i, sound in enumerate(some):
            soundfile.write(folder / f"{name}{speaker}-{i:02d}.wav", sound, SAMPLE_RATE)


ROWS = (
    ("word errors, Whisper tiny.en, %", "word_errors", ".1f"),
    ("the same, sentences of 23 to 25 words, %", "word_errors_long", ".1f"),
    ("DNSMOS overall", "dnsmos", ".2f"),
    ("DNSMOS P.808", "p808", ".2f"),
    ("F0 correlation with the teacher", "pitch_correlation", ".2f"),
    ("`?` over `.`, semitones", "ask_semitones", "+.1f"),
    ("`?` 3 semitones over `.`, of 8", "asks", "d"),
    ("pause between two sentences, ms", "pause_ms", ".0f"),
    ("harmonics to noise, dB", "harmonics_db", ".1f"),
    ("fricatives' repetition (noise: 0.3)", "repetition", ".2f"),
    ("strongest line in pauses, dB", "line_db", ".0f"),
    ("its frequency, Hz", "line_hertz", ".0f"),
    ("cepstral distance to the teacher, dB", "distance_db", ".1f"),
    ("duration / teacher's", "duration", ".3f"),
    ("highest peak", "peak", ".2f"),
    ("floor in pauses, dB", "floor_db", ".0f"),
    ("last 20 ms, dB", "tail_db", ".0f"),
)


def table(result: Mapping[str, Any]) -> str:
    """The figures in Markdown, for a reader and for the README."""
    speakers = result["speakers"]
    heads = [f"{s['teacher']}: teacher / codec / generated" for s in speakers]
    title = f"{result['sentences']} sentences, temperature {result['temperature']}"
    lines = [f"| {title} | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for name, key, form in ROWS:
        cells = [
            " / ".join(
                format(s["systems"][x][key], form) if key in s["systems"][x] else "-"
                for x in SYSTEMS
            )
            for s in speakers
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name, key, form in (
        ("ended by itself", "ended", ".1%"),
        ("real-time factor, one at a time", "real_time_factor", ".3f"),
        ("first audio, ms", "first_audio_ms", ".0f"),
    ):
        lines.append(f"| {name} | {' | '.join(format(s[key], form) for s in speakers)} |")
    return "\n".join(lines)


def flags() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--checkpoint", default=str(CHECKPOINT), help="directory (the shipped one)")
    made.add_argument(
        "--teachers",
        nargs=2,
        choices=sorted(GAINS),
        default=list(TEACHERS),
        metavar="NAME",
        help="of speaker 0 and 1: hts, rms or slt (%(default)s)",
    )
    made.add_argument("--every", type=int, default=1, help="every Nth sentence only")
    made.add_argument("--temperature", type=float, default=0.0)
    made.add_argument("--dtype", default="auto", choices=DTYPES)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--json", type=Path, help="where to write the figures")
    made.add_argument("--sounds", type=Path, help="a folder to write all sounds to")
    return made


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options = flags().parse_args(arguments)
    result = evaluate(options)
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
