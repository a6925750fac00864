"""A Pocket TTS configuration as typed sizes."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import attrs
import yaml

from vox_serve import CheckpointError
from vox_serve.nn import LlamaConfig, RopeConfig
from vox_serve.sizes import COUNTS, NUMBERS, check_sizes
from vox_serve_pocket_tts.languages import DIFFERENCES, published

MAX_POSITIONS = 1024
"""Room for half a minute of voice, a piece of text and half a minute of speech.  The reference has
no limit, but its training used no more."""
TIMES = {"lsd": 2, "drifting": 0, "pointwise": 0}
"""Kinds of flow head, and the flow times that each takes as input."""
NORM_EPS = 1e-5
_WIDTH, _LAYERS, _FEW = (1, 2**16), (1, 512), (1, 64)
OWN_COUNTS = {
    **dict.fromkeys(
        ("d_model", "dim", "rank", "dimension", "z_dim", "inner_dim", "outer_dim", "attn_dim",
         "input_dimension", "output_dimension", "output_dimensions", "n_filters"),
        _WIDTH,
    ),
    **dict.fromkeys(("num_heads", "num_kv_heads", "num_layers", "depth"), _LAYERS),
    **dict.fromkeys(("n_residual_layers", "dilation_base", "ratios", "channels"), _FEW),
    "dim_feedforward": (1, 2**18),
    "n_bins": (1, 2**22),
    "context": (1, 2**16),
    "model_recommended_frames_after_eos": (0, 1000),
}  # fmt: skip
"""The limits of sizes that only these configurations have; see `vox_serve.sizes`."""
OWN_NUMBERS = {
    "hidden_scale": (0.1, 64.0),
    "max_period": (1.0, 1e12),
    "default_temperature": (0.0, 2.0),
    "default_eos_threshold": (-1e6, 1e6),
}
TABLES = (
    "flow_lm", "flow", "transformer", "lookup_table", "mimi", "quantizer", "seanet",
    "decoder_seanet", "decoder_transformer",
)  # fmt: skip


def read(directory: Path) -> dict[str, Any]:
    """The configuration beside the weights, or the published one for the folder's name.

    Raises:
        CheckpointError: there is none, or the file is not a configuration.
    """
    found = sorted(directory.glob("*.yaml"))
    if len(found) > 1:
        raise CheckpointError(f"{directory}: several *.yaml; leave the one that describes it")
    if found:
        try:
            config = yaml.safe_load(found[0].read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeError) as error:
            line = str(error).partition("\n")[0]
            raise CheckpointError(f"{found[0]}: cannot be read as YAML ({line})") from error
        if not isinstance(config, dict):
            raise CheckpointError(f"{found[0]}: does not hold a configuration")
        check_sizes(found[0], config, {**COUNTS, **OWN_COUNTS}, {**NUMBERS, **OWN_NUMBERS}, TABLES)
        return config
    name = directory.resolve().name
    if name not in DIFFERENCES:
        known = ", ".join(DIFFERENCES)
        raise CheckpointError(
            f"{directory}: no *.yaml describes these weights, and the folder is called none of "
            f"{known}"
        )
    return published(name)


@attrs.frozen
class PocketConfig:
    """Sizes and switches of one checkpoint.

    Args:
        backbone: sizes under their usual names; norms and feed-forward are not Llama's.
        text_width: width of the text table; less than the backbone's if the table is low-rank.
        head_width: width of the input of flow head and end logit; None: the backbone's.
        latent: coordinates of a latent.
        voice: coordinates of an encoded frame of a voice.
        decoder, encoder: sizes by the names of transformers' `MimiConfig`.
        stride: latents per SEANet frame.
    """

    backbone: LlamaConfig
    text_tokens: int
    text_width: int
    low_rank: bool
    head_width: int | None
    flow_kind: str
    flow_width: int
    flow_depth: int
    latent: int
    voice: int
    begins_voice: bool
    decoder: Mapping[str, Any]
    encoder: Mapping[str, Any]
    stride: int
    sample_rate: int
    tokenizer: str
    temperature: float
    end_threshold: float
    frames_after_end: int | None
    pads_short: bool
    drops_semicolons: bool
    ends_sentences: bool
    capitalizes: bool
    replaced: Mapping[str, str]

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> PocketConfig:
        """Raises CheckpointError: a size is missing, or something is not supported."""
        try:
            return cls._from_tree(tree)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the configuration lacks {error}, or it is of the wrong kind"
            ) from error

    @classmethod
    def _from_tree(cls, tree: Mapping[str, Any]) -> PocketConfig:
        lm, mimi = tree["flow_lm"], tree["mimi"]
        table, flow, stack = lm["lookup_table"], lm["flow"], lm["transformer"]
        kind = flow.get("type", "lsd")
        if kind not in TIMES:
            raise CheckpointError(f"flow type {kind!r} is not supported; {', '.join(TIMES)} are")
        width, heads = stack["d_model"], stack["num_heads"]
        if table["dim"] != width:
            raise CheckpointError(f"lookup_table.dim is {table['dim']}, but d_model is {width}")
        encoder = _codec(mimi, mimi["seanet"], mimi["transformer"])
        decoder = _codec(
            mimi,
            mimi.get("decoder_seanet") or mimi["seanet"],
            mimi.get("decoder_transformer") or mimi["transformer"],
        )
        rate, frame_rate = mimi["sample_rate"], mimi["frame_rate"]
        stride = rate / (prod(decoder["upsampling_ratios"]) * frame_rate)
        if stride != int(stride) or encoder["upsampling_ratios"] != decoder["upsampling_ratios"]:
            raise CheckpointError("frame_rate must divide the rates of both SEANets alike")
        quantizer = mimi["quantizer"]
        for name, value in (
            ("quantizer.output_dimension", quantizer["output_dimension"]),
            ("outer_dim", mimi.get("outer_dim") or decoder["hidden_size"]),
        ):
            if value != decoder["hidden_size"]:
                raise CheckpointError(
                    f"mimi.{name} is {value}, but the decoder's width {decoder['hidden_size']}"
                )
        return cls(
            backbone=LlamaConfig(
                num_hidden_layers=stack["num_layers"],
                hidden_size=width,
                intermediate_size=stack.get("dim_feedforward")
                or int(width * stack["hidden_scale"]),
                num_attention_heads=heads,
                num_key_value_heads=stack.get("num_kv_heads") or heads,
                head_dim=(stack.get("attn_dim") or width) // heads,
                rms_norm_eps=NORM_EPS,
                max_position_embeddings=MAX_POSITIONS,
                rope=RopeConfig(float(stack["max_period"])),
            ),
            text_tokens=table["n_bins"],
            text_width=table.get("rank") or width,
            low_rank=table.get("rank") is not None,
            head_width=lm.get("z_dim"),
            flow_kind=kind,
            flow_width=flow["dim"],
            flow_depth=flow["depth"],
            latent=quantizer["dimension"],
            voice=mimi.get("inner_dim") or encoder["hidden_size"],
            begins_voice=lm.get("insert_bos_before_voice", False),
            decoder=decoder,
            encoder=encoder,
            stride=int(stride),
            sample_rate=rate,
            tokenizer=table["tokenizer"],
            temperature=_number(tree, "default_temperature", 0.3),
            end_threshold=_number(tree, "default_eos_threshold", -4.0),
            frames_after_end=tree.get("model_recommended_frames_after_eos"),
            pads_short=tree.get("pad_with_spaces_for_short_inputs", False),
            drops_semicolons=tree.get("remove_semicolons", False),
            ends_sentences=tree.get("append_terminal_punctuation", True),
            capitalizes=tree.get("capitalize_first_letter", True),
            replaced=tree.get("replace_characters") or {},
        )


def _codec(
    mimi: Mapping[str, Any], seanet: Mapping[str, Any], stack: Mapping[str, Any]
) -> dict[str, Any]:
    """One side of the codec, by the names of transformers' `MimiConfig`."""
    size, heads = stack["d_model"], stack["num_heads"]
    if size % (2 * heads):  # position embeddings turn pairs of numbers
        raise CheckpointError(f"mimi's num_heads is {heads}: its double must divide {size}")
    supported = {
        "mimi.channels": (mimi["channels"], 1),
        "seanet.channels": (seanet["channels"], 1),
        "seanet.pad_mode": (seanet["pad_mode"], "constant"),
        "seanet.dimension": (seanet["dimension"], size),
        "transformer.input_dimension": (stack["input_dimension"], size),
        "transformer.output_dimensions": (list(stack["output_dimensions"]), [size]),
    }
    for name, (value, only) in supported.items():
        if value != only:
            raise CheckpointError(f"{name} is {value!r}; only {only!r} is supported")
    return {
        "hidden_size": size,
        "intermediate_size": stack["dim_feedforward"],
        "num_attention_heads": heads,
        "num_hidden_layers": stack["num_layers"],
        "sliding_window": stack["context"],
        "hidden_act": "gelu_pytorch_tanh",
        "norm_eps": NORM_EPS,
        "rope": {"rope_theta": float(stack.get("max_period", 10000.0))},
        "num_filters": seanet["n_filters"],
        "num_residual_layers": seanet["n_residual_layers"],
        "upsampling_ratios": list(seanet["ratios"]),
        "kernel_size": seanet["kernel_size"],
        "last_kernel_size": seanet["last_kernel_size"],
        "residual_kernel_size": seanet["residual_kernel_size"],
        "dilation_growth_rate": seanet["dilation_base"],
        "compress": seanet["compress"],
        "use_conv_shortcut": False,
    }


def _number(tree: Mapping[str, Any], name: str, default: float) -> float:
    value = tree.get(name)
    return default if value is None else float(value)
