"""`saescope fetch`: fetches just the files that `saescope plan` names."""

from typing import Annotated

from cyclopts import Parameter

from saescope.sources.catalog import QWEN_SCOPE_NOTICE, find_release
from saescope.sources.fetch import fetch as fetch_files
from saescope.sources.machine import show_bytes
from saescope.surfaces.cli.inputs import Inputs
from saescope.surfaces.cli.plan import Limits, planned_job, to_dict
from saescope.surfaces.cli.show import note, print_json, stdout


def fetch(
    sets: str | None = None,
    /,
    *,
    check: Annotated[bool, Parameter(negative="")] = False,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    inputs: Inputs = Inputs(),  # noqa: B008 (frozen)
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Fetch just the files a job needs, and check them; interrupted, the same command goes on from there.

    Parameters
    ----------
    sets
        Prompt sets, as for plan; what is fetched does not depend on them.
    check
        Hash also the files that are already here.
    json
        Print the plan as one JSON document when everything is here.
    """
    planned = planned_job(sets, inputs, limits)
    if not planned.fits_memory:
        note(f"this machine cannot run it as asked: {planned.why[-1]}; see saescope plan")
    fetched = fetch_files(planned, check=check, report=note)
    if find_release(planned.options.sae.partition("@")[0]):
        note(QWEN_SCOPE_NOTICE)
    if json:
        print_json(to_dict(fetched, limits))
    else:
        what = f"{show_bytes(planned.download_bytes)} fetched, " if planned.missing else ""
        stdout().print(f"{what}{len(fetched.needed)} files are here and whole", markup=False)
