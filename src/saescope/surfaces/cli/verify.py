"""`saescope verify`: whether a run is still what was published."""

from rich.console import Console

from saescope.jobs.verify import Verification, VerifyRequest
from saescope.surfaces.cli.options import Output, command
from saescope.surfaces.cli.show import TERMINAL, present


@command
def verify(request: VerifyRequest, *, output: Output = Output()) -> int:
    verification = request.run(TERMINAL)
    present(verification, output, lambda console: _show(console, verification))
    return int(bool(verification.problems))


def _show(console: Console, verification: Verification) -> None:
    whole = f"{verification.run} is whole: every hash, table and row count is as published"
    for line in verification.problems or [whole]:
        console.print(line, markup=False)
