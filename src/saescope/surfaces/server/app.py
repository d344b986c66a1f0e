"""The server as one ASGI application."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from saescope.errors import SaescopeError
from saescope.surfaces.server.completions import completions_router
from saescope.surfaces.server.guard import Guard
from saescope.surfaces.server.page import page_router
from saescope.surfaces.server.problems import Problem, from_validation
from saescope.surfaces.server.service import Service
from saescope.surfaces.server.steering_routes import steering_router
from saescope.version import __version__

_ABOUT = """\
OpenAI's completions with `steering`: edits of sparse-autoencoder features while the model runs.
Nothing in `steering` is ignored: what cannot be applied is refused with the reason.
"""


class ErrorDetail(BaseModel):
    """What is wrong with a request."""

    message: str
    type: str
    param: str | None = Field(description="The field it is about, as a JSON path.")
    code: str | None


class ErrorReply(BaseModel):
    """An answer other than 200."""

    error: ErrorDetail


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorReply, "description": "The request cannot be done; the message says why."},
    401: {"model": ErrorReply, "description": "The key is missing or wrong."},
    403: {"model": ErrorReply, "description": "The request names another host or comes from one."},
    404: {"model": ErrorReply, "description": "There is no such model or edit set."},
    413: {"model": ErrorReply, "description": "The body is too large."},
    429: {"model": ErrorReply, "description": "Too many requests wait; see Retry-After."},
    500: {"model": ErrorReply, "description": "The model or a stored file failed."},
    503: {"model": ErrorReply, "description": "The server is stopping."},
}


def create_app(
    service: Service, *, api_key: str | None = None, loopback: bool = True
) -> Callable[..., Any]:
    """Return the ASGI application that serves a model.

    With `api_key`, every route but /health needs it. With `loopback`, only requests that name this
    machine are answered.
    """
    app = build_app(service)
    return Guard(app, api_key=api_key, loopback=loopback)


def build_app(service: Service) -> FastAPI:
    """Return the application without its guard, as the OpenAPI document describes it."""
    app = FastAPI(
        title="saescope",
        version=__version__,
        description=_ABOUT,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        responses=_PROBLEMS,
    )
    app.include_router(completions_router(service))
    app.include_router(steering_router(service))
    app.include_router(page_router())

    @app.get("/health", tags=["server"])
    def health() -> dict[str, str]:
        """Say that the model is loaded and requests are taken."""
        if service.scheduler.closing:
            raise Problem(503, "the server is stopping", kind="server_error")
        return {"status": "ready"}

    _answer_problems(app)
    _describe_refusals(app)
    return app


def _answer_problems(app: FastAPI) -> None:
    """Give every error the shape that OpenAI's clients read."""

    @app.exception_handler(Problem)
    async def problem(_request: Request, error: Problem) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        return from_validation(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> JSONResponse:
        return Problem(
            error.status_code, str(error.detail), headers=dict(error.headers or {})
        ).response()

    @app.exception_handler(SaescopeError)
    async def refused(_request: Request, error: SaescopeError) -> JSONResponse:
        return Problem(400, str(error)).response()

    @app.exception_handler(Exception)
    async def failed(_request: Request, error: Exception) -> JSONResponse:
        text = f"the server failed: {type(error).__name__}"
        return Problem(500, text, kind="server_error").response()


def _describe_refusals(app: FastAPI) -> None:
    """Take FastAPI's own 422 out of the OpenAPI document: invalid requests get 400 here."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
