"""A server on 127.0.0.1 in a thread of the tests, as `saescope serve` starts it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from saescope.surfaces.server.app import create_app
from saescope.surfaces.server.serve import ServeRequest
from saescope.surfaces.server.service import Service


@dataclass(frozen=True)
class Served:
    """A running server: its address, and what it serves."""

    url: str
    service: Service


@contextmanager
def serving(request: ServeRequest) -> Iterator[Served]:
    """Serve until the context ends; requests that are in flight then are finished first."""
    service = request.open_service()
    with request.listen() as listener:
        app = create_app(service, api_key=request.api_key, loopback=request.loopback)
        config = uvicorn.Config(app, log_level="warning", access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", service)
        finally:
            server.should_exit = True
            thread.join()
            service.scheduler.close()


def tiny_chat(folder: Path) -> ServeRequest:
    """The request that serves the embedded chat model on a free port."""
    return ServeRequest(port=0, dir=folder, max_batch=32)
