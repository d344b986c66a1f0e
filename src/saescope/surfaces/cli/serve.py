"""`saescope serve`: OpenAI's API with steering, on this machine."""

from saescope.surfaces.cli.options import command
from saescope.surfaces.cli.show import TERMINAL
from saescope.surfaces.server.serve import ServeRequest


@command
def serve(request: ServeRequest = ServeRequest()) -> None:
    request.run(TERMINAL)
