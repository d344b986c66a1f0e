"""`saescope demo`: the main job on the embedded pair, from prompts to a report."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from saescope.analysis.contrast import Settings
from saescope.analysis.contrast import contrast as contrast_run
from saescope.analysis.profile import profile as profile_run
from saescope.sources.prompts import BUNDLED, bundled_prompts, texts
from saescope.surfaces.cli.contrast import show_contrast
from saescope.surfaces.cli.inputs import Inputs, run_of
from saescope.surfaces.cli.profile import show_profile
from saescope.surfaces.cli.scan import show_scan
from saescope.surfaces.cli.show import print_json, stdout
from saescope.surfaces.report import write_report

_ROWS = 3
_SHOWN = ("english", "code", "japanese")


def demo(*, out: Path | None = None, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Run the main job on the embedded pair: profile, scan, contrast and report over the bundled prompt sets.

    Parameters
    ----------
    out
        Directory for the run; runs/languages-HASH when left out.
    json
        Print one JSON document instead of tables.
    """
    inputs, sets = Inputs(), bundled_prompts()
    lm, saes = inputs.load()
    from saescope.engine.scan import scan

    run = run_of(lm, saes, sets, BUNDLED, inputs.batch_tokens, out, {"verb": "demo", "options": {}})
    profiled = profile_run(run, n_samples=1)
    prompts = texts(next(s for s in sets if s.name == name).prompts[0].shown for name in _SHOWN)[0].prompts
    scanned = scan(lm, saes, prompts)
    contrasted = contrast_run(run, Settings())
    report = write_report(run)
    if json:
        print_json(
            {
                "profile": profiled.to_dict(),
                "scan": scanned.to_dict(),
                "contrast": contrasted.to_dict(),
                "report": str(report),
                "run": str(run.path),
            }
        )
        return
    console = stdout()
    show_profile(console, profiled)
    show_scan(console, scanned)
    show_contrast(console, contrasted, n_top=_ROWS)
    console.print(f"\nThe run lies in {run.path}. Ask it again without a model: saescope contrast {run.path}")
    console.print(f"All of it as a page: {report}")
