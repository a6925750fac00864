"""DAC, the codec of Dia, as a stream of delayed frames; it equals decoding all frames at once.

Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN", 2023; tensors have the names
of transformers' `DacModel`.  Its convolutions look ahead.  Here each is causal, so its output is
delayed by its lookahead, and the sound of a frame comes `lookahead` frames after it.  Positions
that DAC pads with zeros, before the first frame and after the last, are set to zero in every layer.

Everything is float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, prod
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from vox_serve import CheckpointError
from vox_serve.nn import CausalConv, Past, TransposedConv, WeightLoader, held_bytes
from vox_serve.nn.seanet import Read

FRAMES = 5
"""Frames that are decoded together: fewer, larger products."""
DILATIONS = (1, 3, 9)
KERNEL = 7
ROWS = 4 * FRAMES
"""The usual number of rows of a product at the frame rate: four utterances."""
PIECE_FRAMES = 172
"""Frames of a clip that are encoded together (2 s)."""


class Dac:
    """Implements `vox_serve.EncodingCodec`; `load`, `allocate`, then use.

    A frame is a column of delayed codes, as Dia generates it: the code of codebook k belongs to the
    frame `delays[k]` earlier.  A frame whose first code is reserved has no sound, but flushes the
    frames before it.

    Args:
        config: DAC's `config.json`.
        delays: the delay of each codebook in frames.
        vocab: ids per codebook, reserved ones included.
        device: of weights and state.

    Raises:
        CheckpointError: the configuration has a setting that is not supported.
    """

    frames_per_step = FRAMES

    def __init__(
        self,
        config: Mapping[str, Any],
        delays: Sequence[int],
        vocab: int,
        device: torch.device,
    ) -> None:
        try:
            self._sizes = _Sizes(config)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the configuration of DAC cannot be used: {error}") from error
        if self._sizes.books != len(delays):
            raise CheckpointError(
                f"DAC has {self._sizes.books} codebooks, but the delays are {len(delays)}"
            )
        if self._sizes.codes > vocab:
            raise CheckpointError(f"DAC has {self._sizes.codes} codes, but the model {vocab}")
        self.device = device
        self.sample_rate = int(config["sampling_rate"])
        self.hop = prod(self._sizes.strides)
        self.frame_size = FRAMES * self.hop
        self.frame_rate = self.sample_rate / self.hop
        self.frame_width = len(delays)
        self.codebook_size = vocab
        self._late = max(delays)
        # Frame r of a step, of codebook k: place r + delays[k] among the last columns.
        places = torch.arange(FRAMES)[:, None] + torch.tensor(delays)
        self._places = places.to(device)[None]

    def load(self, loader: WeightLoader) -> None:
        """Fill the weights.  Raises CheckpointError: a tensor is missing or has another shape."""

        def read(name: str, *shape: int) -> torch.Tensor:
            return loader.read(name, shape).to(self.device, torch.float32)

        self._decoder = _Decoder(self._sizes, read, self._late)
        self._encoder = _Encoder(self._sizes, read)
        loader.finish()

    @property
    def behind(self) -> int:
        """The delay from a frame to its sound, in frames: that of the codes plus that of DAC."""
        return self._late + self._decoder.lookahead

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights."""
        return held_bytes(self._decoder) + held_bytes(self._encoder)

    def allocate(self, num_slots: int) -> int:
        shape = (num_slots, self._late, self.frame_width)
        self._columns = torch.zeros(shape, dtype=torch.int64, device=self.device)
        # One more row stays zero: the initial state of an utterance.
        self._rows = torch.zeros(num_slots + 1, self._decoder.width, device=self.device)
        return self._columns.nbytes + self._rows.nbytes

    def clear(self, slot: int) -> None:
        self._columns[slot] = 0
        self._rows[slot] = 0

    @torch.no_grad()
    def step(
        self, codes: torch.Tensor, slots: torch.Tensor, reset: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode FRAMES columns `[B, K, FRAMES]`; see `Codec.step`."""
        size = self._sizes.codes
        # Columns before the first one are silent.
        before = self._columns[slots].masked_fill(reset[:, None, None], self.codebook_size)
        columns = torch.cat([before, codes.transpose(1, 2)], dim=1)
        frames = columns.gather(1, self._places.expand(len(slots), -1, -1))
        heard = (frames[:, :, 0] < size).float()
        past = Past(self._rows.index_select(0, slots.masked_fill(reset, len(self._rows) - 1)))
        pcm, valid = self._decoder(frames.clamp(max=size - 1), heard, past)
        # Last, so that a step that raises changes nothing.
        self._columns.index_copy_(0, slots, columns[:, FRAMES:])
        self._rows.index_copy_(0, slots, past.after())
        return pcm, valid.cumprod(1).sum(1).to(torch.int64) * self.hop

    @torch.no_grad()
    def encode(self, pcm: torch.Tensor) -> torch.Tensor:
        """A clip to codes `[K, F]`, F = ceil(T / hop), not delayed; see `EncodingCodec.encode`.

        It is encoded in pieces, each with the neighbouring samples on which its codes depend.
        """
        frames, around = -(-len(pcm) // self.hop), self._encoder.around
        pcm = pcm.to(self.device, torch.float32)
        pcm = F.pad(pcm, (0, frames * self.hop - len(pcm)))
        found = [torch.empty(self.frame_width, 0, dtype=torch.int64, device=self.device)]
        for start in range(0, frames, PIECE_FRAMES):
            first, last = max(0, start - around), start + PIECE_FRAMES + around
            codes = self._encoder(pcm[None, None, first * self.hop : last * self.hop])
            found.append(codes[:, start - first :][:, :PIECE_FRAMES])
        return torch.cat(found, dim=1)


class _Sizes:
    """Raises ValueError, KeyError or TypeError: a size is missing, or not supported."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.strides = [int(stride) for stride in config["downsampling_ratios"]]
        if any(stride % 2 for stride in self.strides):
            raise ValueError(f"downsampling_ratios {self.strides} must be even")
        self.encoder, self.decoder = (
            int(config["encoder_hidden_size"]),
            int(config["decoder_hidden_size"]),
        )
        self.hidden = self.encoder * 2 ** len(self.strides)
        self.books, self.codes = int(config["n_codebooks"]), int(config["codebook_size"])
        self.code_width = int(config["codebook_dim"])


class _Snake(nn.Module):
    """x + sin^2(alpha x) / alpha (Ziyin et al., "Snake", 2020): `alpha` broadcasts to x."""

    alpha: torch.Tensor
    share: torch.Tensor

    def __init__(self, alpha: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("alpha", alpha)
        self.register_buffer("share", 1 / (alpha + 1e-9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(x, torch.sin(self.alpha * x).square_(), self.share)


def _snake(read: Read, name: str, width: int) -> _Snake:
    return _Snake(read(f"{name}.alpha", 1, width, 1).flatten())


def _causal(
    read: Read, name: str, inputs: int, outputs: int, kernel: int, rows: int, dilation: int = 1
) -> CausalConv:
    weight = read(f"{name}.weight", outputs, inputs, kernel)
    return CausalConv(weight, read(f"{name}.bias", outputs), dilation=dilation, rows=rows)


class _Unit(nn.Module):
    """A residual unit: `[B, T, C]` to the same, delayed by `late`."""

    def __init__(self, read: Read, name: str, width: int, dilation: int, rows: int) -> None:
        super().__init__()
        self.late = (KERNEL - 1) * dilation // 2
        self.snakes = nn.ModuleList(_snake(read, f"{name}.snake{n}", width) for n in (1, 2))
        self.first = _causal(read, f"{name}.conv1", width, width, KERNEL, rows, dilation)
        self.second = _causal(read, f"{name}.conv2", width, width, 1, rows)
        self.width = self.first.width + self.late * width

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        y = self.second(self.snakes[1](self.first(self.snakes[0](x), past)), past)
        z: torch.Tensor = past.precede(x, self.late)[:, : x.shape[1]] + y
        return z


class _Up(nn.Module):
    """A transposed convolution: `[B, T, in]` to `[B, T * stride, out]`."""

    def __init__(self, read: Read, name: str, width: int, stride: int, rows: int) -> None:
        super().__init__()
        self.snake = _snake(read, f"{name}.snake1", width)
        weight = read(f"{name}.conv_t1.weight", width, width // 2, 2 * stride)
        self.conv = TransposedConv(weight, read(f"{name}.conv_t1.bias", width // 2), rows)
        self.late = stride // 2
        self.width = self.conv.width

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        y: torch.Tensor = self.conv(self.snake(x), past)
        return y


class _Decoder(nn.Module):
    """Codes `[B, R, K]` to sound `[B, R * hop]`, delayed by `lookahead` frames.

    Args:
        late: the delay of the codes in frames; with `lookahead`, a multiple of R.
    """

    def __init__(self, sizes: _Sizes, read: Read, late: int) -> None:
        super().__init__()
        books, codes, hidden = sizes.books, sizes.codes, sizes.hidden
        tables = []
        for book in range(books):
            name = f"quantizer.quantizers.{book}"
            codebook = read(f"{name}.codebook.weight", codes, sizes.code_width)
            weight = read(f"{name}.out_proj.weight", hidden, sizes.code_width, 1)[..., 0]
            tables.append(F.linear(codebook, weight, read(f"{name}.out_proj.bias", hidden)))
        self.table = nn.Buffer(torch.cat(tables))
        self.offsets = nn.Buffer(torch.arange(books, device=self.table.device) * codes)
        self.first = _causal(read, "decoder.conv1", hidden, sizes.decoder, KERNEL, ROWS)
        stages: list[_Up | _Unit] = []
        width, rate, behind = sizes.decoder, 1, KERNEL // 2
        rates = [(rate, behind)]
        for number, stride in enumerate(reversed(sizes.strides)):
            name = f"decoder.block.{number}"
            stages.append(_Up(read, name, width, stride, ROWS * rate))
            width, rate, behind = width // 2, rate * stride, behind * stride + stages[-1].late
            rates.append((rate, behind))
            for unit, dilation in enumerate(DILATIONS, 1):
                stages.append(_Unit(read, f"{name}.res_unit{unit}", width, dilation, ROWS * rate))
                behind += stages[-1].late
                rates.append((rate, behind))
        self.stages = nn.ModuleList(stages)
        self.snake = _snake(read, "decoder.snake1", width)
        self.last = _causal(read, "decoder.conv2", width, 1, KERNEL, ROWS * rate)
        behind += KERNEL // 2
        self.lookahead = -(-behind // rate)
        self.lookahead += -(late + self.lookahead) % FRAMES
        self._rest = self.lookahead * rate - behind
        # The frame, among the last ones, to which each sample of each layer belongs.
        places = [
            torch.div(torch.arange(FRAMES * r) - b, r, rounding_mode="floor") + self.lookahead
            for r, b in rates
        ]
        self._lengths = [len(each) for each in places]
        self.places = nn.Buffer(torch.cat(places).to(self.table.device))
        own = [self.first, *stages, self.last]
        self.width = sum(each.width for each in own) + self.lookahead + self._rest

    def forward(
        self, codes: torch.Tensor, heard: torch.Tensor, past: Past
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Also returns which of the R frames have sound, float `[B, R]`."""
        recent = past.precede(heard[:, :, None], self.lookahead)
        masks = torch.split(recent[:, self.places], self._lengths, dim=1)
        x = F.embedding(codes + self.offsets, self.table).sum(2) * heard[:, :, None]
        x = self.first(x, past) * masks[0]
        for stage, mask in zip(self.stages, masks[1:], strict=True):
            x = stage(x, past) * mask
        pcm = self.last(self.snake(x), past).tanh()
        pcm = past.precede(pcm, self._rest)[:, : pcm.shape[1]] if self._rest else pcm
        return pcm.squeeze(2), recent[:, :FRAMES, 0]


class _Encoder(nn.Module):
    """Sound `[1, 1, T]`, T a multiple of the hop, to codes `[K, F]`."""

    def __init__(self, sizes: _Sizes, read: Read) -> None:
        super().__init__()
        self._convs: list[tuple[dict[str, int], str]] = []
        width = sizes.encoder
        reach, scale = KERNEL // 2, 1
        layers: list[nn.Module] = [_conv(read, "encoder.conv1", 1, width, KERNEL)]
        for number, stride in enumerate(sizes.strides):
            name = f"encoder.block.{number}"
            for unit, dilation in enumerate(DILATIONS, 1):
                layers.append(_WholeUnit(read, f"{name}.res_unit{unit}", width, dilation))
                reach += KERNEL // 2 * dilation * scale
            layers.append(_wide_snake(read, f"{name}.snake1", width))
            layers.append(_conv(read, f"{name}.conv1", width, 2 * width, 2 * stride, stride))
            reach += 2 * stride * scale
            width, scale = 2 * width, scale * stride
        layers.append(_wide_snake(read, "encoder.snake1", width))
        layers.append(_conv(read, "encoder.conv2", width, sizes.hidden, 3))
        self.around = ceil(reach / scale) + 1
        self.layers = nn.Sequential(*layers)
        names = [f"quantizer.quantizers.{book}" for book in range(sizes.books)]
        self.entries = nn.ModuleList(
            _conv(read, f"{name}.in_proj", sizes.hidden, sizes.code_width, 1) for name in names
        )
        self.leaves = nn.ModuleList(
            _conv(read, f"{name}.out_proj", sizes.code_width, sizes.hidden, 1) for name in names
        )
        shape = sizes.codes, sizes.code_width
        books = torch.stack([read(f"{name}.codebook.weight", *shape) for name in names])
        self.books = nn.Buffer(books)

    def forward(self, pcm: torch.Tensor) -> torch.Tensor:
        rest = self.layers(pcm)
        found = []
        for entry, leave, book in zip(self.entries, self.leaves, self.books, strict=True):
            latent = entry(rest)[0].t()
            # As in DAC, the nearest vector; all have length 1.
            near, unit = F.normalize(book), F.normalize(latent)
            distance = unit.square().sum(1, keepdim=True) - 2 * unit @ near.t()
            codes = (-distance + near.square().sum(1)).argmax(1)
            rest = rest - leave(book[codes].t()[None])
            found.append(codes)
        return torch.stack(found)


class _WholeUnit(nn.Module):
    """A residual unit over a whole `[1, C, T]`."""

    def __init__(self, read: Read, name: str, width: int, dilation: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            _wide_snake(read, f"{name}.snake1", width),
            _conv(read, f"{name}.conv1", width, width, KERNEL, dilation=dilation),
            _wide_snake(read, f"{name}.snake2", width),
            _conv(read, f"{name}.conv2", width, width, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.block(x)
        return y


def _wide_snake(read: Read, name: str, width: int) -> _Snake:
    return _Snake(read(f"{name}.alpha", 1, width, 1)[0])


def _conv(
    read: Read,
    name: str,
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    dilation: int = 1,
) -> nn.Conv1d:
    padding = stride // 2 if stride > 1 else (kernel - 1) * dilation // 2
    with torch.device("meta"):
        conv = nn.Conv1d(inputs, outputs, kernel, stride, padding, dilation)
    conv.weight = nn.Parameter(read(f"{name}.weight", outputs, inputs, kernel), False)
    conv.bias = nn.Parameter(read(f"{name}.bias", outputs), False)
    return conv
