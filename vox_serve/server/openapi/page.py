"""GET /openapi.json and GET /docs: the API described for programs and for people."""

from __future__ import annotations

from pathlib import Path

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.openapi.spec import OpenAPIMediaType, Schema
from litestar.openapi.spec.enums import OpenAPIType

from vox_serve.server.access.middleware import OPEN, access
from vox_serve.server.openapi.document import Document
from vox_serve.server.openapi.operation import JSON, described

OBJECT, STRING = Schema(type=OpenAPIType.OBJECT), Schema(type=OpenAPIType.STRING)
PAGE = Path(__file__).with_name("docs.html").read_bytes()
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; media-src blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""The page loads nothing from elsewhere and sends nothing elsewhere."""


@get(
    "/openapi.json",
    tags=["server"],
    opt=access(OPEN),
    operation_class=described(403, content={JSON: OpenAPIMediaType(schema=OBJECT)}),
)
async def openapi(document: NamedDependency[Document]) -> Response[bytes]:
    """The OpenAPI document."""
    return Response(document.content, media_type=JSON)


@get(
    "/docs",
    tags=["server"],
    opt=access(OPEN),
    operation_class=described(403, content={"text/html": OpenAPIMediaType(schema=STRING)}),
)
async def page() -> Response[bytes]:
    """A page that shows the OpenAPI document and sends requests."""
    headers = {"Content-Security-Policy": POLICY}
    return Response(PAGE, media_type="text/html", headers=headers)
