"""Pocket TTS beside Kyutai's package on a CPU: the same full-size random checkpoint, in one run.

    python -m benchmarks.pocket_tts [--threads 1 2] [--batches 1 4 16] [--rounds 3]

Kyutai's package speaks one text at a time, so its figure is the same for every batch.  Random
weights never end by themselves, so each text gets a fixed number of frames.  Prints a table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.load import load_engine
from vox_serve.messages import SpeechRequest
from vox_serve.plugins import load_plugins
from vox_serve_pocket_tts.languages import published

TEXT = "The past is just a story we tell ourselves."
FRAME_SECONDS = 0.08
VOICE_SECONDS = 10.0
FULL_SIZE = Path.home() / ".cache/vox_serve/pocket-tts-random"


def write_full_size(directory: Path, config: Path) -> None:
    """A checkpoint of the English model's sizes, with a voice; `config` is the package's YAML."""
    from pocket_tts import TTSModel
    from pocket_tts.models.model_state import export_model_state

    directory.mkdir(parents=True, exist_ok=True)
    tree = published("english") | {"default_eos_threshold": 1e9}
    for part in ("flow_lm", "mimi"):
        tree[part]["dtype"] = "float32"
    letters = [(chr(code), -1.0) for code in range(32, 127)]
    spare = [(f"<{number}>", -9.0) for number in range(4000 - len(letters) - 2)]
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), *letters, *spare], unk_id=0))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "config.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True))
    tree["flow_lm"]["lookup_table"]["tokenizer_path"] = str(directory / "tokenizer.json")
    config.write_text(yaml.safe_dump(tree, allow_unicode=True))
    torch.manual_seed(0)
    reference = TTSModel.load_model(config=config)
    torch.nn.init.normal_(reference.flow_lm.speaker_proj_weight, std=0.2)
    safetensors.torch.save_file(reference.state_dict(), directory / "model.safetensors")
    (directory / "embeddings").mkdir(exist_ok=True)
    sound = 0.1 * torch.randn(1, int(24000 * VOICE_SECONDS))
    state = reference.get_state_for_audio_prompt(sound)
    export_model_state(state, directory / "embeddings" / "voice.safetensors")


class Reference:
    """Kyutai's package, unchanged: it sets one thread and decodes in a second one."""

    def __init__(self, config: Path, directory: Path, frames: int) -> None:
        from pocket_tts import TTSModel

        self._model = TTSModel.load_model(config=config)
        self._model._estimate_max_gen_len = lambda tokens: frames
        voice = directory / "embeddings" / "voice.safetensors"
        self._state = self._model.get_state_for_audio_prompt(voice)
        self._frames = frames

    def __call__(self) -> tuple[float, float]:
        """Seconds to the first sound, and seconds per frame."""
        torch.set_num_threads(1)
        start, first = time.perf_counter(), 0.0
        for _ in self._model.generate_audio_stream(self._state, TEXT, max_tokens=1000):
            first = first or time.perf_counter() - start
        return first, (time.perf_counter() - start) / self._frames


def ours(engine: Engine, batch: int, frames: int, threads: int) -> tuple[float, float]:
    """Seconds to the first sound of all, and seconds per frame and text."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    for number in range(batch):
        engine.add(SpeechRequest(str(number), TEXT, max_seconds=frames * FRAME_SECONDS))
    first = 0.0
    while engine.has_work:
        if engine.step().events and not first and engine.stats.running:
            first = time.perf_counter() - start
    return first, (time.perf_counter() - start) / frames / batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=40, help="of each text")
    parser.add_argument("--checkpoint", type=Path, default=FULL_SIZE, help="where it is or goes")
    parser.add_argument("--forms", nargs="+", default=["auto", "float32"])
    asked = parser.parse_args()
    directory = asked.checkpoint
    config = directory.parent / f"{directory.name}-reference.yaml"
    if not config.exists():
        write_full_size(directory, config)
    print(f"{'':<44} first ms   ms/frame   x real time   x pocket-tts   cores")
    base = report("pocket-tts", Reference(config, directory, asked.frames), asked.rounds)
    plugins = load_plugins(["vox_serve_pocket_tts.plugin"], points=[])
    for form in asked.forms:
        most = max(asked.batches)
        settings = EngineConfig(str(directory), "cpu", dtype=form, max_batch_size=most)
        engine, _ = load_engine(settings, plugins)
        for threads in asked.threads:
            for batch in asked.batches:
                run = partial(ours, engine, batch, asked.frames, threads)
                title = f"vox_serve {form}, {threads} threads, batch {batch}"
                report(title, run, asked.rounds, base)


def report(
    name: str, run: Callable[[], tuple[float, float]], rounds: int, base: float | None = None
) -> float:
    """Print the median of some rounds, after one that warms up; returns seconds per frame."""
    run()
    start, busy = time.perf_counter(), time.process_time()
    first, frame = map(statistics.median, zip(*(run() for _ in range(rounds)), strict=True))
    cores = (time.process_time() - busy) / (time.perf_counter() - start)
    times = (base or frame) / frame
    row = f"{1e3 * first:8.0f} {1e3 * frame:10.2f} {FRAME_SECONDS / frame:13.2f} {times:14.2f}"
    print(f"{name:<44} {row} {cores:7.2f}", flush=True)
    return frame


if __name__ == "__main__":
    main()
