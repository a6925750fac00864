"""Fixes what schemathesis cannot generate: audio, and limits of the loaded model.

Requests that violate the document are left unchanged.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import schemathesis

from vox_serve.server.routes.voices import clip

MAX_SECONDS = 10.0
"""The tone can speak this long; the document states this limit only in words."""
SOUND = base64.b64encode(clip().encode()).decode()


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: Any) -> None:
    """Turn a valid request into one that this server can serve."""
    body = case.body
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    for fields in (case.query, body):
        at_a_common_rate(fields)
    if not isinstance(body, dict):
        return
    for name in ("audio", "audio_sample"):
        if name in body:
            body[name] = clip()
    if isinstance(body.get("context"), list):
        for turn in body["context"]:
            turn["audio"] = SOUND
            without_point(turn)
    elif "context" in body and case.media_type == "multipart/form-data":
        body["context"] = json.dumps([{"speaker": 0, "text": "before", "audio": SOUND}])
    if "pronunciations" in body and case.media_type == "multipart/form-data":
        body["pronunciations"] = json.dumps({"nginx": "engine x"})
    if "parameters" in body and case.media_type == "multipart/form-data":
        body["parameters"] = "{}"
    without_point(body)
    if body.get("max_seconds"):
        body["max_seconds"] = min(body["max_seconds"], MAX_SECONDS)
    if "input" in body and len(body["input"]) % 2:  # otherwise nearly all have an unknown model
        body |= {"model": "tone", "voice": "alloy"}


def at_a_common_rate(fields: Any) -> None:
    """Formats have different rates, as the document says in words; all have this one."""
    if isinstance(fields, dict) and fields.get("sample_rate") not in (None, "null", ""):
        fields["sample_rate"] = 8000


def without_point(fields: dict[str, Any]) -> None:
    """JSON Schema counts 1.0 as an integer; this server, as its document says, only 1."""
    for name, value in fields.items():
        if isinstance(value, float) and value.is_integer():
            fields[name] = int(value)
