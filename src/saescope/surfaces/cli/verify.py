"""`saescope verify`: whether a run is still what was published, and its inputs are unchanged."""

from rich.console import Console

from saescope.jobs.verify import Verification, VerifyRequest
from saescope.surfaces.cli.lines import print_line
from saescope.surfaces.cli.options import Output, command
from saescope.surfaces.cli.show import TERMINAL, cell, present


@command
def verify(request: VerifyRequest, *, output: Output = Output()) -> int:
    verification = request.run(TERMINAL)
    present(verification, output, lambda console: _show(console, verification))
    return int(bool(verification.problems))


def _show(console: Console, verification: Verification) -> None:
    lines = verification.problems or [
        f"{verification.run} is whole: every hash, table and row count is as published"
    ]
    if verification.unproven == [] and not verification.problems:
        lines.append("its model and SAEs are byte for byte those it was made from")
    for name in verification.unproven or []:
        lines.append(f"not proven byte for byte: {name}")
    for line in [*lines, *verification.notes]:
        print_line(console, cell(line))
