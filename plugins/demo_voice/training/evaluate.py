"""Stage 5: a checkpoint against its teacher, on sentences that were not trained on.

The teacher reads them anew; the checkpoint speaks through the engine that serves it.  Prints a
table and writes the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from tqdm import tqdm

from plugins.demo_voice.training.config import Array, DataConfig
from plugins.demo_voice.training.measure import (
    Sound,
    cepstra,
    listen,
    warped_distance,
    warped_distances,
)
from plugins.demo_voice.training.sentences import held_out, sentence
from plugins.demo_voice.training.teacher import render
from vox_serve import Codec, LoadOptions
from vox_serve.config import DTYPES, EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.load import number_formats
from vox_serve.messages import Audio, Finished, FinishReason, SpeechRequest
from vox_serve_csm.checkpoint import load_model
from vox_serve_demo_voice.plugin import CHECKPOINT
from vox_serve_demo_voice.text import normalise

SEED = 1234
"""Of the evaluation's sentences; training uses another, and leaves held-out ones out."""
BATCH = 8
TIMED = 10
NEAREST = 100
"""So many sentences are compared with each other."""
COARSE = 2
"""Every second frame, 20 ms, is enough to tell which sentence was said."""


@attrs.frozen(eq=False)
class Utterance:
    text: str
    speaker: int
    sound: Array
    ended: bool
    seconds: float
    first_audio_seconds: float


def read(text: str, speaker: int) -> Array:
    """The teacher's reading, float."""
    return render(text, speaker).pcm.astype(np.float32) / 32768


def unseen(count: int, most_characters: int, most_words: int) -> list[str]:
    """The first held-out sentences of the evaluation's own series, normalised."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        written = sentence(number, SEED)
        number += 1
        text = normalise(written)
        fits = len(text) <= most_characters and len(text.split()) <= most_words
        if fits and text not in found and held_out(written, DataConfig().held_out_one_in):
            found.append(text)
    return found


def speak(
    engine: Engine, texts: Sequence[tuple[str, int]], temperature: float, at_once: int
) -> list[Utterance]:
    """Speak texts with their speakers, so many at a time; the times are only fair one by one."""
    made: list[Utterance] = []
    bar = tqdm(total=len(texts), desc=f"speaking, {at_once} at a time")
    for first in range(0, len(texts), at_once):
        some = texts[first : first + at_once]
        start = time.perf_counter()
        for i, (text, speaker) in enumerate(some):
            sampling = {"temperature": temperature, "seed": first + i}
            engine.add(SpeechRequest(str(i), text, speaker, sampling=sampling))
        pcm = [b""] * len(some)
        ended = [False] * len(some)
        heard = [0.0] * len(some)
        while engine.has_work:
            for event in engine.step().events:
                i = int(event.request_id)
                if isinstance(event, Audio):
                    heard[i] = heard[i] or time.perf_counter() - start
                    pcm[i] += event.pcm
                elif isinstance(event, Finished):
                    ended[i] = event.reason is FinishReason.STOP
        spent = time.perf_counter() - start
        for i, (text, speaker) in enumerate(some):
            sound = np.frombuffer(pcm[i], "<i2").astype(np.float32) / 32767
            made.append(Utterance(text, speaker, sound, ended[i], spent, heard[i]))
        bar.update(len(some))
    return made


def through_codec(codec: Codec, sound: Array) -> Array:
    """Encoded and decoded again, frame by frame as a stream is."""
    codes = codec.encode(torch.from_numpy(sound))
    slot = torch.zeros(1, dtype=torch.long)
    parts = [
        codec.step(codes[None, :, t : t + 1], slot, torch.tensor([t == 0]))[0][0]
        for t in range(codes.shape[1])
    ]
    return torch.cat(parts).numpy()[: len(sound)]


def nearest_share(made: Sequence[Array], teachers: Sequence[Sequence[Array]]) -> float:
    """How often sentence i is nearest to its own rendering among all by the same speaker.

    Args:
        made: cepstra of what was spoken, speaker i % 2.
        teachers: by speaker, cepstra of all sentences.
    """
    hits = 0
    for i, spoken in enumerate(tqdm(made, desc="nearest sentence")):
        candidates = [c[::COARSE] for c in teachers[i % 2]]
        hits += int(warped_distances(spoken[::COARSE], candidates).argmin()) == i
    return hits / len(made)


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    directory = Path(options.checkpoint)
    config = EngineConfig(str(directory), device="cpu", dtype=options.dtype, max_batch_size=BATCH)
    model = load_model(LoadOptions(directory, "cpu", *number_formats(config, "cpu")))
    engine = Engine(model, config)
    engine.warm_up()
    texts = unseen(options.sentences, options.characters, options.words)
    pairs = [(text, i % 2) for i, text in enumerate(texts)]
    teacher = [read(text, speaker) for text, speaker in tqdm(pairs, desc="teacher")]
    own = [cepstra(x) for x in teacher]
    # What the other speaker would make of them is asked for too: each chooses among all.
    teachers = [
        [own[i] if i % 2 == s else cepstra(read(text, s)) for i, text in enumerate(texts[:NEAREST])]
        for s in range(2)
    ]
    alone = speak(engine, pairs[:TIMED], options.temperature, 1)
    spoken = speak(engine, pairs, options.temperature, BATCH)
    # A second of silence stands in for what is too short to be measured.
    sounds = [u.sound if len(u.sound) else np.zeros(24000, np.float32) for u in spoken]
    made = [cepstra(x) for x in sounds]
    codec = [
        warped_distance(cepstra(through_codec(model.codec, sound)), c)
        for sound, c in zip(tqdm(teacher[: options.codec], desc="codec"), own, strict=False)
    ]
    ratios = [len(x) / len(y) for x, y in zip(sounds, teacher, strict=True)]
    heard, original = [listen(x) for x in sounds], [listen(x) for x in teacher]
    return {
        # The shipped one without the place of this checkout.
        "checkpoint": "shipped" if directory == CHECKPOINT else str(directory),
        "teacher": "flite slt and rms",
        "sentences": len(texts),
        "temperature": options.temperature,
        "ended": float(np.mean([u.ended for u in spoken])),
        "duration_ratio": float(np.mean(ratios)),
        "duration_off_by_a_quarter": float(np.mean([abs(r - 1) > 0.25 for r in ratios])),
        "mcd_generated_db": float(
            np.mean([warped_distance(a, b) for a, b in zip(made, own, strict=True)])
        ),
        "mcd_codec_db": float(np.mean(codec)) if codec else None,
        "nearest_share": nearest_share(made[:NEAREST], teachers),
        "nearest_of": len(teachers[0]),
        "real_time_factor": sum(u.seconds for u in alone)
        / sum(len(u.sound) for u in alone)
        * 24000,
        "first_audio_ms": 1000 * float(np.median([u.first_audio_seconds for u in alone])),
        "sound": _mean(heard),
        "teacher_sound": _mean(original),
        "not_ended": [u.text for u in spoken if not u.ended][:20],
    }


def _mean(sounds: Sequence[Sound]) -> dict[str, float]:
    rows = [attrs.asdict(s) for s in sounds]
    mean = {f"mean_{k}": float(np.mean([r[k] for r in rows])) for k in rows[0]}
    return mean | {"highest_peak": max(r["peak"] for r in rows)}


def table(result: dict[str, Any]) -> str:
    """The figures for a reader."""
    mine, theirs = result["sound"], result["teacher_sound"]
    codec = result["mcd_codec_db"]
    rows = [
        ("ended by itself", f"{result['ended']:.1%}", "100 %"),
        ("duration / teacher's", f"{result['duration_ratio']:.3f}", "0.9 to 1.1"),
        ("off by more than a quarter", f"{result['duration_off_by_a_quarter']:.1%}", ""),
        ("distance, codec only", "-" if codec is None else f"{codec:.1f} dB", "10 dB or less"),
        ("distance, generated", f"{result['mcd_generated_db']:.1f} dB", "14 dB or less"),
        (
            f"nearest to its own of {result['nearest_of']}",
            f"{result['nearest_share']:.1%}",
            "99 % or more",
        ),
        ("real-time factor, one request", f"{result['real_time_factor']:.3f}", "0.25 or less"),
        ("first audio", f"{result['first_audio_ms']:.0f} ms", "150 ms or less"),
        ("highest peak", f"{mine['highest_peak']:.2f}", f"teacher {theirs['highest_peak']:.2f}"),
    ]
    for key, name in (
        ("floor", "floor in pauses"),
        ("tone", "tone in pauses"),
        ("tail", "last 20 ms"),
    ):
        value = f"{mine[f'mean_{key}_db']:.0f} dB"
        rows.append((name, value, f"teacher {theirs[f'mean_{key}_db']:.0f} dB"))
    lines = [f"{name:32}{value:>12}   {wanted}" for name, value, wanted in rows]
    head = f"{result['sentences']} unseen sentences at temperature {result['temperature']}"
    return "\n".join([head, *lines])


def flags() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--checkpoint", default=str(CHECKPOINT), help="directory (the shipped one)")
    made.add_argument("--sentences", type=int, default=500)
    made.add_argument("--codec", type=int, default=40, help="sentences for the codec alone")
    made.add_argument("--characters", type=int, default=200, help="longest sentence, written out")
    made.add_argument("--words", type=int, default=40)
    made.add_argument("--temperature", type=float, default=0.0)
    made.add_argument("--dtype", default="auto", choices=DTYPES)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--json", type=Path, help="where to write the figures")
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
