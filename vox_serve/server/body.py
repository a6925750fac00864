"""Decodes a request's body into a struct; errors name the invalid field."""

from __future__ import annotations

import asyncio
import codecs
import re
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

import msgspec
from litestar import Request
from litestar.datastructures import UploadFile
from litestar.exceptions import HTTPException, InternalServerException

from vox_serve.errors import InvalidRequest
from vox_serve.server.access.bodies import check
from vox_serve.server.errors import BodyTooSlow, ClientGone
from vox_serve.server.fields import rule
from vox_serve.server.foreign import translated

MULTIPART = "multipart/form-data"
JSON_FIELDS = {"context", "parameters", "pronunciations"}
"""Forms cannot express lists and objects, so these fields are sent as JSON."""
S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")
CHARSET = re.compile(r"charset\s*=\s*[\"']?([^\s;\"']+)", re.IGNORECASE)
CHARSETS = frozenset(
    "ascii utf-8 utf-8-sig utf-16 utf-16-le utf-16-be utf-32 iso8859-1 iso8859-2 iso8859-15"
    " cp1250 cp1251 cp1252 koi8-r gbk gb18030 big5 shift_jis euc_jp euc_kr".split()
)
"""Python's names.  Some of its codecs are excluded: they expand data or take quadratic time."""
ESCAPES = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair
    rb"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.",
    re.DOTALL,
)
# ruff: noqa: SIM905 - a list of names reads best as plain text
BOUND = re.compile(r"Expected `[^`]*` ([<>]=? |of length |matching )|Number out of range")
"""How msgspec's messages begin when a value has the right type but is out of bounds."""
UNREADABLE = "Number out of range"
"""How they begin for a number that a 64-bit float cannot hold (`1e400`)."""


class OutOfBounds(InvalidRequest):
    """A field's value has the right type but is not allowed."""


async def read_body(
    request: Request[Any, Any, Any],
    kind: type[S],
    timeout: float,
    form: bool = False,
    foreign: Mapping[str, str] | None = None,
) -> S:
    """Decode the body.  Ignored fields are listed in `scope["state"]["ignored"]`.

    Args:
        timeout: seconds within which the body must arrive.
        form: also accept a multipart form with the same fields.
        foreign: other servers' field names, as in `foreign.py`; None refuses them.

    Raises:
        InvalidRequest: the body is malformed; names the field.
        BodyTooSlow: it did not arrive in time.
        HTTPException: it is too large.
        TooMany: there is no memory for it now.
        ClientGone: the client left before the whole body had arrived.
    """
    kind_of_body = request.headers.get("content-type", "")
    try:
        if form and kind_of_body.lower().startswith(MULTIPART):
            return convert(request, await _form(request, timeout), kind, foreign)
        content = as_utf8(await _in_time(request, _joined(request), timeout), kind_of_body)
        read, ignored = decode(content, msgspec.json.Decoder(kind), foreign)
        request.scope["state"]["ignored"] = ignored
        return read
    except msgspec.DecodeError as error:
        raise invalid(error, kind) from error
    except InternalServerException:  # Litestar raises this when the client has left
        raise ClientGone from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except (UnicodeError, LookupError) as error:
        raise InvalidRequest(f"the body's text encoding is wrong ({error})") from error


def read_query(
    request: Request[Any, Any, Any],
    kind: type[S],
    defaults: Mapping[str, str],
    foreign: Mapping[str, str] | None,
) -> S:
    """Decode the query string, which has the same fields as a form.

    Raises:
        InvalidRequest: the query is malformed; names the field.
    """
    fields: dict[str, Any] = dict(defaults)
    for name, value in request.query_params.multi_items():
        if name in request.query_params and len(request.query_params.getall(name)) > 1:
            raise InvalidRequest(f"{name} is given more than once", name)
        fields[name] = value
    try:
        return convert(request, _with_json(fields), kind, foreign)
    except msgspec.ValidationError as error:
        raise invalid(error, kind, form=True) from error


def convert(
    request: Request[Any, Any, Any],
    fields: dict[str, Any],
    kind: type[S],
    foreign: Mapping[str, str] | None,
) -> S:
    """Convert the text fields of a form or query to a struct.

    Raises:
        msgspec.ValidationError: a field is invalid.
    """
    ignored: list[str] = []
    if foreign is not None:
        fields, ignored = translated(fields, foreign)
    request.scope["state"]["ignored"] = ignored
    return msgspec.convert(fields, kind, strict=False)


def decode(
    content: bytes,
    decoder: msgspec.json.Decoder[T],
    foreign: Mapping[str, str] | None,
) -> tuple[T, list[str]]:
    """Decode JSON; also returns the names of the ignored fields.

    Args:
        foreign: as for `read_body`.

    Raises:
        msgspec.DecodeError: the content is not JSON, or a field is invalid.
    """
    content = without_half_pairs(content)
    try:
        return decoder.decode(content), []
    except msgspec.ValidationError as error:
        if foreign is None or "unknown field" not in str(error):
            raise
        try:
            fields, ignored = translated(msgspec.json.decode(content), foreign)
        except (msgspec.DecodeError, RecursionError, AttributeError):
            raise error from None  # the unknown field is not the only error
        return msgspec.convert(fields, decoder.type), ignored


def as_utf8(content: bytes, content_type: str) -> bytes:
    """Convert text from the encoding that the client declares to UTF-8 without a byte order mark.

    Raises:
        InvalidRequest: the encoding is not supported, or the bytes are not valid in it.
    """
    declared = CHARSET.search(content_type)
    name = declared[1].lower() if declared else "utf-8"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and not declared:
        name = "utf-16"
    try:
        encoding = codecs.lookup(name).name
    except LookupError:
        encoding = ""
    if encoding not in CHARSETS:
        raise InvalidRequest(f"the body's charset {name[:40]!r} is not supported; send UTF-8")
    if encoding in ("utf-8", "ascii"):
        return content.removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode(encoding).removeprefix("\ufeff").encode()
    except UnicodeError as error:
        raise InvalidRequest(
            f"the body is not {encoding}, the declared encoding ({error})"
        ) from error


def without_half_pairs(content: bytes) -> bytes:
    r"""Replace lone surrogates (`\ud83d`) in JSON with U+FFFD.

    JavaScript programs that cut text produce them.  JSON allows them, UTF-8 does not.
    """
    if b"\\ud" not in content and b"\\uD" not in content:
        return content
    return ESCAPES.sub(lambda match: b"\\ufffd" if match[1] else match[0], content)


async def read_form(request: Request[Any, Any, Any], timeout: float) -> dict[str, str | UploadFile]:
    """The fields and files of a multipart form; the caller closes the files.

    Raises:
        InvalidRequest, BodyTooSlow, HTTPException, TooMany, ClientGone: as `read_body`.
    """
    try:
        form = await _in_time(request, request.form(), timeout)
    except InternalServerException:
        raise ClientGone from None
    except HTTPException as error:
        if error.status_code != 400:
            raise
        raise InvalidRequest(f"the multipart body cannot be read: {error.detail}") from error
    except ValueError as error:
        raise InvalidRequest(f"the multipart body cannot be read: {error}") from error
    except LookupError as error:
        raise InvalidRequest(f"the body's text encoding is wrong ({error})") from error
    fields: dict[str, str | UploadFile] = {}
    for name, value in form.multi_items():
        if name in fields:
            raise InvalidRequest(f"{name} is given more than once", name)
        fields[name] = value
    return fields


def refuse_files(form: Mapping[str, str | UploadFile], *allowed: str) -> None:
    """Raise InvalidRequest if a field is a file, except those allowed."""
    for name, value in form.items():
        if name not in allowed and not isinstance(value, str):
            raise InvalidRequest(f"{name} must be a plain form field, not a file", name)


async def _joined(request: Request[Any, Any, Any]) -> bytes:
    """The body.  Unlike `Request.body`, this keeps no copy while the request is open."""
    return b"".join([piece async for piece in request.stream()])


async def _in_time(request: Request[Any, Any, Any], reading: Awaitable[T], seconds: float) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await reading
    except TimeoutError:
        raise BodyTooSlow(f"the body did not arrive within {seconds:g} seconds") from None
    finally:
        check(request.scope)


async def _form(request: Request[Any, Any, Any], timeout: float) -> dict[str, Any]:
    form = await read_form(request, timeout)
    refuse_files(form)
    return _with_json({**form})


def _with_json(fields: dict[str, Any]) -> dict[str, Any]:
    """Decode the form fields that are sent as JSON."""
    for name in JSON_FIELDS & fields.keys():
        try:
            fields[name] = msgspec.json.decode(str(fields[name]))
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"{name} cannot be read as JSON: {error}", name) from error
    return fields


def invalid(
    error: msgspec.DecodeError, kind: type[msgspec.Struct], form: bool = False
) -> InvalidRequest:
    """Convert a msgspec error to one that names the field of `kind`.

    msgspec's message has the field as a path at the end, or in backquotes.
    """
    message = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return InvalidRequest(f"the body is not JSON: {message}")
    text, _, path = message.partition(" - at `")
    field = re.match(r"\$\.?(\w+)", path) or re.search(r"field `([^`]*)`", text)
    where = path.rstrip("`").removeprefix("$.")
    name = field[1] if field else None
    limits = rule(kind, where) if where else None
    if text.startswith(UNREADABLE):
        limits = f"{limits or 'a number'}; the number sent is too large to be read"
    if BOUND.match(text) or (form and limits):  # in a form, every value is text
        return OutOfBounds(f"{where} must be {limits}" if limits else f"{where}: {text}", name)
    return InvalidRequest(f"{where}: {text}" if where else text, name)
