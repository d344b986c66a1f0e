"""`saescope verify`: whether a run is still what was published."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from saescope.store.runs import verify as verify_run
from saescope.surfaces.cli.show import print_json, stdout


def verify(run: Path, /, *, json: Annotated[bool, Parameter(negative="")] = False) -> int:
    """Check a run's hashes and schema; exits with 1 where something is wrong.

    Parameters
    ----------
    run
        Directory of the run.
    json
        Print one JSON document instead of text.
    """
    problems = verify_run(run)
    if json:
        print_json({"ok": not problems, "problems": problems, "run": str(run)})
    else:
        for line in problems or [
            f"{run} is whole: every hash, table and row count is as published"
        ]:
            stdout().print(line, markup=False)
    return 1 if problems else 0
