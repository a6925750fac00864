"""Small random Qwen3-TTS checkpoints in the layout of Qwen's repositories.

The weights depend only on the names of the tensors, so the golden files, which contain the results
of the package `qwen-tts` for the same checkpoints, can be compared on any machine.
`make_golden.py` lists the names and shapes from the package.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoint_files import read_json, write_json

GOLDEN = Path(__file__).parent / "golden"
KINDS = ("custom_voice", "voice_design", "base")
BOOKS, CODES, WIDTH = 4, 64, 32
END = CODES + 10
FRAME = 1920
SPECIALS = ("<|im_start|>", "<|im_end|>", "<tts_pad>", "<tts_bos>", "<tts_eos>")
MERGES = (
    "h e",
    "l l",
    "he ll",
    "Ġ t",
    "Ġt he",
    "a s",
    "s i",
    "as si",
    "t a",
    "n t",
    "ta nt",
    "s tant",
    "assi stant",
)
"""Of the tokenizer."""


def model_config(kind: str, **changes: Any) -> dict[str, Any]:
    """A `config.json`; `changes` replace values of `talker_config`."""
    ids = tokenizer_ids()
    attention = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    depth = {
        "vocab_size": CODES,
        "hidden_size": 24 if kind == "base" else WIDTH,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_code_groups": BOOKS,
        "rope_theta": 50.0,
        **attention,
    }
    talker = {
        "vocab_size": CODES + 1024,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_code_groups": BOOKS,
        "text_vocab_size": len(ids) + 3,
        "text_hidden_size": 40,
        "rope_theta": 500.0,
        "rope_scaling": {"rope_type": "default", "interleaved": True, "mrope_section": [4, 2, 2]},
        "code_predictor_config": depth,
        "codec_eos_token_id": END,
        "codec_bos_id": CODES + 11,
        "codec_pad_id": CODES + 12,
        "codec_think_id": CODES + 13,
        "codec_nothink_id": CODES + 14,
        "codec_think_bos_id": CODES + 15,
        "codec_think_eos_id": CODES + 16,
        "codec_language_id": {"english": CODES + 20, "chinese": CODES + 21, "german": CODES + 22},
        **attention,
    }
    if kind == "custom_voice":
        talker["codec_language_id"]["beijing_dialect"] = CODES + 23
        talker["spk_id"] = {"vivian": CODES + 30, "dylan": CODES + 31}
        talker["spk_is_dialect"] = {"vivian": False, "dylan": "beijing_dialect"}
    else:
        talker |= {"spk_id": {}, "spk_is_dialect": {}}
    config = {
        "model_type": "qwen3_tts",
        "architectures": ["Qwen3TTSForConditionalGeneration"],
        "tokenizer_type": "qwen3_tts_tokenizer_12hz",
        "tts_model_size": "1b7",
        "tts_model_type": kind,
        "talker_config": talker | changes,
        "im_start_token_id": ids["<|im_start|>"],
        "im_end_token_id": ids["<|im_end|>"],
        "tts_pad_token_id": ids["<tts_pad>"],
        "tts_bos_token_id": ids["<tts_bos>"],
        "tts_eos_token_id": ids["<tts_eos>"],
    }
    if kind == "base":
        config["speaker_encoder_config"] = {
            "enc_dim": WIDTH,
            "enc_channels": [16, 16, 16, 32],
            "enc_kernel_sizes": [5, 3, 3, 1],
            "enc_dilations": [1, 2, 3, 1],
            "enc_attention_channels": 8,
            "enc_res2net_scale": 4,
            "enc_se_channels": 8,
        }
    return config


def codec_config() -> dict[str, Any]:
    """A `speech_tokenizer/config.json`."""
    encoder = {
        "num_filters": 4,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "num_quantizers": BOOKS + 2,
        "codebook_size": CODES,
        "codebook_dim": 16,
        "vector_quantization_hidden_dimension": 16,
        "upsample_groups": 32,
        "sliding_window": 250,
    }
    decoder = {
        "codebook_size": CODES,
        "codebook_dim": 16,
        "latent_dim": 16,
        "hidden_size": 12,
        "intermediate_size": 20,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_hidden_layers": 2,
        "num_quantizers": BOOKS,
        "sliding_window": 6,
        "decoder_dim": 32,
        "upsample_rates": [8, 5, 4, 3],
        "upsampling_ratios": [2, 2],
    }
    return {
        "model_type": "qwen3_tts_tokenizer_12hz",
        "architectures": ["Qwen3TTSTokenizerV2Model"],
        "encoder_config": encoder,
        "decoder_config": decoder,
        "encoder_valid_num_quantizers": BOOKS,
        "input_sample_rate": 24000,
        "output_sample_rate": 24000,
        "decode_upsample_rate": FRAME,
        "encode_downsample_rate": FRAME,
    }


def write_checkpoint(directory: Path, kind: str, **changes: Any) -> Path:
    """Write a checkpoint of this kind; `changes` replace values of `talker_config`."""
    codec = directory / "speech_tokenizer"
    codec.mkdir(parents=True)
    write_settings(directory, model_config(kind, **changes))
    shapes = read_json(GOLDEN / "shapes.json")
    save_file(random_tensors(shapes[kind]), directory / "model.safetensors")
    save_file(random_tensors(shapes["codec"]), codec / "model.safetensors")
    return directory


def write_settings(directory: Path, config: Mapping[str, Any]) -> None:
    """Write everything but the weights."""
    write_json(directory / "config.json", config)
    sampling = {"do_sample": True, "temperature": 0.9, "top_k": 50, "repetition_penalty": 1.05}
    others = {"subtalker_dosample": True, "subtalker_temperature": 0.9, "subtalker_top_k": 50}
    write_json(directory / "generation_config.json", sampling | others)
    write_tokenizer(directory)
    codec = directory / "speech_tokenizer"
    codec.mkdir(exist_ok=True)
    write_json(codec / "config.json", codec_config())
    features = {
        "feature_extractor_type": "EncodecFeatureExtractor",
        "feature_size": 1,
        "sampling_rate": 24000,
        "padding_value": 0.0,
        "padding_side": "right",
        "return_attention_mask": True,
    }
    write_json(codec / "preprocessor_config.json", features)


def bytes_as_letters() -> list[str]:
    """The letter for each byte in byte-level tokenizers, as in GPT-2."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain}
    letters |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


def tokenizer_ids() -> dict[str, int]:
    tokens = [*bytes_as_letters(), *(merge.replace(" ", "") for merge in MERGES), *SPECIALS]
    return {token: number for number, token in enumerate(tokens)}


def write_tokenizer(directory: Path) -> None:
    """Write `vocab.json` and `merges.txt`, as in Qwen's repositories."""
    ids = tokenizer_ids()
    vocab = {token: number for token, number in ids.items() if token not in SPECIALS}
    write_json(directory / "vocab.json", vocab)
    text = "\n".join(["#version: 0.2", *MERGES]) + "\n"
    (directory / "merges.txt").write_text(text, encoding="utf-8")
    added = {
        str(ids[token]): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in SPECIALS
    }
    write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "unk_token": None},
    )


def random_tensors(shapes: Mapping[str, Iterable[int]]) -> dict[str, torch.Tensor]:
    """Weights with which greedy codes vary, from numpy's old generator, which never changes."""
    tensors = {}
    for name, shape in shapes.items():
        size = tuple(shape)
        random = np.random.RandomState(zlib.crc32(name.encode()))
        noise = torch.from_numpy(random.random_sample(size).astype(np.float32))
        if name.endswith(("alpha", "beta")):
            noise = noise - 0.5
        elif name.endswith("initialized"):
            noise = torch.ones(size)
        elif name.endswith(("cluster_usage", "scale", "gamma")) or (
            "norm" in name and name.endswith(".weight")
        ):
            noise = 0.5 + noise
            if "q_norm" in name:
                noise = 3 * noise  # attention focuses on few positions, so that each row matters
        else:
            table = "embedding" in name or "embed_sum" in name
            fan_in = 1 if table or len(size) < 2 else noise[0].numel()
            noise = (noise - 0.5) * 4 * max(1, fan_in) ** -0.5
            if name.startswith("decoder.") and name.endswith(("conv.weight", "conv.bias")):
                noise = noise * 0.6  # otherwise the sound clips
        if name == "talker.codec_head.weight":
            noise[END] *= 0.8  # otherwise all utterances are short
        tensors[name] = noise
    return tensors


def clip(num_frames: float, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A rising tone with some noise, float32 `[T]`."""
    random = np.random.RandomState(seed)
    time = np.arange(int(num_frames * FRAME)) / 24000
    tone = np.sin(1200 * (1 + seed) * time + 20000 * time**2)
    noise = random.random_sample(len(time)) - 0.5
    sound: np.ndarray[Any, np.dtype[np.float32]] = (0.4 * tone + 0.1 * noise).astype(np.float32)
    return sound


def golden_sound() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "sound.safetensors")
