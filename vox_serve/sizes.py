"""Limits of the sizes in a checkpoint's configuration, by the names that configurations use.

Every configuration passes this check when it is read, before anything is built from it.  The limits
are far above any known model.  They bound all further work until `WeightLoader.build` compares the
sizes with the weights, and `engine.device` compares them with the free memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from vox_serve.errors import CheckpointError

COUNTS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(
        ("num_hidden_layers", "num_residual_layers", "num_attention_heads", "num_key_value_heads"),
        (1, 512),
    ),
    **dict.fromkeys(("num_codebooks", "num_quantizers", "num_semantic_quantizers"), (1, 256)),
    "head_dim": (2, 1024),
    **dict.fromkeys(
        ("hidden_size", "backbone_hidden_size", "upsample_groups", "encoder_dim", "decoder_dim",
         "latent_dim", "codebook_dim", "vector_quantization_hidden_dimension", "num_filters"),
        (1, 2**16),
    ),
    "intermediate_size": (1, 2**18),
    **dict.fromkeys(("max_position_embeddings", "original_max_position_embeddings"), (1, 2**18)),
    "sliding_window": (1, 2**16),
    **dict.fromkeys(("vocab_size", "text_vocab_size", "codebook_size"), (1, 2**22)),
    **dict.fromkeys(("kernel_size", "last_kernel_size", "residual_kernel_size"), (1, 256)),
    **dict.fromkeys(
        ("dilation_growth_rate", "compress", "upsampling_ratios", "encoder_rates", "decoder_rates"),
        (1, 64),
    ),
    **dict.fromkeys(("sampling_rate", "sample_rate"), (1000, 384_000)),
    **dict.fromkeys(("codebook_eos_token_id", "eos_token_id"), (0, 2**22)),
}  # fmt: skip
"""The minimum and maximum of each whole number, or of each number in a list."""
NUMBERS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("rms_norm_eps", "norm_eps"), (1e-12, 1.0)),
    "rope_theta": (1.0, 1e12),
    **dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor"), (1e-6, 1e6)),
    **dict.fromkeys(("frame_rate", "_frame_rate"), (0.1, 10_000.0)),
}
MOST_ENTRIES = 16
"""Of a list of sizes."""
TABLES = ("rope_scaling", "rope_parameters", "depth_decoder_config", "codec_config")


def check_sizes(
    file: object,
    config: Mapping[str, Any],
    counts: Mapping[str, tuple[int, int]] = COUNTS,
    numbers: Mapping[str, tuple[float, float]] = NUMBERS,
    tables: tuple[str, ...] = TABLES,
) -> None:
    """Check every size in a configuration, at any depth; null stands for a default.

    Args:
        file: named in errors.
        counts, numbers: the limits by name of field, of whole numbers and of any.
        tables: fields that hold further fields.

    Raises:
        CheckpointError: names the file, the field and its limit.
    """
    for place, name, value in _fields(config):
        if value is None:
            continue
        if name in tables and not isinstance(value, Mapping):
            raise CheckpointError(f"{file}: {place} must hold fields, not {_shown(value)}")
        if name in counts:
            least, most = counts[name]
            entries = value if isinstance(value, list) else [value]
            if 0 < len(entries) <= MOST_ENTRIES and all(
                isinstance(n, int) and not isinstance(n, bool) and least <= n <= most
                for n in entries
            ):
                continue
            rule = f"a whole number from {least} to {most}"
        elif name in numbers:
            low, high = numbers[name]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and math.isfinite(value) and low <= value <= high:
                continue
            rule = f"a number from {low:g} to {high:g}"
        else:
            continue
        raise CheckpointError(f"{file}: {place} must be {rule}, not {_shown(value)}")


def _fields(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str, Any]]:
    """Each field with its full and its own name; not recursive, because a file may nest deeply."""
    open_tables = [(above, tree)]
    while open_tables:
        prefix, table = open_tables.pop()
        for name, value in table.items():
            yield f"{prefix}{name}", name, value
            if isinstance(value, Mapping):
                open_tables.append((f"{prefix}{name}.", value))


def _shown(value: object) -> str:
    if isinstance(value, int) and abs(value) > 10**18:
        return "a number of more than 18 digits"  # int to text is quadratic, and limited
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
