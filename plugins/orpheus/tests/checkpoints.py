"""Small random Orpheus checkpoints, written by transformers and snac, and their results.

The model is transformers' own and the codec is the package's, so they are the oracle of the tests:
agreeing with them is agreeing with the published implementations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from snac import SNAC
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM

from tests.checkpoint_files import write_json

BYTES, CODES = 256, 16
BEGIN, EOT, CUSTOM = BYTES, BYTES + 1, BYTES + 2
START_SPEECH, END_SPEECH, START_HUMAN, END_HUMAN, START_AI = range(CUSTOM + 1, CUSTOM + 6)
FIRST = CUSTOM + 10
VOCAB = FIRST + 7 * CODES + 2
FRAME = 2048  # samples
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
ROPE: Mapping[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SNAC_CONFIG: Mapping[str, Any] = {
    "sampling_rate": 24000,
    "encoder_dim": 2,
    "encoder_rates": [2, 4, 8, 8],
    "latent_dim": 8,
    "decoder_dim": 32,
    "decoder_rates": [8, 8, 4, 2],
    "attn_window_size": None,
    "codebook_size": CODES,
    "codebook_dim": 4,
    "vq_strides": [4, 2, 1],
    "noise": True,
    "depthwise": True,
}


def write_checkpoint(directory: Path, **changes: Any) -> tuple[Any, Any]:
    """Write model, tokenizer and codec; returns transformers' model and the package's codec."""
    config = LlamaConfig(
        **{
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rope_theta": 500.0,
            "rope_scaling": dict(ROPE),
            "bos_token_id": BEGIN,
            "eos_token_id": EOT,
            "tie_word_embeddings": False,
            "vox_serve_model": "orpheus",
        }
        | changes
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        _randomise(model)
    model.save_pretrained(directory)
    write_tokenizer(directory)
    return model, write_snac(directory / "snac")


def write_tokenizer(directory: Path) -> None:
    """A byte-level tokenizer that itself adds a begin token, like Llama's.

    As in the published tokenizer, the custom tokens are not special tokens.
    """
    alphabet = {letter: number for number, letter in enumerate(byte_letters())}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>"])
    tokenizer.add_tokens([f"<custom_token_{number}>" for number in range(10 + 7 * CODES + 1)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", BEGIN)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(directory / "tokenizer_config.json", {"bos_token": "<|begin_of_text|>"})


def byte_letters() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def text_ids(text: str, voice: str = "tara") -> list[int]:
    """The prompt of the published notebook, with one id per character."""
    letters = [byte_letters().index("Ġ" if c == " " else c) for c in f"{voice}: {text}"]
    return [START_HUMAN, BEGIN, *letters, EOT, END_HUMAN, START_AI, START_SPEECH]


def write_snac(directory: Path) -> Any:
    """Write the codec in our format; returns the package's codec."""
    codec = SNAC(**SNAC_CONFIG).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    for name, tensor in codec.state_dict().items():
        noise = torch.rand(tensor.shape, generator=generator)
        if name.endswith("alpha"):
            tensor.copy_(0.5 + noise)
        elif name.endswith("original0"):  # the gain of a weight norm
            tensor.copy_(0.2 + 0.6 * noise)  # loud, but without magnifying rounding errors
        else:
            tensor.copy_((2 * noise - 1) * (0.3 if name.endswith("bias") else 1.0))
    directory.mkdir()
    save_file(codec.state_dict(), directory / "model.safetensors")
    write_json(directory / "config.json", SNAC_CONFIG)
    return codec


@torch.no_grad()
def reference_tokens(model: Any, ids: Sequence[int], count: int) -> list[int]:
    """The tokens that transformers picks greedily, including the end token."""
    tokens = torch.tensor([ids])
    picked = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=[END_SPEECH],
        pad_token_id=0,
    )
    return picked[0, len(ids) :].tolist()


@torch.no_grad()
def reference_sound(codec: Any, tokens: Sequence[int], frame: int = 0) -> torch.Tensor:
    """Decode windows of 28 tokens with the package; samples 2048:4096 of each, `[T]`.

    The noise is ours: frame f of the utterance has row f of each block's table, after a first row
    that depends on the first frame's tokens.  `frame` is the number of the first frame.
    """
    codes = [token - FIRST - place % 7 * CODES for place, token in enumerate(tokens)]
    codes = [code if 0 <= code < CODES else 0 for code in codes]
    primes = (3, 5, 7, 11, 13, 17, 19)
    known = [t - FIRST if 0 <= t - FIRST < 7 * CODES else 0 for t in tokens[:7]]
    frame += sum(p * code for p, code in zip(primes, known, strict=False))
    generator = torch.Generator().manual_seed(0)
    tables = [torch.randn(256, rate, generator=generator) for rate in (32, 256, 1024, 2048)]
    pieces = [torch.zeros(0)]
    for start in range(0, len(tokens) // 7 * 7 - 27, 7):
        levels: list[list[int]] = [[], [], []]
        for place in range(start, start + 28, 7):
            a, b, c, d, e, f, g = codes[place : place + 7]
            levels[0] += [a]
            levels[1] += [b, e]
            levels[2] += [c, d, f, g]
        first = frame + start // 7
        noise = [
            torch.cat([table[f % 256] for f in range(first, first + 4)])[None, None]
            for table in tables
        ]
        with mock.patch("snac.layers.torch.randn", side_effect=noise):
            pcm = codec.decode([torch.tensor([level]) for level in levels])
        pieces.append(pcm[0, 0, 2048:4096])
    return torch.cat(pieces)


def _randomise(model: Any) -> None:
    """Draw weights with which greedy tokens vary; the usual ones give nearly uniform logits."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in sorted(model.state_dict().items()):
        noise = torch.rand(tensor.shape, generator=generator)
        if name.endswith("norm.weight"):
            tensor.copy_(0.5 + noise)
        else:
            fan_in = 1 if name == EMBEDDING else tensor.shape[1]
            tensor.copy_((noise - 0.5) * 4 * fan_in**-0.5)
    model.lm_head.weight[END_SPEECH] = 0  # never the most likely
