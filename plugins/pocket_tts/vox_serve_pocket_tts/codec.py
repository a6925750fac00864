"""The latent codec: Mimi without a quantizer, at 24 kHz, with 80 ms per latent."""

from __future__ import annotations

import torch
from torch import nn

from vox_serve.nn import PackedLinear, WeightLoader, held_bytes
from vox_serve.nn.mimi_decoder import MimiDecoder
from vox_serve.nn.mimi_encoder import PIECE_FRAMES, MimiEncoder
from vox_serve_pocket_tts.config import PocketConfig

FADE_SECONDS = 1 / 200
"""The sound fades in, because the decoder starts with a small step, which is audible as a click."""
PAUSE_SECONDS, PROMPT_FADE_SECONDS, FLOOR_DB = 0.08, 0.02, 35.0
"""A voice's clip is made to end with PAUSE_SECONDS of silence, as in training.  Sound FLOOR_DB
below the loudest 20 ms counts as silence."""


class _Entry(nn.Module):
    """A normalised latent `[B, K]` to the vector that is upsampled, `[B, C]`."""

    def __init__(self, weight: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.projection = PackedLinear(weight * std, weight @ mean, rows=4)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.projection(latent)
        return projected


class _ToFrames(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.t()


class LatentDecoder:
    """Implements `vox_serve.Codec`.  Float32 throughout; `load`, `allocate`, then use."""

    codebook_size = None
    frames_per_step = 1

    def __init__(self, config: PocketConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.sample_rate = config.sample_rate
        self.frame_width = config.latent
        ratios = torch.tensor(config.decoder["upsampling_ratios"])
        self.frame_size = int(ratios.prod()) * config.stride
        self.frame_rate = self.sample_rate / self.frame_size
        self._fade = torch.linspace(0, 1, round(self.sample_rate * FADE_SECONDS), device=device)

    def load(self, loader: WeightLoader) -> None:
        """Fill the weights.  Raises CheckpointError: a tensor is missing or has another shape."""
        read = MimiNames(loader, self.config, self.device)
        c, latent = self.config.decoder, self.config.latent
        size = c["hidden_size"]
        weight = read("quantizer.output_proj.weight", size, latent, 1)[..., 0]
        mean, std = (loader.read(f"flow_lm.emb_{x}", (latent,)).float() for x in ("mean", "std"))
        entry = _Entry(weight, mean.to(self.device), std.to(self.device))
        self._decoder = MimiDecoder(c, entry, self.config.stride, read)

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights."""
        return held_bytes(self._decoder)

    def allocate(self, num_slots: int) -> int:
        return self._decoder.allocate(num_slots)

    def clear(self, slot: int) -> None:
        self._decoder.clear(slot)

    @torch.no_grad()
    def step(
        self, codes: torch.Tensor, slots: torch.Tensor, reset: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode a latent `[B, K, 1]` of each slot; see `Codec.step`.  N samples are valid."""
        pcm = self._decoder(codes.squeeze(2), slots, reset)
        begins = pcm[:, : len(self._fade)]
        begins.copy_(torch.where(reset[:, None], begins * self._fade, begins))
        return pcm, torch.full_like(slots, self.frame_size)


class LatentCodec(LatentDecoder):
    """A codec with the encoder, which makes voices from clips: a `vox_serve.EncodingCodec`."""

    def load(self, loader: WeightLoader) -> None:
        super().load(loader)
        read = MimiNames(loader, self.config, self.device)
        c, config = self.config.encoder, self.config
        self._encoder = MimiEncoder(c, _ToFrames(), config.voice, config.stride, read)

    @property
    def weight_bytes(self) -> int:
        return super().weight_bytes + held_bytes(self._encoder)

    @torch.no_grad()
    def encode(self, pcm: torch.Tensor) -> torch.Tensor:
        """A clip to latents `[voice, F]`; see `EncodingCodec.encode`.

        The clip is made to end with a short pause, and its last frame is padded with silence.
        """
        if not len(pcm):
            return torch.empty(self.config.voice, 0, device=self.device)
        pcm = ended_on_pause(pcm.to(self.device, torch.float32), self.sample_rate)
        pcm = nn.functional.pad(pcm, (0, -len(pcm) % self.frame_size))
        clip = self._encoder.begin()
        pieces = torch.split(pcm, PIECE_FRAMES * self.frame_size)
        return torch.cat([self._encoder(piece, clip) for piece in pieces], dim=1)


def ended_on_pause(pcm: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """A clip `[T]` whose trailing silence is cut and replaced by a pause (`end_on_pause`).

    If a clip stops in the middle of a word, the model continues that word.
    """
    frame = max(1, int(0.02 * sample_rate))
    count = len(pcm) // frame
    if count == 0:
        return pcm
    power = pcm[: count * frame].view(count, frame).square().mean(1)
    level = 20 * torch.log10(power.sqrt() + 1e-12)
    loud = torch.nonzero(level > level.max() - FLOOR_DB).flatten()
    pcm = pcm[: (int(loud[-1]) + 1) * frame].clone()
    fade = min(int(PROMPT_FADE_SECONDS * sample_rate), len(pcm))
    pcm[len(pcm) - fade :] *= torch.linspace(1, 0, fade, device=pcm.device)
    return torch.cat([pcm, pcm.new_zeros(int(PAUSE_SECONDS * sample_rate))])


class MimiNames:
    """`read(name, *shape)` of a Mimi tensor by transformers' name, from Kyutai's file."""

    def __init__(self, loader: WeightLoader, config: PocketConfig, device: torch.device) -> None:
        self._loader = loader
        self._config = config
        self._device = device

    def __call__(self, name: str, *shape: int) -> torch.Tensor:
        side, _, rest = name.partition(".")
        if side.endswith("_transformer"):
            tensor = self._of_layer(f"mimi.{side}.transformer.{rest}", shape)
        elif side in ("encoder", "decoder"):
            # A transposed convolution has another name, but the same number as a plain one.
            theirs = f"mimi.{side}.{rest.replace('layers', 'model', 1)}"
            if theirs not in self._loader.names:
                theirs = theirs.replace(".conv.", ".convtr.")
            tensor = self._loader.read(theirs, shape)
        else:
            theirs = f"mimi.{name}"
            if side in ("upsample", "downsample"):
                kind = "convtr" if side == "upsample" else "conv"
                theirs = f"mimi.{side}.{kind}.{kind}.weight"
            tensor = self._loader.read(theirs, shape)
        return tensor.to(self._device, torch.float32, copy=True)

    def _of_layer(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        projection = name.rpartition(".self_attn.")[2]
        if projection in ("q_proj.weight", "k_proj.weight", "v_proj.weight"):
            size = shape[0]
            stacked = self._loader.read(
                name.replace(projection, "in_proj.weight"), (3 * size, shape[1])
            )
            part = stacked.chunk(3)["qkv".index(projection[0])]
            if projection[0] == "v":
                return part
            heads = self._config.decoder["num_attention_heads"]
            if ".encoder_transformer." in name:
                heads = self._config.encoder["num_attention_heads"]
            return halves(part, heads)
        for theirs, ours in (
            ("self_attn.out_proj", "self_attn.o_proj"),
            ("linear1", "mlp.fc1"),
            ("linear2", "mlp.fc2"),
            ("layer_scale_1", "self_attn_layer_scale"),
            ("layer_scale_2", "mlp_layer_scale"),
            ("norm1", "input_layernorm"),
            ("norm2", "post_attention_layernorm"),
        ):
            name = name.replace(f".{ours}.", f".{theirs}.")
        return self._loader.read(name, shape)


def halves(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorder the rows of a q or k matrix from RoPE pairs (r i r i ..) to halves (r.. i..)."""
    pairs = weight.reshape(num_heads, -1, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)
