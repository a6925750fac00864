"""The default sampler: parameters per slot, counter-based random numbers, no host read.

A code is the argmax of filtered logits plus Gumbel noise (the Gumbel-max trick), and the
noise is a pure function of (seed, frame, codebook, token).  So a sequence draws the same
numbers at any place in the batch and with any neighbours, and one row of bad logits cannot
affect another.

Noise: SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014), used as a counter-based generator: a key is mixed from (seed, frame, codebook),
and token t gets the key's output number t.  Normal noise for latents is made in the same
way, with different keys, by the inverse of the normal distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from vox_serve.nn.kernels import use_triton
from vox_serve.sampling import RANGES, REPETITION_WINDOW, Parameters, SamplingParams


def _signed(value: int) -> int:
    """A 64-bit pattern as the int64 that torch computes with."""
    return value - 2**64 if value >= 2**63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_NORMAL = _signed(0xD1B54A32D192ED03)
"""Makes the keys of normal noise differ from those of codebooks."""
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift; torch's `>>` keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output function, on int64 with wrap-around."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _uniform(keys: torch.Tensor, size: int) -> torch.Tensor:
    """Numbers inside (0, 1), float32 `[B, size]`, from int64 keys `[B]`."""
    counters = torch.arange(1, size + 1, device=keys.device) * _GAMMA
    bits = _shift(_mix(keys[:, None] + counters), 41)  # 23 bits: with the half added, exact
    return (bits.to(torch.float32) + 0.5) * 2.0**-23


def gumbel_noise(keys: torch.Tensor, size: int) -> torch.Tensor:
    """Standard Gumbel noise, float32 `[B, size]`, from int64 keys `[B]`."""
    return -torch.log(-torch.log(_uniform(keys, size)))


def normal_noise(keys: torch.Tensor, size: int) -> torch.Tensor:
    """Standard normal noise, float32 `[B, size]`, from int64 keys `[B]`; within 5.2 of 0."""
    noise: torch.Tensor = torch.special.ndtri(_uniform(keys, size))
    return noise


class SlotSampler:
    """Sampling state with a row per slot.

    `assign` uploads a sequence's parameters when it joins; after that, the host is not involved.

    Args:
        kind: the model's parameters; each number gets a row per slot.
    """

    def __init__(
        self, num_slots: int, device: torch.device, kind: type[Parameters] = SamplingParams
    ) -> None:
        def zeros(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.zeros(num_slots, *shape, dtype=dtype, device=device)

        self.ranges = kind.ranges()
        self.values = {
            name: zeros(torch.int64 if allowed.kind is int else torch.float32)
            for name, allowed in self.ranges.items()
        }
        self.frame = zeros(torch.int64)
        window = kind.repetition_window if issubclass(kind, SamplingParams) else 0
        self.recent = zeros(torch.int64, window)  # code + 1; 0 is empty
        self.params: list[Parameters | None] = [None] * num_slots

    def assign(self, slot: int, params: Parameters, seed: int) -> None:
        """Start a sequence in `slot`."""
        for name, rows in self.values.items():
            rows[slot].fill_(seed if name == "seed" else getattr(params, name))
        self.frame[slot].fill_(0)
        self.recent[slot].fill_(0)
        self.params[slot] = params

    def rows(self, numbers: Sequence[int] | None, slots: torch.Tensor) -> RowSampler:
        """The sampler of one batch and frame.

        Args:
            numbers: the slots on the host, to skip filters that no row uses; None, in a captured
                step: skip nothing.
        """
        return RowSampler(self, numbers, slots)

    def commit(self, slots: torch.Tensor, picked: torch.Tensor) -> None:
        """Count a frame and remember the codes picked for codebook 0, int64 `[B]`."""
        if window := self.recent.shape[1]:
            self.recent[slots, self.frame[slots] % window] = picked + 1
        self.frame.index_add_(0, slots, torch.ones_like(slots))


class RowSampler:
    """Implements `vox_serve.sampling.Sampler` for the rows of one batch."""

    def __init__(
        self, state: SlotSampler, numbers: Sequence[int] | None, slots: torch.Tensor
    ) -> None:
        self._asked = [p for n in numbers or () if (p := state.params[n]) is not None]
        params = [p for p in self._asked if isinstance(p, SamplingParams)]
        # Skip what no row uses; the host knows it from the requests, without a device read.
        every = numbers is None
        drawing = [p for p in params if p.temperature > 0]
        self._draws = every or bool(drawing)
        self._filters = every or any(p.top_k > 0 or p.top_p < 1 or p.min_p > 0 for p in drawing)
        self._penalises = every or any(p.repetition_penalty != 1 for p in params)
        # Without top-p, only the order of the largest top-k codes matters.
        ordered = every or any(p.top_p < 1 for p in drawing)
        self._most = None if ordered else max((p.top_k for p in drawing), default=0)
        self._state, self.slots = state, slots
        self._picked: torch.Tensor | None = None
        self._finite: torch.Tensor | None = None
        self._largest: list[torch.Tensor] = []
        self._rows: dict[str, torch.Tensor] = {}

    @cached_property
    def frame(self) -> torch.Tensor:
        return self._state.frame[self.slots]

    def noise(self, size: int, place: int = 0) -> torch.Tensor:
        return normal_noise(_mix((self._key ^ _NORMAL) + place), size)

    def parameter(self, name: str) -> torch.Tensor:
        return self._state.values[name][self.slots]

    def largest(self, name: str) -> float:
        given = [float(getattr(params, name)) for params in self._asked]
        return max(given, default=self._state.ranges[name].high)

    def __call__(self, logits: torch.Tensor, codebook: int) -> torch.Tensor:
        picked = self._pick(logits, codebook)
        if codebook == 0:
            self._picked = picked
        return picked

    @property
    def picked(self) -> torch.Tensor:
        """int64 `[B]`: the codes picked for codebook 0."""
        return torch.zeros_like(self.slots) if self._picked is None else self._picked

    @property
    def finite(self) -> torch.Tensor:
        """bool `[B]`: False where a row's logits held NaN or +inf, or nothing but -inf."""
        if self._finite is None:
            self._finite = torch.ones_like(self.slots, dtype=torch.bool)
        if not self._largest:
            return self._finite
        return self._finite & torch.stack(self._largest, 1).isfinite().all(1)

    def _row(self, name: str) -> torch.Tensor:
        """A parameter of the rows, `[B, 1]`.

        Looked up at first use, because only plain torch needs it; the kernel reads by slot.
        """
        if name not in self._rows:
            self._rows[name] = self.parameter(name)[:, None]
        return self._rows[name]

    @cached_property
    def _key(self) -> torch.Tensor:
        seeded = _mix(self.parameter("seed") + _GAMMA)
        return _mix(seeded + self.frame)

    def _pick(self, logits: torch.Tensor, codebook: int) -> torch.Tensor:
        if use_triton(logits):
            return self._pick_by_kernel(logits, codebook)
        # NaN spreads through the maximum; -inf by itself is a code that the model excludes.
        largest, likeliest = logits.float().max(dim=-1)
        self._largest.append(largest)
        penalises = self._penalises and codebook == 0
        if not (penalises or self._draws):
            return likeliest
        logits = logits.float()
        if penalises:
            logits = self._penalised(logits)
        if not self._draws:
            return logits.argmax(dim=-1)
        greedy = self._row("temperature") == 0
        scaled = logits / torch.where(greedy, 1.0, self._row("temperature"))
        if self._filters:
            scaled = torch.where(scaled < self._threshold(scaled), -torch.inf, scaled)
        noise = gumbel_noise(_mix(self._key + codebook), logits.shape[-1])
        return torch.where(greedy, scaled, scaled + noise).argmax(dim=-1)

    def _pick_by_kernel(self, logits: torch.Tensor, codebook: int) -> torch.Tensor:
        from vox_serve.nn import triton_sampler

        state, first = self._state, self._finite is None
        recent = state.recent
        if recent.shape[1] > REPETITION_WINDOW:  # the kernel compares each code with all of them
            recent = recent[:, :0]
            if self._penalises and codebook == 0:
                logits = self._penalised(logits.float())
        if self._finite is None:
            self._finite = torch.empty_like(self.slots, dtype=torch.bool)
        return triton_sampler.pick(
            logits,
            self.slots,
            codebook,
            **{name: state.values[name] for name in RANGES},
            recent=recent,
            frame=state.frame,
            finite=self._finite,
            first=first,
        )

    def _penalised(self, logits: torch.Tensor) -> torch.Tensor:
        """Keskar et al., "CTRL" (2019): positive logits divided, negative ones multiplied."""
        seen = torch.zeros(
            len(logits), logits.shape[-1] + 1, dtype=torch.bool, device=logits.device
        )
        seen = seen.scatter(1, self._state.recent[self.slots], True)[:, 1:]
        penalty = self._row("repetition_penalty")
        lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
        return torch.where(seen, lowered, logits)

    def _threshold(self, scaled: torch.Tensor) -> torch.Tensor:
        """The lowest scaled logit that each row keeps, `[B, 1]`; top-k, then top-p, then min-p."""
        size = scaled.shape[-1]
        k = torch.where(self._row("top_k") == 0, size, self._row("top_k")).clamp(max=size)
        if self._most is not None:
            highest = scaled.topk(min(max(self._most, 1), size)).values
            place = (k - 1).clamp(max=highest.shape[1] - 1)
            kth = torch.where(self._row("top_k") == 0, -torch.inf, highest.gather(-1, place))
            return torch.maximum(kth, highest[:, :1] + torch.log(self._row("min_p")))
        ordered = scaled.sort(dim=-1, descending=True).values
        kth = ordered.gather(-1, k - 1)
        kept = torch.where(ordered < kth, -torch.inf, ordered)
        share = kept.softmax(dim=-1)
        before = share.cumsum(dim=-1) - share
        # A top-p of 1 removes nothing, even if the rounded running sum reaches 1 early.
        inside = (before < self._row("top_p")) | (self._row("top_p") >= 1)
        nucleus = inside.sum(dim=-1, keepdim=True).clamp(min=1)
        pth = kept.gather(-1, torch.minimum(nucleus, k) - 1)
        return torch.maximum(pth, ordered[:, :1] + torch.log(self._row("min_p")))
