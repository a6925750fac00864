"""Bounds of request fields, each defined once.

msgspec enforces them, `rule` describes them in words, and the OpenAPI document shows them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from msgspec.inspect import CollectionType, Metadata, StructType, Type, UnionType, type_info

from vox_serve.sampling import RANGES

CONVERSATION = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
CONVERSATION_RULE = "1 to 128 letters, digits, '_', '-', '.' or ':'"
Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1, extra={"rule": "from -2^63 to 2^63 - 1"})]
"""JSON does not limit integers, and one of 400 digits would overflow a float."""
NOT_BLANK = r"[^\s\x1c-\x1f\x85]"
"""A character that `str.strip` would keep.  Written out because JavaScript's `\\s` matches fewer
characters than Python's."""


def sampling(name: str) -> Meta:
    """Bounds of a sampling parameter."""
    allowed = RANGES[name]
    low, high = allowed.kind(allowed.low), allowed.kind(allowed.high)
    return Meta(ge=low, le=high, description=allowed.text, extra={"rule": allowed.limits})


def words(limit: int, description: str) -> Meta:
    """Bounds of a text that must not be blank; `limit` is in characters."""
    rule = f"1 to {limit} characters, not only spaces"
    return Meta(
        min_length=1,
        max_length=limit,
        pattern=NOT_BLANK,
        description=description,
        extra={"rule": rule},
    )


def one_of(names: Collection[str], description: str) -> Meta:
    """How the OpenAPI document shows a choice; the value is checked elsewhere."""
    return Meta(description=description, extra_json_schema={"enum": list(names)})


def rule(kind: type[msgspec.Struct], path: str) -> str | None:
    """The bounds, in words, of the field at `path` (e.g. `context[0].text`), if it has any."""
    node: Type = type_info(kind)
    for name in re.sub(r"\[[^]]*\]", "", path).split("."):
        structs = (inner for inner in _within(node) if isinstance(inner, StructType))
        found = (field for struct in structs for field in struct.fields)
        field = next((field for field in found if field.encode_name == name), None)
        if field is None:
            return None
        node = field.type
    extras: Iterator[dict[Any, Any]] = (
        inner.extra for inner in _within(node) if isinstance(inner, Metadata) and inner.extra
    )
    return next((str(extra["rule"]) for extra in extras if "rule" in extra), None)


def _within(node: Type) -> Iterator[Type]:
    """A type and the types inside it."""
    yield node
    if isinstance(node, Metadata):
        yield from _within(node.type)
    elif isinstance(node, UnionType):
        for each in node.types:
            yield from _within(each)
    elif isinstance(node, CollectionType):
        yield from _within(node.item_type)
