"""Fields of other speech servers, which their clients may send.

A field that means the same as one of ours is translated.  A field that affects neither the voice
nor the words is ignored and reported to the client (`X-Ignored-Fields`).  All other unknown fields
are refused; `--strict-fields` refuses these as well.  docs/http-api.md has the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# ruff: noqa: SIM905 - a list of names reads best as plain text
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
"""`GENERATE`, `SPEECH` and `START` map their field names to ours, for each kind of body."""
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
    """The fields under our names, and the names of the ignored ones.

    A field that is also given under our name, with a different value, keeps its name, so it is
    refused later.

    Args:
        fields: the fields as received.
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
