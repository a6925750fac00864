"""SNAC, the codec of Orpheus: turns windows of four frames of codes into 24 kHz sound.

Builds on the `snac` package's blocks, and keeps the streaming state in a row per slot; independent
of Orpheus's network, of checkpoint files and of the engine.

SNAC (https://arxiv.org/abs/2410.14411) has three levels of codes; a frame is one code of the
first, two of the second and four of the third.  It is not causal, so a frame is decoded with
one frame before it and two after, as the published streaming code does: it keeps samples
2048:4096 of each window of 28 tokens.  The first and the last two frames of
an utterance are never played.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from snac import SNAC
from snac.layers import DecoderBlock, NoiseBlock, Snake1d
from torch import nn
from torch.nn.utils.parametrize import remove_parametrizations

from vox_serve.nn import WeightLoader, uninitialised

LEVELS = ((0,), (1, 4), (2, 3, 5, 6))
"""The indices of a frame's tokens that are codes of each level, in order of time."""
FRAME_TOKENS = 7
WINDOW = 4
"""Frames that are decoded together."""
KEPT = 1
"""The frame of the window that is played."""
NOISE_FRAMES = 256
"""Frames after which the noise repeats (22 s)."""


class SlotSnac:
    """The `Codec` of Orpheus.  Float32 throughout; build, `load`, `allocate`, then use.

    SNAC adds noise to what it decodes.  Here, an utterance's first frame is the seed of its noise,
    which depends only on that and the frame's number.  So the same codes give the same sound, alone
    and in any batch, and the windows that share a frame get the same noise for it.
    """

    frame_width = 1
    frames_per_step = FRAME_TOKENS

    def __init__(self, config: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        """Build an unfilled codec of any size.

        Args:
            config: SNAC's `config.json`.
            device: of its weights and state.

        Raises:
            ValueError: the configuration has a setting that is not supported.
        """
        strides = config.get("vq_strides")
        if strides != [4, 2, 1]:
            raise ValueError(f"vq_strides {strides} is not supported; only [4, 2, 1] is")
        if config.get("attn_window_size", 32) is not None:  # the package's default is 32
            raise ValueError("attn_window_size must be null: a window is too short for attention")
        try:
            with uninitialised():
                network = SNAC(**config)
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"the package cannot build it: {error}") from error
        if prod(network.decoder_rates) != prod(network.encoder_rates):
            raise ValueError("decoder_rates and encoder_rates must have the same product")
        self.device = torch.device(device)
        self._network = nn.ModuleDict({"quantizer": network.quantizer, "decoder": network.decoder})
        self._snac = network  # the same two parts as the package; the encoder stays empty
        self._level_size: int = network.codebook_size
        self.codebook_size = FRAME_TOKENS * self._level_size
        self.sample_rate: int = network.sampling_rate
        self.frame_size = int(network.hop_length) * len(LEVELS[-1])
        self.frame_rate = FRAME_TOKENS * self.sample_rate / self.frame_size
        self._noise: list[_Noise] = []
        self._begin = 0
        self._offsets = torch.arange(FRAME_TOKENS, device=self.device) * self._level_size
        self._numbers = torch.arange(WINDOW, device=self.device)
        self._primes = torch.tensor((3, 5, 7, 11, 13, 17, 19), device=self.device)
        self._levels = [torch.tensor(level, device=self.device) for level in LEVELS]

    def load(self, loader: WeightLoader) -> None:
        """Fill the weights from a checkpoint of SNAC, one at a time, except the encoder's.

        Args:
            loader: has the tensors under the names of the package's state dict.

        Raises:
            CheckpointError: a tensor is missing, has the wrong shape, or is unknown.
        """
        loader.ignore(*(name for name in loader.unused if name.startswith("encoder.")))
        for name, target in self._network.state_dict().items():
            loader.check(target, [name])
        self._network.to_empty(device=self.device).eval().requires_grad_(False)
        for name, target in self._network.state_dict().items():
            loader.fill(target, [name])
        loader.finish()
        self._replace_blocks()
        self._narrow()

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights and the noise in bytes."""
        tensors = [*self._network.state_dict().values(), *(block.table for block in self._noise)]
        return sum(tensor.nbytes for tensor in tensors)

    def allocate(self, num_slots: int) -> int:
        """Allocate the state rows of slots 0 .. num_slots - 1; see `Codec.allocate`."""
        self._seen = torch.zeros(num_slots, dtype=torch.int64, device=self.device)
        self._seed = torch.zeros_like(self._seen)
        shape = (num_slots, WINDOW - 1, FRAME_TOKENS)
        self._recent = torch.zeros(shape, dtype=torch.int64, device=self.device)
        return self._seen.nbytes + self._seed.nbytes + self._recent.nbytes

    @torch.no_grad()
    def step(
        self, codes: torch.Tensor, slots: torch.Tensor, reset: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode the window that ends with this frame `[B, 1, 7]`; see `Codec.step`.

        No sample is valid until the window is full, and so contains no frame of the last owner.
        """
        seen = self._seen[slots].masked_fill(reset, 0)
        window = torch.cat([self._recent[slots], codes], dim=1)
        seed = torch.where(reset, (codes[:, 0] * self._primes).sum(1), self._seed[slots])
        first = seen - (WINDOW - 1)
        pcm = self._decode(window, first + seed)
        # Last, so that a step that raises changes nothing.
        self._recent[slots] = window[:, 1:]
        self._seen[slots] = seen + 1
        self._seed[slots] = seed
        return pcm, (first >= 0) * self.frame_size

    def clear(self, slot: int) -> None:
        for rows in (self._seen, self._seed, self._recent):
            rows[slot] = 0

    def _decode(self, window: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Windows `[B, 4, 7]` to pcm `[B, N]`; `first` `[B]` chooses the rows of the noise."""
        codes = window - self._offsets
        # A token at the wrong place in the frame is not a code of its level; use code 0 instead.
        codes = torch.where((codes < 0) | (codes >= self._level_size), 0, codes)
        numbers = first[:, None] + self._numbers
        for block in self._noise:
            block.frames = numbers % NOISE_FRAMES
        levels = [codes[:, :, level].flatten(1) for level in self._levels]
        pcm: torch.Tensor = self._snac.decode(levels)
        start = KEPT * self.frame_size - self._begin
        return pcm[:, 0, start : start + self.frame_size]

    def _replace_blocks(self) -> None:
        """Fold the weight norms, and replace two of SNAC's blocks with ours."""
        for module in list(self._network.modules()):
            if hasattr(module, "parametrizations"):
                remove_parametrizations(module, "weight")
        generator = torch.Generator().manual_seed(0)
        width = len(LEVELS[-1])  # positions per frame, at the third level's rate
        for parent in list(self._network["decoder"].modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.ConvTranspose1d):
                    width *= child.stride[0]
                elif isinstance(child, Snake1d):
                    setattr(parent, name, _Snake(child.alpha))
                elif isinstance(child, NoiseBlock):
                    table = torch.randn(NOISE_FRAMES, width, generator=generator)
                    self._noise.append(_Noise(child.linear, table.to(self.device)))
                    setattr(parent, name, self._noise[-1])

    def _narrow(self) -> None:
        """Restrict each block to the positions on which the played frame depends.

        That is two fifths of the work for the window and does not change the result: everything
        out of the convolutions' reach would be discarded.
        """
        layers: Any = self._network["decoder"].model
        low, high = KEPT * self.frame_size, (KEPT + 1) * self.frame_size  # of the last rate
        needed: list[tuple[Any, int, int]] = []
        for layer in reversed(layers):
            reach = sum(_reach(module) for module in layer.modules())
            low, high = max(0, low - reach), high + reach
            if isinstance(layer, DecoderBlock):
                up = next(m for m in layer.modules() if isinstance(m, nn.ConvTranspose1d))
                stride, padding = up.stride[0], int(up.padding[0])
                low = max(0, (low + padding - up.kernel_size[0] + 1) // stride)
                high = (high - 1 + padding) // stride + 1
                needed.insert(0, (layer, low, high))
        for layer, low, high in needed:
            layer.block.insert(0, _Crop(low - self._begin, high - self._begin))
            up = next(m for m in layer.block if isinstance(m, nn.ConvTranspose1d))
            self._begin = low * up.stride[0]
            for module in layer.block:
                if isinstance(module, _Noise):
                    module.begin = self._begin


def _reach(module: nn.Module) -> int:
    """The number of positions to each side that a convolution reads."""
    if not isinstance(module, nn.Conv1d):
        return 0
    return (module.kernel_size[0] - 1) // 2 * module.dilation[0]


class _Crop(nn.Module):
    """Positions `low` to `high` of `[B, C, T]`."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self._span = slice(low, high)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., self._span]


class _Noise(nn.Module):
    """SNAC's noise block with noise from a table `[frame, position]`.

    `frames` `[B, F]` are the table rows of the window's frames; `begin` is the first position in
    them that is decoded.
    """

    frames: torch.Tensor
    begin = 0

    def __init__(self, linear: nn.Module, table: torch.Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.table = table

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = self.table[self.frames].flatten(1)[:, None]
        noise = noise[..., self.begin : self.begin + x.shape[-1]]
        projected: torch.Tensor = self.linear(x)
        return x + noise * projected


class _Snake(nn.Module):
    """x + sin^2(alpha x) / alpha (Ziyin et al., "Snake", 2020), as in SNAC.

    The package compiles it with TorchScript, whose fusion may change the last digits from one call
    to the next and cannot be captured in a CUDA graph.
    """

    def __init__(self, alpha: torch.Tensor) -> None:
        super().__init__()
        self.alpha = nn.Parameter(alpha, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.sin(self.alpha * x).square() / (self.alpha + 1e-9)
