"""Fields that other speech servers know and their clients send along.

Where one of ours means the same, it counts as that; where ignoring one changes neither who speaks
nor what is said, it is ignored and the client is told (`X-Ignored-Fields`).  All others are
refused, and with `--strict-fields` these too.  docs/http-api.md has the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# ruff: noqa: SIM905 - a list of names reads best as words
COMMON = {
    "lang": "language",
    "lang_code": "language",
    "language_code": "language",
    "sampling_rate": "sample_rate",
}
GENERATE = {
    **COMMON,
    "input": "text",
    "stream": "streaming",
    "response_format": "format",
    "output_format": "format",
}
SPEECH = {
    **COMMON,
    "text": "input",
    "streaming": "stream",
    "format": "response_format",
    "output_format": "response_format",
}
START = {**COMMON, "response_format": "format", "output_format": "format"}
"""For each kind of body: their name of a field, and ours."""
IGNORED = frozenset(
    "apply_text_normalization bit_rate bitrate cfg_weight chunk_length download_format emotion"
    " enable_logging exaggeration initial_codec_chunk_frames latency max_new_tokens max_tokens"
    " metadata next_text normalization_options optimize_streaming_latency previous_text"
    " return_download_link safety_identifier similarity_boost stability style task_type user"
    " voice_settings volume volume_multiplier".split()
)
_CODE = re.compile(r"([a-z]+)_(\d{4,6})(?:_\d{1,4})?")  # ElevenLabs: mp3_44100_128
_LANGUAGES = {"a": "en-US", "b": "en-GB"}  # Kokoro's letters


def translated(
    fields: dict[str, Any], names: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """The fields under our names, and which of them were ignored.

    One that is given under our own name too, with another value, stays: it is refused.

    Args:
        fields: as they came.
        names: one of the tables above.
    """
    ours = {name: value for name, value in fields.items() if name not in names}
    ignored = [name for name in fields if name in IGNORED]
    for name in ignored:
        del ours[name]
    for theirs, name in names.items():
        if theirs not in fields:
            continue
        value = fields[theirs]
        if theirs == "output_format" and (code := _CODE.fullmatch(str(value))):
            value = code[1]
            ours.setdefault("sample_rate", int(code[2]))
        if name == "language" and isinstance(value, str):
            value = _LANGUAGES.get(value, value)
        ours[name if ours.get(name, value) == value else theirs] = value
    return ours, ignored
