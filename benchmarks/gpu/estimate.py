"""Estimates milliseconds per frame, and to the first audio, on an NVIDIA H200, without a device.

    python -m benchmarks.gpu.estimate

The estimate helps to judge a change before a GPU is available.  A node costs its launch, and a step
its bytes or its products, whichever takes longer.  The figures are the likely value, and the best
and worst plausible ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import attrs

from benchmarks.gpu.full_size import csm, orpheus
from benchmarks.gpu.nodes import Nodes, prompt, steps
from benchmarks.gpu.report import FRAME_TARGETS

BATCHES = (1, 16, 64, 256, 800)
TARGETS = {"csm, bfloat16": {**FRAME_TARGETS, 800: 80.0}}
FIRST_AUDIO_GOALS = {"csm, bfloat16": "8"}
PROMPT = 64
"""Positions of a short text; the voice's are cached."""
ATTENTION = ("_decode_attention", "_frame_attention", "_ring_attention")


@attrs.frozen
class Costs:
    """Microseconds of each kind of node beyond its bytes, and the rates of bytes and products."""

    node: float
    product: float
    overlapped: float
    overlapped_product: float
    attention: float
    pick: float
    bandwidth: float
    """Bytes per microsecond."""
    overlapped_bandwidth: float
    """If the next weights are fetched while the previous products run."""
    flops: float = 650e6
    float32_flops: float = 45e6

    def of(self, nodes: Nodes) -> float:
        """Microseconds of one step."""
        plain_products = nodes.products - nodes.overlapped_products
        small = nodes.overlapped - nodes.overlapped_products
        plain = nodes.count - nodes.overlapped - plain_products
        starts = (
            plain * self.node
            + plain_products * self.product
            + small * self.overlapped
            + nodes.overlapped_products * self.overlapped_product
            + sum(nodes.launches[name] for name in ATTENTION) * self.attention
            + nodes.launches["_pick"] * self.pick
        )
        few = nodes.overlapped_products > plain_products
        moved = nodes.bytes / (self.overlapped_bandwidth if few else self.bandwidth)
        short = (nodes.flops - nodes.float32_flops) / self.flops
        return starts + max(moved, short + nodes.float32_flops / self.float32_flops)

    def frame(self, of: dict[str, Nodes]) -> float:
        """Microseconds of a frame: the codec runs in parallel, and shares the memory bandwidth."""
        main = self.of(of["advance"]) + self.of(of["emit"])
        side = self.of(of["take"]) + self.of(of["codec"])
        return max(main, side, sum(nodes.bytes for nodes in of.values()) / self.bandwidth)


H200 = 4.3e6
"""Bytes per microsecond of an H200's memory that large copies reach."""
# Graph nodes: from published traces.  Overlapped products: 100 nodes over 2.47 GB in 795 us,
# https://github.com/msaroufim/megakernels-vs-cuda-graphs
LIKELY = Costs(2.3, 2.7, 1.65, 2.2, 1.75, 3.5, 0.78 * H200, H200)
BEST = Costs(1.8, 2.0, 1.1, 1.7, 1.5, 3.0, 0.85 * H200, H200)
WORST = Costs(3.0, 3.5, 2.5, 2.9, 2.0, 5.0, 0.68 * H200, 0.85 * H200)


def row(name: str, batch: int, of: dict[str, Nodes]) -> list[str]:
    """One line of the table."""
    found = [f"{LIKELY.of(nodes) / 1000:.2f}" for nodes in of.values()]
    counts = " + ".join(str(nodes.count) for nodes in of.values())
    likely, best, worst = (costs.frame(of) / 1000 for costs in (LIKELY, BEST, WORST))
    target = TARGETS.get(name, {}).get(batch)
    main = of["advance"].bytes + of["emit"].bytes
    return [
        *(name, str(batch), counts, f"{main / 1e9:.1f} + {of['codec'].bytes / 1e9:.1f}", *found),
        f"{likely:.1f} ({best:.1f} to {worst:.1f})",
        "" if target is None else f"{target:g}",
    ]


EAGER_MICROSECONDS = 8.0
"""What the host takes to launch one operation outside a graph: 6 to 10 by published traces."""
HOST_MICROSECONDS = 400.0
"""Admission, the copy of a cached voice, and the way back to the caller; an estimate."""


def first_audio(prefill: Nodes, of: dict[str, Nodes], costs: Costs, captured: bool) -> float:
    """Microseconds from a request with a cached voice to its first frame of sound."""
    ran = costs.of(prefill)
    if not captured:
        ran = max(ran, prefill.count * EAGER_MICROSECONDS)
    return HOST_MICROSECONDS + ran + sum(costs.of(of[name]) for name in ("emit", "take", "codec"))


def first_audio_row(name: str, prefill: Nodes, of: dict[str, Nodes], goal: str) -> list[str]:
    """One line of the second table."""
    cells = []
    for captured in (False, True):
        likely, best, worst = (
            first_audio(prefill, of, costs, captured) / 1000 for costs in (LIKELY, BEST, WORST)
        )
        cells.append(f"{likely:.1f} ({best:.1f} to {worst:.1f})")
    return [name, str(prefill.count), f"{LIKELY.of(prefill) / 1000:.2f}", *cells, goal]


FIRST_AUDIO_HEADS = (
    *("model", "nodes of a prompt of 64 positions", "its graph, ms"),
    *("first audio without the graph, ms", "with it, ms", "goal"),
)
HEADS = (
    *("model", "batch", "nodes: advance + emit + take + codec", "GB: frame + codec"),
    *("advance", "emit", "take", "codec", "frame, ms", "goal"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--context", type=int, default=500, help="positions of each row (500)")
    arguments = parser.parse_args(argv)
    models = {
        "csm, bfloat16": csm(),
        "csm, fp8": csm(fp8=True),
        "orpheus, bfloat16": orpheus(),
    }
    print(_line(HEADS), "|" + "---|" * len(HEADS), sep="\n")
    alone = {}
    for name, model in models.items():
        for batch in arguments.batches:
            of = steps(model, batch, arguments.context)
            print(_line(row(name, batch, of)), flush=True)
        alone[name] = steps(model, 1, arguments.context)
    print("", _line(FIRST_AUDIO_HEADS), "|" + "---|" * len(FIRST_AUDIO_HEADS), sep="\n")
    for name, model in models.items():
        columns = () if name.startswith("orpheus") else (model.num_codebooks + 1,)
        prefill = prompt(model, {"tokens": columns}, PROMPT)
        print(_line(first_audio_row(name, prefill, alone[name], FIRST_AUDIO_GOALS.get(name, ""))))
    return 0


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
