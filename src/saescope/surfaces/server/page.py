"""The page: built files of `surfaces/page`, which ask this server and no other."""

from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response

BUILT = Path(__file__).parents[1] / "page" / "built"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
# Nothing is fetched from elsewhere, and no other site may show the page in a frame.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def page_router() -> APIRouter:
    """Return the routes of the page's files; they are no part of the API."""
    router = APIRouter(include_in_schema=False)
    for file in sorted(BUILT.iterdir()):
        place = "/" if file.name == "index.html" else f"/{file.name}"
        router.add_api_route(place, _file(file), methods=["GET", "HEAD"])
    return router


def _file(file: Path) -> Callable[[], Response]:
    content, kind = file.read_bytes(), _TYPES[file.suffix]

    def answer() -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8", headers=_HEADERS)

    return answer
