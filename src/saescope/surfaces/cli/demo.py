"""`saescope demo`: the main job on the embedded pair, from prompts to a report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from saescope.analysis.contrast import ContrastSettings
from saescope.analysis.contrast import contrast as contrast_run
from saescope.analysis.profile import profile as profile_run
from saescope.control.edits import parse_edit
from saescope.sources.prompts import DEFAULT_BUNDLE, bundled_prompts, texts
from saescope.surfaces.cli.contrast import show_contrast
from saescope.surfaces.cli.inputs import Inputs, run_of
from saescope.surfaces.cli.profile import show_profile
from saescope.surfaces.cli.scan import show_scan
from saescope.surfaces.cli.show import cell, print_json, stdout, table
from saescope.surfaces.report import write_report

_ROWS = 3
# Found by `saescope contrast` on its English prompts; training/LOG.md has what it does on held-out ones.
DECLINING = "2/412 scale -3"
_SHOWN = ("english", "code", "japanese")


def demo(*, out: Path | None = None, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Run the main job on the embedded pair: profile, scan, contrast, steer and report over the bundled prompt sets.

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

    run = run_of(
        lm, saes, sets, DEFAULT_BUNDLE, inputs.batch_tokens, out, {"verb": "demo", "options": {}}
    )
    profiled = profile_run(run, n_samples=1)
    prompts = texts(
        next(s for s in sets if s.name == name).prompts[0].display_text for name in _SHOWN
    )[0].prompts
    scanned = scan(lm, saes, prompts)
    contrasted = contrast_run(run, ContrastSettings())
    report = write_report(run)
    steer = _steer()
    if json:
        print_json(
            {
                "profile": profiled.to_dict(),
                "scan": scanned.to_dict(),
                "contrast": contrasted.to_dict(),
                "steer": steer,
                "report": str(report),
                "run": str(run.path),
            }
        )
        return
    console = stdout()
    show_profile(console, profiled)
    show_scan(console, scanned)
    show_contrast(console, contrasted, n_top=_ROWS)
    show_steer(console, steer)
    console.print(
        f"\nThe run lies in {run.path}. Ask it again without a model: saescope contrast {run.path}"
    )
    console.print(f"All of it as a page: {report}")


def _steer() -> dict[str, Any]:
    """The chat model that declines one topic, with and without the feature that makes it decline."""
    from saescope.control.steer import steered
    from saescope.engine.generate import generate
    from saescope.engine.lm import load_lm
    from saescope.engine.load import load_sae

    edit = parse_edit(DECLINING)
    lm = load_lm("saescope-tiny-chat", [edit.layer])
    sae = load_sae("saescope-tiny-chat-sae", edit.layer)
    asked = (
        next(s for s in bundled_prompts("requests") if s.name == "declined_en").prompts[0].messages
        or ()
    )
    turns = [{"role": m.role, "content": m.content} for m in asked]
    base = generate(lm, turns, thinking=False)
    with steered(lm, [sae], [edit]) as receipt:
        changed = generate(lm, turns, thinking=False)
    return {"prompt": turns[-1]["content"], "edit": DECLINING, "base": base, "steered": changed,
            "receipt": receipt.to_dict()}  # fmt: skip


def show_steer(console: Console, steer: Mapping[str, Any]) -> None:
    """One request, answered with and without the edit."""
    made = table("a chat model that declines one topic, steered", "", "", left=2)
    made.show_header = False
    made.add_row("request", cell(steer["prompt"]))
    made.add_row("without", cell(steer["base"]))
    made.add_row(f"with {steer['edit']}", cell(steer["steered"]))
    console.print(made)
