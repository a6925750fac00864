"""GET /, GET /docs and the files that these two pages load."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Any

import attrs
from litestar import Request, Response, get
from litestar.openapi.spec import OpenAPIMediaType, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import FromPath

from vox_serve.errors import NotFound
from vox_serve.server.access.middleware import OPEN, access
from vox_serve.server.openapi.operation import described

STATIC = Path(__file__).with_name("static")
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; media-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
)
POLICY = _POLICY + (
    "style-src 'self'; img-src 'self'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""The page exchanges data only with this server and cannot turn text into code."""
DOCS_POLICY = _POLICY + "style-src 'self' 'unsafe-inline'; img-src 'self' data:"
"""Swagger UI creates style elements, and has icons in its style sheet."""


@attrs.frozen
class File:
    """A file in the forms in which it is sent."""

    content: bytes
    compressed: bytes
    media_type: str
    tag: str
    """The ETag; weak, because both encodings share it."""

    def answer(self, request: Request[Any, Any, Any], policy: str) -> Response[bytes]:
        """The file, compressed if the client accepts that; 304 if the client already has it."""
        headers = {
            "Cache-Control": "no-cache",  # may be cached, but must be revalidated
            "Content-Security-Policy": policy,
            "ETag": self.tag,
            "Referrer-Policy": "no-referrer",
            "Vary": "Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
        }
        if self.tag in request.headers.get("if-none-match", ""):
            return Response(b"", status_code=304, headers=headers)
        content = self.content
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
            content = self.compressed
        return Response(content, media_type=self.media_type, headers=headers)


def _read(path: Path) -> File:
    content = path.read_bytes()
    tag = f'W/"{hashlib.sha256(content).hexdigest()[:20]}"'
    return File(content, gzip.compress(content, 6, mtime=0), MEDIA_TYPES[path.suffix], tag)


FILES = {path.name: _read(path) for path in sorted(STATIC.iterdir())}
"""All files by name.  Requests cannot reach any others."""


def _content(*suffixes: str) -> dict[str, OpenAPIMediaType]:
    schema = Schema(type=OpenAPIType.STRING)
    media_types = (MEDIA_TYPES[suffix].partition(";")[0] for suffix in suffixes)
    return {media_type: OpenAPIMediaType(schema=schema) for media_type in media_types}


@get(
    "/",
    tags=["server"],
    opt=access(OPEN),
    operation_class=described(403, content=_content(".html")),
)
async def page(request: Request[Any, Any, Any]) -> Response[bytes]:
    """The web page for trying the voices."""
    return FILES["index.html"].answer(request, POLICY)


@get(
    "/docs",
    tags=["server"],
    opt=access(OPEN),
    operation_class=described(403, content=_content(".html")),
)
async def docs(request: Request[Any, Any, Any]) -> Response[bytes]:
    """A page that shows the OpenAPI document and sends requests."""
    return FILES["docs.html"].answer(request, DOCS_POLICY)


@get(
    "/page/{file:str}",
    tags=["server"],
    opt=access(OPEN),
    operation_class=described(403, 404, content=_content(*MEDIA_TYPES)),
)
async def asset(request: Request[Any, Any, Any], file: FromPath[str]) -> Response[bytes]:
    """A file that the web pages load."""
    if file not in FILES:
        raise NotFound(f"no file {file[:128]!r}", "file")
    return FILES[file].answer(request, POLICY)
