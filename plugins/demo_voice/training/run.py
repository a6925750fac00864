"""Shared by the stages: flags, work folder, log, saved state."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from plugins.demo_voice.training.config import RECIPES, Recipe

DEFAULT_WORK = Path("~/.cache/vox_serve/voice")


@attrs.frozen
class Run:
    """The context of a stage: sizes, work folder, device."""

    recipe: Recipe
    work: Path
    device: torch.device
    workers: int = 0
    half: bool = False
    """Products in bfloat16 while training."""
    rank: int = 0
    """This process's number among `world` processes of `torchrun`, which share each batch."""
    world: int = 1

    def path(self, *parts: str) -> Path:
        """A path under the work folder, whose parent is created if needed."""
        path = self.work.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def log(self, *parts: str) -> Path:
        """The path of a log, which only the first process writes."""
        return self.path(*parts) if self.rank == 0 else Path(os.devnull)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The flags that every stage takes."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--size", choices=sorted(RECIPES), default="cpu")
    made.add_argument(
        "--work", type=Path, default=DEFAULT_WORK, help="artefacts go to WORK/SIZE (%(default)s)"
    )
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument(
        "--threads", type=int, default=1, help="of torch on the CPU; more than one rarely pays"
    )
    made.add_argument(
        "--workers", type=int, default=0, help="processes that make batches; a GPU wants some eight"
    )
    made.add_argument(
        "--half",
        action=argparse.BooleanOptionalAction,
        default=torch.cuda.is_available(),
        help="bfloat16 products; on a CPU only with avx512_bf16 (a third less time)",
    )
    return made


def begin(options: argparse.Namespace) -> Run:
    """Set torch up as the flags say."""
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")
    recipe = RECIPES[options.size]
    if dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("gloo")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return Run(
        recipe,
        options.work.expanduser() / recipe.name,
        torch.device(options.device),
        options.workers,
        options.half,
        rank,
        world,
    )


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Average the gradients of all processes, in place."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def gather(x: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, of which each must have the same number."""
    if not dist.is_initialized():
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def wait_for_all() -> None:
    """Return when all processes have come here."""
    if dist.is_initialized():
        dist.barrier()


Made = TypeVar("Made")


class _Steps(Dataset[Any]):
    def __init__(self, make: Callable[[int], Any], start: int, stop: int) -> None:
        self._make, self._start, self._stop = make, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return self._start + index, self._make(self._start + index)


def batches(
    run: Run, make: Callable[[int], Made], start: int, stop: int, name: str
) -> Iterator[tuple[int, Made]]:
    """Steps and `make`'s result for each, with a progress bar; workers compute them ahead."""
    ahead = DataLoader(_Steps(make, start, stop), batch_size=None, num_workers=run.workers)
    yield from tqdm(ahead, initial=start, total=stop, desc=name, mininterval=2)


class Log:
    """Losses over time, a JSON object per line; a resumed run appends to its file."""

    def __init__(self, path: Path, steps: int) -> None:
        self._path = path
        self._every = max(1, min(20, steps // 5))
        self._sums: dict[str, torch.Tensor | float] = {}
        self._count = 0
        self._since = time.monotonic()

    def add(self, step: int, losses: Mapping[str, torch.Tensor | float]) -> None:
        """Add the losses of a step; write their means at intervals."""
        for name, value in losses.items():
            # Summed on the device, because reading one now would wait for the GPU.
            one = value.detach() if isinstance(value, torch.Tensor) else value
            self._sums[name] = self._sums.get(name, 0.0) + one
        self._count += 1
        if self._count < self._every:
            return
        means = {name: round(float(total) / self._count, 5) for name, total in self._sums.items()}
        now = time.monotonic()
        timing = {"step": step, "seconds_per_step": round((now - self._since) / self._count, 4)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(timing | means) + "\n")
        self._sums, self._count, self._since = {}, 0, now


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state atomically."""
    partial = path.with_suffix(".partial")
    torch.save(dict(state), partial)
    os.replace(partial, path)  # noqa: PTH105


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The state that `save` wrote, or None; reads only tensors and plain values."""
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return state
