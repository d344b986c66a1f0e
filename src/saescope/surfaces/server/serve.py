"""The `serve` request: loads a model once and answers requests until it is interrupted."""

import socket
from dataclasses import dataclass, replace
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, final

from saescope.arguments import Count, Range
from saescope.errors import ArgumentError, ResourceError, SaescopeError
from saescope.jobs.inputs import ModelInputs
from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.request import Request

if TYPE_CHECKING:
    from saescope.surfaces.server.service import Service

CHAT_MODEL, CHAT_SAE, CHAT_LAYER = "saescope-tiny-chat", "saescope-tiny-chat-sae", 2
Port = Annotated[int, Range(0, 65535)]
_NEEDED = ("fastapi", "uvicorn")


@final
@dataclass(frozen=True, kw_only=True)
class ServeRequest(Request):
    """Answer OpenAI's API over HTTP, with steering as a field of each request."""

    verb: ClassVar[str] = "serve"

    host: str = "127.0.0.1"
    "Address to listen on. Any but this machine's own needs a key."
    port: Port = 8000
    "Port to listen on; 0 takes a free one."
    api_key: str | None = None
    "Clients must send it as `Authorization: Bearer KEY`. Default: no key."
    dir: Path = Path("saescope-server")
    "Folder of stored edit sets."
    max_batch: Count = 32
    "Most replies that are generated at once."
    max_waiting: Count = 256
    "Most replies that wait for a place; more requests are answered with 429."
    inputs: ModelInputs = ModelInputs()

    def __post_init__(self) -> None:
        """Refuse another address than this machine's own without a key."""
        super().__post_init__()
        if self.api_key is not None and not self.api_key.strip():
            raise ArgumentError("api_key", "must not be empty")
        if not self.loopback and self.api_key is None:
            raise ArgumentError(
                "host", f"{self.host} can be reached by others: set api_key, or use 127.0.0.1"
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def run(self, reporter: Reporter = SILENT) -> None:
        """Serve until interrupted; requests that are being answered then are finished first.

        Raises SaescopeError if a package is missing, the address is taken, or the model cannot be
        loaded.
        """
        missing = [name for name in _NEEDED if find_spec(name) is None]
        if missing:
            raise SaescopeError(
                f"serve needs {' and '.join(missing)}: pip install 'saescope[serve]'"
            )
        listener = self.listen()
        with listener:
            service = self.open_service(reporter)
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            reporter.note(f"serving {service.name} at http://{shown}:{port}/v1; Ctrl-C ends it")
            try:
                _serve(service, listener, self.api_key, self.loopback)
            finally:
                service.scheduler.close()

    def open_service(self, reporter: Reporter = SILENT) -> "Service":
        """Load the model and start its scheduler."""
        from saescope.control.serving.scheduler import Limits, Scheduler
        from saescope.surfaces.server.edit_sets import EditSets
        from saescope.surfaces.server.service import Service

        inputs = self._inputs()
        model, sae = inputs.names()
        lm, saes = inputs.load(reporter, decoder=True, generates=True)
        _ = lm.whole  # all weights are read before the first request
        scheduler = Scheduler(lm, saes, Limits(self.max_batch, self.max_waiting))
        edit_sets = EditSets(self.dir.expanduser() / "steering", model, sae)
        return Service(Path(model).name or model, lm, saes, edit_sets, scheduler)

    def _inputs(self) -> ModelInputs:
        """Return the inputs; by default the embedded chat model, which declines one topic."""
        inputs = self.inputs
        if inputs.model is None and inputs.sae is None:
            inputs = replace(inputs, model=CHAT_MODEL, sae=CHAT_SAE)
        if inputs.model == CHAT_MODEL and inputs.layers is None:
            inputs = replace(inputs, layers=(CHAT_LAYER,))
        return inputs

    def listen(self) -> socket.socket:
        """Return the listening socket: a taken address is refused before a model is loaded."""
        try:
            family, _, _, _, address = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.socket(family)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ResourceError(
                f"cannot listen on {self.host}:{self.port}: {reason}; choose another port"
            ) from error
        return listener


def _serve(
    service: "Service", listener: socket.socket, api_key: str | None, loopback: bool
) -> None:
    import uvicorn

    from saescope.surfaces.server.app import create_app

    app = create_app(service, api_key=api_key, loopback=loopback)
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[listener])
