"""Decodes a request's body into its struct; errors name the field at fault."""

from __future__ import annotations

import asyncio
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

MULTIPART = "multipart/form-data"
JSON_FIELDS = {"context", "parameters", "pronunciations"}
"""A form has no notation for lists and objects, so they are sent as JSON."""
S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")
BOUND = re.compile(r"Expected `[^`]*` ([<>]=? |of length |matching )|Number out of range")
"""How msgspec's messages begin when a value has the right type but is out of bounds."""


class OutOfBounds(InvalidRequest):
    """A field's value has the right type but is not allowed."""


async def read_body(
    request: Request[Any, Any, Any], kind: type[S], timeout: float, form: bool = False
) -> S:
    """Decode the body.

    Args:
        timeout: seconds within which the body must arrive.
        form: also accept a multipart form with the same fields.

    Raises:
        InvalidRequest: it is malformed; names the field.
        BodyTooSlow: it did not arrive in time.
        HTTPException: it is too large.
        TooMany: there is no memory for it now.
        ClientGone: the client left before all of it had arrived.
    """
    try:
        if form and request.headers.get("content-type", "").lower().startswith(MULTIPART):
            return msgspec.convert(await _form(request, timeout), kind, strict=False)
        return msgspec.json.decode(await _in_time(request, _joined(request), timeout), type=kind)
    except msgspec.DecodeError as error:
        raise invalid(error, kind) from error
    except InternalServerException:  # Litestar raises this when the client has left
        raise ClientGone from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except (UnicodeError, LookupError) as error:
        raise InvalidRequest(f"the body's text encoding is wrong ({error})") from error


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
    """The body; unlike `Request.body`, keeps no copy for as long as the request is open."""
    return b"".join([piece async for piece in request.stream()])


async def _in_time(request: Request[Any, Any, Any], reading: Awaitable[T], seconds: float) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await reading
    except TimeoutError:
        raise BodyTooSlow(f"the body did not arrive within {seconds:g} seconds") from None
    finally:
        check(request.scope)


async def _form(request: Request[Any, Any, Any], timeout: float) -> dict[str, object]:
    form = await read_form(request, timeout)
    refuse_files(form)
    fields: dict[str, object] = {**form}
    for name in JSON_FIELDS & fields.keys():
        try:
            fields[name] = msgspec.json.decode(str(fields[name]))
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"{name} is not JSON: {error}", name) from error
    return fields


def invalid(
    error: msgspec.DecodeError, kind: type[msgspec.Struct], form: bool = False
) -> InvalidRequest:
    """Convert a msgspec error to one that names the field of `kind`.

    msgspec's message has the field as a path at its end, or in backquotes.
    """
    message = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return InvalidRequest(f"the body is not JSON: {message}")
    text, _, path = message.partition(" - at `")
    field = re.match(r"\$\.?(\w+)", path) or re.search(r"field `([^`]*)`", text)
    where = path.rstrip("`").removeprefix("$.")
    name = field[1] if field else None
    limits = rule(kind, where) if where else None
    if BOUND.match(text) or (form and limits):  # in a form, every value is text
        return OutOfBounds(f"{where} must be {limits}" if limits else f"{where}: {text}", name)
    return InvalidRequest(f"{where}: {text}" if where else text, name)
