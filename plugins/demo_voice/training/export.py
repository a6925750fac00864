"""Stage 4: exports the trained parts to a checkpoint directory in transformers layout.

Everything is bfloat16, except the waveform decoder.  The result is in `checkpoint/` of the work
folder, and is loaded once as a test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from plugins.demo_voice.training.codec_model import CodecModel
from plugins.demo_voice.training.csm_json import csm_json
from plugins.demo_voice.training.lm import Learner
from plugins.demo_voice.training.run import Run, begin, load, parser
from plugins.demo_voice.training.tokenizer import BEGIN, PAD, tokenizer_config, tokenizer_json
from vox_serve import LoadOptions
from vox_serve.nn import llama_sources
from vox_serve_csm.checkpoint import CODEC_PREFIX, load_model

LARGEST_MB = 30
AUDIO_EMBEDDING = "depth_decoder.model.embed_tokens.weight"
DEPTH_HEADS = "depth_decoder.codebooks_head.weight"


def language_tensors(learner: Learner) -> dict[str, torch.Tensor]:
    """The network's weights under transformers' names; fused matrices are taken apart.

    All but `DEPTH_HEADS` are views of the parameters.
    """
    net, sizes = learner.network, learner.csm
    ours: dict[str, torch.Tensor] = dict(net.named_parameters())
    heads = [ours[f"depth_heads.{n}.weight"].t() for n in range(len(net.depth_heads))]
    named = {
        "embed_text_tokens.weight": ours["text_embedding.weight"],
        AUDIO_EMBEDDING: ours["audio_embedding.weight"],
        "lm_head.weight": ours["head.weight"],
        "depth_decoder.model.inputs_embeds_projector.weight": ours["projector.weight"],
        DEPTH_HEADS: torch.stack(heads),
    }
    stacks = (
        ("backbone.", "backbone_model.", sizes.backbone),
        ("depth.", "depth_decoder.model.", sizes.depth),
    )
    for prefix, theirs, stack in stacks:
        heads, kv = stack.num_attention_heads, stack.num_key_value_heads
        rows = [count * stack.head_dim for count in (heads, kv, kv)]
        for name, sources in llama_sources(theirs, stack.num_hidden_layers).items():
            tensor = ours[prefix + name]
            even = [len(tensor) // len(sources)] * len(sources)
            parts = torch.split(tensor, rows if len(sources) == 3 else even)
            named |= dict(zip(sources, parts, strict=True))
    return named


def codec_tensors(model: CodecModel) -> dict[str, torch.Tensor]:
    model.write_back()
    state: Mapping[str, torch.Tensor] = model.mimi.state_dict()
    return {CODEC_PREFIX + name: tensor for name, tensor in state.items()}


def _dtype(name: str) -> torch.dtype:
    """The waveform decoder stays in float32; its rounding is audible as a tone in pauses."""
    exact = ("upsample.", "decoder_transformer.", "decoder.")
    return (
        torch.float32 if name.startswith(tuple(CODEC_PREFIX + e for e in exact)) else torch.bfloat16
    )


def megabytes(tensors: Mapping[str, torch.Tensor]) -> float:
    """Bytes of the tensors as they are shipped."""
    return sum(t.numel() * _dtype(name).itemsize for name, t in tensors.items()) / 1e6


def shipped_language(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint other than the codec's."""
    tensors = load_file(checkpoint / "model.safetensors")
    return {name: t for name, t in tensors.items() if not name.startswith(CODEC_PREFIX)}


def write(
    directory: Path, run: Run, language: Mapping[str, torch.Tensor], codec: CodecModel
) -> None:
    tensors = {**language, **codec_tensors(codec)}
    directory.mkdir(parents=True, exist_ok=True)
    whole = {n: t.detach().cpu().to(_dtype(n)).contiguous() for n, t in tensors.items()}
    # Tensors cut from one matrix share its storage, which safetensors refuses.
    save_file(
        {n: t.clone() for n, t in whole.items()}, directory / "model.safetensors", {"format": "pt"}
    )
    generation = {
        "bos_token_id": BEGIN,
        "pad_token_id": PAD,
        "do_sample": False,
        "max_length": 2048,
        "use_cache": True,
        "depth_decoder_do_sample": False,
        "depth_decoder_min_new_tokens": run.recipe.codec.num_codebooks - 1,
        "depth_decoder_max_new_tokens": run.recipe.codec.num_codebooks - 1,
        "depth_decoder_use_cache": True,
    }
    files: dict[str, Mapping[str, Any]] = {
        "config.json": csm_json(run.recipe),
        "generation_config.json": generation,
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": tokenizer_config(),
    }
    for name, contents in files.items():
        (directory / name).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")


def export(run: Run, kept: Path | None = None) -> Path:
    """Args: kept: a checkpoint whose language model is used instead of a trained one."""
    codec = CodecModel(run.recipe.codec)
    waves, trained = load(run.path("codec", "decoder.pt")), load(run.path("lm", "lm.pt"))
    if not waves or not (trained or kept):
        raise SystemExit("train the codec's decoder and the language model first")
    codec.load_state_dict(waves["model"])
    if kept:
        language, steps = shipped_language(kept), f"the language model of {kept}"
    else:
        assert trained
        learner = Learner(run.recipe)
        learner.load_state_dict(trained["learner"])
        language, steps = language_tensors(learner), f"{trained['step']} of the language model"
    directory = run.path("checkpoint")
    write(directory, run, language, codec)
    size = (directory / "model.safetensors").stat().st_size / 1e6
    load_model(LoadOptions(directory, "cpu", "float32"))
    print(f"{directory}: {size:.1f} MB, {waves['step']} steps of the decoder, {steps}; it loads")
    if size > LARGEST_MB:
        raise SystemExit(f"that is more than the {LARGEST_MB} MB that may be shipped")
    return directory


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument("--keep-language", type=Path, help="a checkpoint to take its part from")
    options = flags.parse_args()
    export(begin(options), options.keep_language)
