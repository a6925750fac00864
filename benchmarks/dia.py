"""Dia compared with transformers on a CPU: the same full-size random checkpoint, in one run.

    python -m benchmarks.dia [--batches 1 4 16] [--rounds 3]

Both speak the same text greedily with the same guidance, for the same number of frames, and decode
the codes to audio.  With random weights, an utterance never ends before the limit.  The
checkpoint's limits (512 frames, 256 bytes) are lower than the published one's, so that 16 slots
fit in memory; all other sizes are equal.  Prints a table.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DacConfig,
    DacModel,
    DiaConfig,
    DiaFeatureExtractor,
    DiaForConditionalGeneration,
    DiaProcessor,
    DiaTokenizer,
    GenerationConfig,
)

from benchmarks.gpu.full_size import DAC
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.load import load_engine
from vox_serve.messages import SpeechRequest
from vox_serve.plugins import load_plugins

TEXT = "[S1] The past is just a story we tell ourselves. [S2] Is it?"
FRAME_SECONDS = 512 / 44100
GUIDANCE, TOP_K = 3.0, 45
FULL_SIZE = Path.home() / ".cache/vox_serve/dia-random"


def write_full_size(directory: Path) -> None:
    """A checkpoint of Dia 1.6B's sizes in bfloat16, and DAC."""
    torch.manual_seed(0)
    config = DiaConfig()
    config.encoder_config.max_position_embeddings = 256
    config.decoder_config.max_position_embeddings = 512
    model = DiaForConditionalGeneration(config).to(torch.bfloat16)
    books = model.logits_dense.weight.data.view(len(config.delay_pattern), -1, 2048)
    books[0, config.decoder_config.eos_token_id] = 0  # with random weights, never the most likely
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    DacModel(DacConfig(**DAC)).save_pretrained(directory / "dac")


class Reference:
    """transformers in one number format; DAC in float32, like ours."""

    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        self._model = DiaForConditionalGeneration.from_pretrained(directory, dtype=dtype).eval()
        self._dac = DacModel.from_pretrained(directory / "dac").eval()
        extractor = DiaFeatureExtractor(sampling_rate=44100, hop_length=512)
        self._processor = DiaProcessor(extractor, DiaTokenizer(), self._dac)

    def __call__(self, batch: int, frames: int) -> float:
        """Seconds per frame and text."""
        ids = self._model.config.decoder_config
        special: dict[str, Any] = {
            "eos_token_id": ids.eos_token_id,
            "pad_token_id": ids.pad_token_id,
            "bos_token_id": ids.bos_token_id,
        }
        delays = self._model.config.delay_pattern
        given = self._processor(text=[TEXT] * batch, delay_pattern=delays, **special)
        settings = GenerationConfig(
            do_sample=False,
            guidance_scale=GUIDANCE,
            top_k=TOP_K,
            max_new_tokens=frames,
            decoder_start_token_id=ids.bos_token_id,
            **special,
        )
        start = time.perf_counter()
        made = self._model.generate(**given, generation_config=settings)[:, -frames:]
        heard = frames - max(delays)
        codes = torch.stack([made[:, d : d + heard, k] for k, d in enumerate(delays)], dim=1)
        with torch.no_grad():
            self._dac.decode(audio_codes=codes.clamp(max=DAC["codebook_size"] - 1))
        return (time.perf_counter() - start) / frames / batch


def ours(engine: Engine, batch: int, frames: int) -> float:
    """Seconds per frame and text."""
    unheard = engine.prompts.build(TEXT, engine.model.voices[0], ()).unheard
    seconds = (frames - unheard + 0.5) * FRAME_SECONDS
    start = time.perf_counter()
    for number in range(batch):
        sampling = {"temperature": 0.0, "guidance_scale": GUIDANCE, "top_k": TOP_K}
        engine.add(SpeechRequest(str(number), TEXT, sampling=sampling, max_seconds=seconds))
    while engine.has_work:
        engine.step()
    return (time.perf_counter() - start) / frames / batch


def report(name: str, run: Callable[[], float], rounds: int) -> None:
    """Print the median of some rounds, after one warm-up round."""
    run()
    each = sorted(run() for _ in range(rounds))
    frame = statistics.median(each)
    spread = f"({1e3 * each[0]:.1f} to {1e3 * each[-1]:.1f})"
    print(f"{name:<40} {1e3 * frame:8.1f} {spread:<20} {FRAME_SECONDS / frame:8.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--frames", type=int, default=40, help="of each text, unheard ones included"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint", type=Path, default=FULL_SIZE, help="where it is or goes")
    parser.add_argument("--forms", nargs="+", default=["auto"], help="of our weights")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if not (asked.checkpoint / "dac").exists():
        write_full_size(asked.checkpoint)
    print(f"{'':<40} ms per frame and text          x real time")
    reference: Reference | None = Reference(asked.checkpoint, torch.bfloat16)
    assert reference is not None
    for batch in asked.batches:
        run = partial(reference, batch, asked.frames)
        report(f"transformers bfloat16, batch {batch}", run, asked.rounds)
    del run
    reference = None
    gc.collect()
    plugins = load_plugins(["vox_serve_dia.plugin"], points=[])
    for form in asked.forms:
        settings = EngineConfig(
            str(asked.checkpoint), "cpu", dtype=form, max_batch_size=max(asked.batches)
        )
        engine, _ = load_engine(settings, plugins)
        torch.set_num_threads(asked.threads)
        for batch in asked.batches:
            run = partial(ours, engine, batch, asked.frames)
            report(f"vox_serve {form}, batch {batch}", run, asked.rounds)


if __name__ == "__main__":
    main()
