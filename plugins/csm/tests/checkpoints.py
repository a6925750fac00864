"""Small random CSM checkpoints, written by transformers, and the results of transformers.

The model is transformers' own, so it is the oracle of the tests: agreeing with it is agreeing
with the published implementation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import CsmConfig, CsmForConditionalGeneration, masking_utils
from transformers.models.mimi import modeling_mimi

from tests.checkpoint_files import change_json, change_tensors, read_tensors, write_json

CODEBOOKS, CODES, RESERVED = 8, 64, 3
FRAME = 1920  # samples
Frames = list[tuple[int, ...]]
PAD, BEGIN, END, UNKNOWN, AUDIO, AUDIO_END = range(6)
SPECIALS = ["<|pad|>", "<|begin|>", "<|end|>", "<|unknown|>", "<|audio|>", "<|audio_end|>"]
CHARACTERS = "[]0123456789abcdefghijklmnopqrstuvwxyz .,!?'-"
IDS = {token: number for number, token in enumerate([*SPECIALS, *CHARACTERS])}

# High frequencies are kept, low ones scaled and those between blended; all three occur.
LLAMA3_ROPE: Mapping[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
INDEX = "transformers.safetensors.index.json"
SHARDS = 3
HEAD, DEPTH_HEADS = "lm_head.weight", "depth_decoder.codebooks_head.weight"


def write_checkpoint(
    directory: Path, depth: Mapping[str, Any] | None = None, **changes: Any
) -> Any:
    """Write a `save_pretrained` directory with tokenizer; returns transformers' model.

    `changes` and `depth` replace values of `small_config` and of its depth decoder.
    """
    config = small_config() | changes
    config["depth_decoder_config"] |= depth or {}
    model = CsmForConditionalGeneration(CsmConfig(**config)).eval()
    with torch.no_grad():
        _randomise(model)
        _tune_loudness(model)
    model.save_pretrained(directory)
    write_tokenizer(directory)
    return model


def small_config() -> dict[str, Any]:
    """Arguments of transformers' `CsmConfig`."""
    return {
        "num_codebooks": CODEBOOKS,
        "vocab_size": CODES + RESERVED,
        "text_vocab_size": len(IDS),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "rope_theta": 500.0,
        "pad_token_id": PAD,
        "bos_token_id": BEGIN,
        "audio_token_id": AUDIO,
        "audio_eos_token_id": AUDIO_END,
        "codebook_pad_token_id": CODES + RESERVED - 1,
        "depth_decoder_config": {
            "num_codebooks": CODEBOOKS,
            "vocab_size": CODES + RESERVED,
            "backbone_hidden_size": 64,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": CODEBOOKS + 1,
            "rope_theta": 100.0,
        },
        "codec_config": {
            "model_type": "mimi",
            "num_filters": 4,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "num_quantizers": CODEBOOKS,
            "codebook_size": CODES,
            "codebook_dim": 16,
            "vector_quantization_hidden_dimension": 16,
            "upsample_groups": 32,
            "sliding_window": 250,  # longer than any clip, because transformers 4 ignores it
        },
    }


def write_tokenizer(directory: Path) -> None:
    """A character-level tokenizer that itself adds only a begin token, like Llama's."""
    tokenizer = Tokenizer(models.WordLevel(IDS, unk_token=SPECIALS[UNKNOWN]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIALS[BEGIN]} $A", special_tokens=[(SPECIALS[BEGIN], BEGIN)]
    )
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"bos_token": BEGIN, "eos_token": END, "unk_token": UNKNOWN, "pad_token": PAD}
    write_json(
        directory / "tokenizer_config.json",
        {key: SPECIALS[number] for key, number in names.items()},
    )


def to_hub_layout(directory: Path) -> None:
    """Change a `save_pretrained` directory to the layout of `sesame/csm-1b`.

    It has shards with their own index, which config.json names, and Sesame's original weights
    under the name that transformers would otherwise read.
    """
    tensors = read_tensors(directory)
    files = {}
    for number in range(SHARDS):
        shard = f"transformers-{number + 1:05}-of-{SHARDS:05}.safetensors"
        held = sorted(tensors)[number::SHARDS]
        save_file({name: tensors[name] for name in held}, directory / shard)
        files |= dict.fromkeys(held, shard)
    write_json(directory / INDEX, {"metadata": {}, "weight_map": files})
    original = {
        "backbone.layers.0.attn.q_proj.weight": torch.ones(64, 64),
        "text_embeddings.weight": torch.ones(len(IDS), 64),
    }
    save_file(original, directory / "model.safetensors")
    change_json(directory / "config.json", transformers_weights=INDEX)


def silence_heads(directory: Path, codebooks: Iterable[int] = range(CODEBOOKS)) -> None:
    """Zero the heads of some codebooks, so that greedy picks code 0 there."""
    tensors = read_tensors(directory)
    head, depth_heads = tensors[HEAD], tensors[DEPTH_HEADS]
    for book in codebooks:
        (head if book == 0 else depth_heads[book - 1]).zero_()
    change_tensors(directory, {HEAD: head, DEPTH_HEADS: depth_heads})


def text_ids(text: str, speaker: int = 0) -> list[int]:
    """Begin, `[speaker]text`, end."""
    return [BEGIN, *(IDS[character] for character in f"[{speaker}]{text}"), END]


def context_ids(text: str, speaker: int, num_frames: int) -> list[int]:
    """A context segment as transformers writes it: the text, a token per frame, the end."""
    return [*text_ids(text, speaker), *[AUDIO] * num_frames, AUDIO_END]


def clip(num_frames: int, seed: int = 0) -> torch.Tensor:
    """A rising tone with some noise, a whole number of frames; float32 `[T]` in -0.5 .. 0.5."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(num_frames * FRAME) / 24000
    noise = torch.rand(len(time), generator=generator) - 0.5
    tone = torch.sin(200 * (1 + seed) * time + 20000 * time**2)
    return 0.4 * time / time[-1] * tone + 0.1 * noise


@torch.no_grad()
def reference_frames(
    model: Any, ids: Sequence[int], num_frames: int, clips: Sequence[torch.Tensor] = ()
) -> Frames:
    """The frames that transformers picks greedily, including the end frame."""
    context: dict[str, torch.Tensor] = {}
    if clips:
        context["input_values"] = torch.cat(list(clips))[None, None]
        ends = torch.tensor([len(audio) for audio in clips]).cumsum(0)
        context["input_values_cutoffs"] = ends[None]
    tokens = torch.tensor([ids])
    frames = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=num_frames,
        do_sample=False,
        depth_decoder_do_sample=False,
        **context,
    )
    return [tuple(frame) for frame in frames[0].tolist()]


@torch.no_grad()
def reference_sound(model: Any, frames: Frames) -> torch.Tensor:
    """Frames decoded at once by transformers' Mimi, `[T]`; reserved ids become code 0."""
    codes = torch.tensor(frames)
    codes = torch.where(codes >= model.config.codec_config.codebook_size, 0, codes)
    pcm: torch.Tensor = model.codec_model.decode(codes.T[None]).audio_values
    return pcm[0, 0]


@torch.no_grad()
def encoded(mimi: Any, pcm: torch.Tensor, num_codebooks: int | None = None) -> torch.Tensor:
    """The codes `[K, F]` of a clip by transformers' `MimiModel`."""
    codes: torch.Tensor = mimi.encode(pcm[None, None], num_quantizers=num_codebooks).audio_codes
    return codes[0]


@contextmanager
def mimi_window() -> Iterator[None]:
    """Make Mimi mask by its window, as in transformers 5; transformers 4 ignores the window."""
    if hasattr(modeling_mimi, "create_causal_mask"):
        sliding = masking_utils.create_sliding_window_causal_mask
        with mock.patch.object(modeling_mimi, "create_causal_mask", sliding):
            yield
    else:
        yield


def _randomise(model: Any) -> None:
    """Draw weights with which greedy codes vary; the usual ones give nearly uniform logits."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in _unique(model.state_dict()):
        noise = torch.rand(tensor.shape, generator=generator)
        if name.endswith(("cluster_usage", "scale", "norm.weight", "layernorm.weight")):
            tensor.copy_(0.5 + noise)
        elif name.endswith("codebooks_head.weight"):  # [K - 1, in, out]
            tensor.copy_((noise - 0.5) * 4 * tensor.shape[1] ** -0.5)
        elif not name.endswith("initialized"):
            embeds = "embed" in name and not name.endswith("inputs_embeds_projector.weight")
            fan_in = 1 if embeds else tensor[0].numel()
            tensor.copy_((noise - 0.5) * 4 * max(1, fan_in) ** -0.5)
    # transformers 4 ties these two automatically; transformers 5 does not.
    table = model.depth_decoder.model.embed_tokens.weight
    model.backbone_model.embed_tokens.embed_audio_tokens.weight.copy_(table)


def _unique(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Keep each tensor once, because backbone and depth decoder share their audio embedding."""
    seen: set[int] = set()
    for name in sorted(state):
        if state[name].data_ptr() not in seen:
            seen.add(state[name].data_ptr())
            yield name, state[name]


def _tune_loudness(model: Any) -> None:
    """Scale the codec's last layer, so that 16 bits are precise enough and nothing clips."""
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(0, CODES, (40, CODEBOOKS), generator=generator)
    peak = reference_sound(model, codes.tolist()).abs().max()
    last = [m for m in model.codec_model.decoder.modules() if isinstance(m, torch.nn.Conv1d)][-1]
    last.weight.mul_(0.4 / peak)
    last.bias.mul_(0.4 / peak)
