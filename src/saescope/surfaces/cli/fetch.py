"""`saescope fetch`: downloads just the files that `saescope plan` names."""

from rich.console import Console

from saescope.jobs.plan import Fetched, FetchRequest
from saescope.sources.machine import show_bytes
from saescope.surfaces.cli.options import Output, command
from saescope.surfaces.cli.show import TERMINAL, present, print_finding


@command
def fetch(request: FetchRequest = FetchRequest(), *, output: Output = Output()) -> None:
    fetched = request.run(TERMINAL)
    present(fetched, output, lambda console: _show(console, fetched))


def _show(console: Console, fetched: Fetched) -> None:
    downloaded = ""
    if fetched.downloaded_bytes:
        downloaded = f"{show_bytes(fetched.downloaded_bytes)} downloaded, "
    count = len(fetched.estimate.plan.needed)
    print_finding(console, f"{downloaded}{count} files are here and whole")
