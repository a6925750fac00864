"""GET /openapi.json: the API's description for programs."""

from __future__ import annotations

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.openapi.spec import OpenAPIMediaType, Schema
from litestar.openapi.spec.enums import OpenAPIType

from vox_serve.server.access.middleware import OPEN, access
from vox_serve.server.openapi.document import Document
from vox_serve.server.openapi.operation import JSON, described

OBJECT = Schema(type=OpenAPIType.OBJECT)


@get(
    "/openapi.json",
    tags=["server"],
    opt=access(OPEN),
    operation_class=described(403, content={JSON: OpenAPIMediaType(schema=OBJECT)}),
)
async def openapi(document: NamedDependency[Document]) -> Response[bytes]:
    """The OpenAPI document."""
    return Response(document.content, media_type=JSON)
