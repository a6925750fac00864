"""The 12 Hz codec: frames of 16 codes to 24 kHz sound as a stream, and clips to codes.

The decoder sums the codes' vectors, lets a transformer look back over 72 frames, and turns the
result into sound with causal convolutions, whose past is kept in a row per slot.  So decoding
frame by frame gives the same samples as decoding the whole.  The encoder is Mimi's.

Everything is float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from vox_serve import CheckpointError
from vox_serve.nn import CausalConv, PackedLinear, Past, TransposedConv, WeightLoader, held_bytes
from vox_serve.nn.mimi import MimiClips
from vox_serve.nn.mimi_transformer import StreamingLayer, StreamingTransformer
from vox_serve.nn.seanet import Read
from vox_serve_qwen3_tts.speaker import SpeakerEncoder

# The package's defaults, which a config.json may omit.
_DEFAULTS: dict[str, Any] = {
    "codebook_size": 2048,
    "hidden_size": 1024,
    "latent_dim": 1024,
    "rope_theta": 10000.0,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "sliding_window": 72,
    "intermediate_size": 3072,
    "rms_norm_eps": 1e-5,
    "num_hidden_layers": 8,
    "num_quantizers": 16,
    "upsample_rates": (8, 5, 4, 3),
    "upsampling_ratios": (2, 2),
    "decoder_dim": 1536,
}
_EPSILON = 1e-5
"""A vector is a sum over training vectors divided by their count; this is the least divisor."""
_DILATIONS = (1, 3, 9)


def read_config(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's configuration, with defaults filled in.

    Raises:
        CheckpointError: a setting is not supported.
    """
    if stored.get("model_type") != "qwen3_tts_tokenizer_12hz":
        raise CheckpointError(
            f"speech_tokenizer: model_type is {stored.get('model_type')!r}; "
            "only 'qwen3_tts_tokenizer_12hz' is supported"
        )
    given = stored.get("decoder_config") or {}
    c = _DEFAULTS | {key: value for key, value in given.items() if value is not None}
    for key in ("upsample_rates", "upsampling_ratios"):
        if not isinstance(c[key], list | tuple):
            raise CheckpointError(f"speech_tokenizer: {key} must be a list")
    c["rope"] = {"rope_theta": c["rope_theta"]}
    c["sample_rate"] = int(stored.get("output_sample_rate", 24000))
    c["frame_size"] = prod((*c["upsample_rates"], *c["upsampling_ratios"]))
    supported = {
        "num_key_value_heads": c["num_attention_heads"],
        "attention_bias": False,
        "hidden_act": "silu",
        "decode_upsample_rate": c["frame_size"],
        "input_sample_rate": c["sample_rate"],
    }
    for key, value in supported.items():
        found = c.get(key, stored.get(key, value))
        if found != value:
            raise CheckpointError(f"speech_tokenizer: {key} is {found!r}; expected {value!r}")
    if "codebook_dim" not in c:
        raise CheckpointError("speech_tokenizer: decoder_config.codebook_dim is missing")
    return c


class QwenLayer(StreamingLayer):
    """With RMS norms and SwiGLU."""

    def read_rest(self, c: Mapping[str, Any], read: Read, name: str, rows: int) -> None:
        size, inner = c["hidden_size"], c["intermediate_size"]
        gate, up = (read(f"{name}mlp.{x}_proj.weight", inner, size) for x in ("gate", "up"))
        down = read(f"{name}mlp.down_proj.weight", size, inner)
        down = down * read(f"{name}mlp_layer_scale.scale", size)[:, None]
        self.gate_up = PackedLinear(torch.cat([gate, up]), rows=rows)
        self.down = PackedLinear(down, rows=rows)
        self.norm1 = _rms_norm(c, read, f"{name}input_layernorm.weight")
        self.norm2 = _rms_norm(c, read, f"{name}post_attention_layernorm.weight")

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=1)
        down: torch.Tensor = self.down(F.silu(gate) * up, x)
        return down


class _Codes(nn.Module):
    """Codes `[B, K]` to their vectors' sum `[B, 1, codebook_dim]`."""

    table: torch.Tensor
    starts: torch.Tensor

    def __init__(self, c: Mapping[str, Any], read: Read) -> None:
        super().__init__()
        size, width, books = c["codebook_size"], c["codebook_dim"], c["num_quantizers"]
        tables = []
        for part, count in (("first", 1), ("rest", books - 1)):
            name = f"quantizer.rvq_{part}."
            projection = read(f"{name}output_proj.weight", width, width // 2, 1)[..., 0]
            for number in range(count):
                book = f"{name}vq.layers.{number}._codebook."
                sums = read(f"{book}embedding_sum", size, width // 2)
                usage = read(f"{book}cluster_usage", size).clamp(min=_EPSILON)
                tables.append(sums / usage[:, None] @ projection.t())
        table = torch.cat(tables)
        self.register_buffer("table", table)
        self.register_buffer("starts", torch.arange(books, device=table.device) * size)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return F.embedding(codes + self.starts, self.table).sum(1, keepdim=True)


class _Snake(nn.Module):
    """x + sin^2(a x) / b, by channel; a and b are stored as logarithms.

    Source: Ziyin, Hartwig, Ueda, "Neural networks fail to learn periodic functions" (2020).
    """

    a: torch.Tensor
    b: torch.Tensor
    width = 0

    def __init__(self, read: Read, name: str, channels: int) -> None:
        super().__init__()
        self.register_buffer("a", read(f"{name}alpha", channels).exp())
        self.register_buffer("b", 1 / (read(f"{name}beta", channels).exp() + 1e-9))

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        return torch.addcmul(x, self.b, (x * self.a).sin_().square_())


class _Residual(nn.Module):
    def __init__(self, read: Read, name: str, channels: int, dilation: int, rows: int) -> None:
        super().__init__()
        self.first = _Snake(read, f"{name}act1.", channels)
        self.wide = _conv(read, f"{name}conv1.", channels, channels, 7, rows, dilation)
        self.second = _Snake(read, f"{name}act2.", channels)
        self.narrow = _conv(read, f"{name}conv2.", channels, channels, 1, rows)
        self.width = self.wide.width

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        y = self.wide(self.first(x, past), past)
        narrowed: torch.Tensor = self.narrow(self.second(y, past), past)
        return narrowed + x


class _Repeat(nn.Module):
    """A transposed convolution whose kernel is its stride: `[B, T, C]` to `[B, T * S, C]`."""

    width = 0

    def __init__(self, read: Read, name: str, channels: int, stride: int, rows: int) -> None:
        super().__init__()
        weight = read(f"{name}conv.weight", channels, channels, stride)
        bias = read(f"{name}conv.bias", channels).repeat(stride)
        self.matrix = PackedLinear(weight.permute(2, 1, 0).flatten(0, 1), bias, rows)

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        batch, _, channels = x.shape
        y: torch.Tensor = self.matrix(x.reshape(-1, channels))
        return y.view(batch, -1, channels)


class _ConvNext(nn.Module):
    """Liu et al., "A ConvNet for the 2020s" (2022): a depthwise convolution and an MLP."""

    taps: torch.Tensor  # [7, C]
    bias: torch.Tensor

    def __init__(self, read: Read, name: str, channels: int, rows: int) -> None:
        super().__init__()
        taps = read(f"{name}dwconv.conv.weight", channels, 1, 7)[:, 0].t()
        self.register_buffer("taps", taps.contiguous())
        self.register_buffer("bias", read(f"{name}dwconv.conv.bias", channels))
        self.norm = nn.LayerNorm(channels, 1e-6, device="meta")
        for part in ("weight", "bias"):
            tensor = read(f"{name}norm.{part}", channels)
            setattr(self.norm, part, nn.Parameter(tensor, requires_grad=False))
        gamma = read(f"{name}gamma", channels)
        self.up = PackedLinear(*_linear(read, f"{name}pwconv1.", channels, 4 * channels), rows)
        weight, bias = _linear(read, f"{name}pwconv2.", 4 * channels, channels)
        self.down = PackedLinear(weight * gamma[:, None], bias * gamma, rows)
        self.width = 6 * channels

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        windows = past.precede(x, 6).unfold(1, 7, 1)  # [B, T, C, 7]
        y = (windows * self.taps.t()).sum(-1) + self.bias
        inner = F.gelu(self.up(self.norm(y).flatten(0, 1)))
        down: torch.Tensor = self.down(inner, x.flatten(0, 1))
        return down.view(x.shape)


class CodeDecoder:
    """Implements `vox_serve.Codec`.  Build, `load`, `allocate`, then use."""

    frames_per_step = 1

    def __init__(self, stored: Mapping[str, Any], device: torch.device) -> None:
        """Args: the codec's `config.json`.  Raises CheckpointError if it is not supported."""
        self._config = c = read_config(stored)
        self.device = device
        self.sample_rate: int = c["sample_rate"]
        self.frame_size: int = c["frame_size"]
        self.frame_rate: float = self.sample_rate / self.frame_size
        self.frame_width: int = c["num_quantizers"]
        self.codebook_size: int = c["codebook_size"]

    def load(self, loader: WeightLoader) -> None:
        """Fill the weights.  Raises CheckpointError: a tensor is missing or has another shape."""

        def read(name: str, *shape: int) -> torch.Tensor:
            tensor = loader.read(f"decoder.{name}", shape)
            return tensor.to(self.device, torch.float32, copy=True)

        c, rows = self._config, 4
        latent, width = c["latent_dim"], c["decoder_dim"]
        self._codes = _Codes(c, read)
        loader.ignore(*(f"decoder.quantizer.rvq_{x}.input_proj.weight" for x in ("first", "rest")))
        self._entry = _conv(read, "pre_conv.", c["codebook_dim"], latent, 3, rows)
        name, size = "pre_transformer.", c["hidden_size"]
        self._into = PackedLinear(*_linear(read, f"{name}input_proj.", latent, size), rows)
        self._out = PackedLinear(*_linear(read, f"{name}output_proj.", size, latent), rows)
        self._transformer = StreamingTransformer(c, read, name, rows, QwenLayer)
        self._norm = _rms_norm(c, read, f"{name}norm.weight")
        stages: list[Any] = []
        for number, ratio in enumerate(c["upsampling_ratios"]):
            stages.append(_Repeat(read, f"upsample.{number}.0.", latent, ratio, rows))
            rows *= ratio
            stages.append(_ConvNext(read, f"upsample.{number}.1.", latent, rows))
        stages.append(_conv(read, "decoder.0.", latent, width, 7, rows))
        for number, rate in enumerate(c["upsample_rates"], 1):
            block = f"decoder.{number}.block."
            stages.append(_Snake(read, f"{block}0.", width))
            weight = read(f"{block}1.conv.weight", width, width // 2, 2 * rate)
            width //= 2
            bias = read(f"{block}1.conv.bias", width)
            stages.append(TransposedConv(weight, bias, rows))
            rows *= rate
            for place, dilation in enumerate(_DILATIONS, 2):
                stages.append(_Residual(read, f"{block}{place}.", width, dilation, rows))
        last = len(c["upsample_rates"]) + 1
        stages.append(_Snake(read, f"decoder.{last}.", width))
        stages.append(_conv(read, f"decoder.{last + 1}.", width, 1, 7, rows))
        self._stages = nn.ModuleList(stages)
        self._width = self._entry.width + sum(stage.width for stage in stages)

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights."""
        parts = (self._codes, self._entry, self._into, self._out, self._transformer, self._stages)
        return sum(map(held_bytes, parts))

    def allocate(self, num_slots: int) -> int:
        # One more row stays zero: the initial state of an utterance.
        self._rows = torch.zeros(num_slots + 1, self._width, device=self.device)
        self._positions = torch.zeros(num_slots, dtype=torch.int64, device=self.device)
        self._rings = self._transformer.rings(num_slots, 1)
        return self._rows.nbytes + self._positions.nbytes + self._rings.nbytes

    def clear(self, slot: int) -> None:
        self._rows[slot] = 0
        self._positions[slot] = 0
        self._rings.clear(slot)

    @torch.no_grad()
    def step(
        self, codes: torch.Tensor, slots: torch.Tensor, reset: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode a frame `[B, K, 1]` of each slot; see `Codec.step`.  N samples are valid."""
        past = Past(self._rows.index_select(0, slots.masked_fill(reset, len(self._rows) - 1)))
        first = self._positions.index_select(0, slots).masked_fill(reset, 0)
        x = self._into(self._entry(self._codes(codes.squeeze(2)), past)[:, 0])
        x = self._transformer(x[:, None], self._rings, slots, first)[:, 0]
        x = self._out(self._norm(x))[:, None]
        for stage in self._stages:
            x = stage(x, past)
        # Last, so that a step that raises changes nothing.
        self._rows.index_copy_(0, slots, past.after())
        self._positions.index_copy_(0, slots, first + 1)
        return x.squeeze(2), torch.full_like(slots, self.frame_size)


class CloningCodec(CodeDecoder):
    """With the encoder and the speaker encoder: implements `vox_serve.SpeakerCodec`."""

    def __init__(
        self, stored: Mapping[str, Any], speaker: Mapping[str, Any], device: torch.device
    ) -> None:
        """Args: the codec's `config.json`, and the model's `speaker_encoder_config`."""
        super().__init__(stored, device)
        books = int(stored.get("encoder_valid_num_quantizers", 16))
        try:
            self._clips = MimiClips(stored.get("encoder_config") or {}, books, device)
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"speech_tokenizer: {error}") from error
        ours = (self.frame_size, self.frame_width, self.codebook_size)
        clips = self._clips
        if (clips.frame_size, clips.frame_width, clips.codebook_size) != ours:
            raise CheckpointError("speech_tokenizer: encoder and decoder have different frames")
        self._speaker = SpeakerEncoder(speaker, device)

    def load(self, loader: WeightLoader) -> None:
        super().load(loader)
        self._clips.load(loader, "encoder.")

    def load_speaker(self, loader: WeightLoader) -> None:
        """Fill the speaker encoder, whose weights are the model's."""
        self._speaker.load(loader, "speaker_encoder.")

    @property
    def weight_bytes(self) -> int:
        return super().weight_bytes + self._clips.weight_bytes + self._speaker.weight_bytes

    def encode(self, pcm: torch.Tensor) -> torch.Tensor:
        """A clip to codes `[K, F]`; see `EncodingCodec.encode`."""
        return self._clips.encode(pcm)

    def embed(self, pcm: torch.Tensor) -> torch.Tensor:
        """A clip to its speaker's vector; see `SpeakerCodec.embed`."""
        vector: torch.Tensor = self._speaker(pcm.to(self.device, torch.float32))
        return vector


def _conv(
    read: Read, name: str, inputs: int, outputs: int, kernel: int, rows: int, dilation: int = 1
) -> CausalConv:
    weight = read(f"{name}conv.weight", outputs, inputs, kernel)
    return CausalConv(weight, read(f"{name}conv.bias", outputs), dilation=dilation, rows=rows)


def _linear(read: Read, name: str, inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    return read(f"{name}weight", outputs, inputs), read(f"{name}bias", outputs)


def _rms_norm(c: Mapping[str, Any], read: Read, name: str) -> nn.RMSNorm:
    norm = nn.RMSNorm(c["hidden_size"], c["rms_norm_eps"], device="meta")
    norm.weight = nn.Parameter(read(name, c["hidden_size"]), requires_grad=False)
    return norm
