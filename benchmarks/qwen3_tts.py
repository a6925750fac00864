"""Qwen3-TTS beside the package `qwen-tts` on a CPU: the same full-size random checkpoint.

    python -m benchmarks.qwen3_tts --reference golden-venv/bin/python [--batches 1 4 16]

The package needs a separate environment, see `plugins/qwen3_tts/tests/make_golden.py`, and runs
there.  Both speak the same text greedily.  Prints milliseconds per frame and text.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from plugins.qwen3_tts.tests.checkpoints import tokenizer_ids, write_settings
from tests.checkpoint_files import write_json

TEXT = "The past is just a story we tell ourselves."
FRAME_SAMPLES, FRAME_SECONDS = 1920, 0.08
FULL_SIZE = Path.home() / ".cache/vox_serve/qwen3-tts-random"


def settings(directory: Path) -> None:
    """Write everything but the weights of the 0.6B model with named voices."""
    from benchmarks.gpu.full_size import QWEN, QWEN_CODEC

    ids = tokenizer_ids()
    names = {"im_start": "<|im_start|>", "im_end": "<|im_end|>"}
    names |= {f"tts_{name}": f"<tts_{name}>" for name in ("pad", "bos", "eos")}
    text = {f"{name}_token_id": ids[token] for name, token in names.items()}
    directory.mkdir(parents=True, exist_ok=True)
    write_settings(directory, QWEN | text)
    write_json(directory / "speech_tokenizer" / "config.json", QWEN_CODEC | {"encoder_config": {}})


def reference(directory: Path, batch: int, frames: int) -> float:
    """Seconds per frame and text of the package; writes the weights first if there are none."""
    from plugins.qwen3_tts.tests import make_golden as golden

    weights = directory / "model.safetensors"
    if not weights.exists():
        golden.write_weights(directory)
    model = golden.load(directory)
    greedy: dict[str, Any] = {"do_sample": False, "subtalker_dosample": False}
    greedy |= {"top_k": None, "top_p": None, "temperature": None}
    start = time.perf_counter()
    wavs, _ = model.generate_custom_voice(
        [TEXT] * batch, ["vivian"] * batch, max_new_tokens=frames + 1, **greedy
    )
    return (time.perf_counter() - start) / sum(len(wav) / FRAME_SAMPLES for wav in wavs)


def ours(directory: Path, batches: list[int], frames: int, forms: list[str]) -> None:
    """Print seconds per frame and text of this server's engine."""
    from vox_serve.config import EngineConfig
    from vox_serve.engine.load import load_engine
    from vox_serve.messages import Audio, SpeechRequest
    from vox_serve.plugins import load_plugins

    plugins = load_plugins(["vox_serve_qwen3_tts.plugin"], points=[])
    for form in forms:
        config = EngineConfig(str(directory), "cpu", dtype=form, max_batch_size=max(batches))
        engine, _ = load_engine(config, plugins)
        for batch in batches:
            start, samples = time.perf_counter(), 0
            for number in range(batch):
                sampling = {"temperature": 0.0}
                seconds = frames * FRAME_SECONDS
                engine.add(SpeechRequest(str(number), TEXT, sampling=sampling, max_seconds=seconds))
            while engine.has_work:
                events = engine.step().events
                samples += sum(len(e.pcm) // 2 for e in events if isinstance(e, Audio))
            each = (time.perf_counter() - start) / (samples / FRAME_SAMPLES)
            report(f"vox_serve {form}, batch {batch}", each)
        del engine  # the next one needs its memory
        gc.collect()


def report(name: str, each: float) -> None:
    print(
        f"{name:<32} {1e3 * each:8.1f} ms/frame {FRAME_SECONDS / each:8.2f} x real time", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--reference", help="the python with qwen-tts")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--frames", type=int, default=20, help="of each text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint", type=Path, default=FULL_SIZE, help="where it is or goes")
    parser.add_argument("--forms", nargs="+", default=["float32", "auto"], help="of our weights")
    parser.add_argument("--as-reference", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.as_reference:
        each = [reference(asked.checkpoint, batch, asked.frames) for batch in asked.batches]
        print(json.dumps(each))
        return
    settings(asked.checkpoint)
    if asked.reference:
        command = [asked.reference, "-m", "benchmarks.qwen3_tts", "--as-reference"]
        command += ["--checkpoint", str(asked.checkpoint), "--frames", str(asked.frames)]
        command += ["--threads", str(asked.threads), "--batches", *map(str, asked.batches)]
        made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        for batch, each in zip(asked.batches, json.loads(made.splitlines()[-1]), strict=True):
            report(f"qwen-tts 0.1.1, batch {batch}", each)
    ours(asked.checkpoint, asked.batches, asked.frames, asked.forms)


if __name__ == "__main__":
    main()
