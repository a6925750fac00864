"""GET /openapi.json and GET /docs: the routes, for programs and for people."""

from __future__ import annotations

from pathlib import Path

from litestar import Response, get
from litestar.datastructures import State

PAGE = Path(__file__).with_name("docs.html").read_bytes()
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; media-src blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""The page loads nothing from elsewhere, and tells nobody else anything."""


@get("/openapi.json")
async def openapi(state: State) -> Response[bytes]:
    """The OpenAPI document."""
    return Response(state.openapi, media_type="application/json")


@get("/docs")
async def page() -> Response[bytes]:
    """A page that shows the OpenAPI document and sends requests."""
    headers = {"Content-Security-Policy": POLICY}
    return Response(PAGE, media_type="text/html", headers=headers)
