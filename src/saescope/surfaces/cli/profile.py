"""`saescope profile`: tokens, norms and sinks of prompt sets."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from saescope.analysis.profile import Profile
from saescope.analysis.profile import profile as profile_run
from saescope.sources.prompts import BUNDLED
from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.surfaces.cli.inputs import Inputs, Masks, obtain_run
from saescope.surfaces.cli.show import cell, present, table


def profile(
    sets: str = BUNDLED,
    /,
    *,
    out: Path | None = None,
    inputs: Inputs = Inputs(),  # noqa: B008 (frozen)
    masks: Masks = Masks(),  # noqa: B008 (frozen)
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Measure tokens a prompt, residual norms and sinks of prompt sets.

    Parameters
    ----------
    sets
        Prompt sets, or a run made before, as for contrast.
    out
        Directory for the run; runs/NAME-HASH when left out.
    json
        Print one JSON document instead of tables.
    """
    options = {"masking": asdict(masks.masking())}
    run = obtain_run(sets, inputs, out, {"verb": "profile", "options": options})
    present(run, answer(run, options), show_profile, json=json)


def answer(run: Run, options: Mapping[str, Any]) -> Profile:
    """What the command asks of a run."""
    return profile_run(run, Masking(**options["masking"]))


def show_profile(console: Console, result: Profile) -> None:
    """Tokens of every set, its norms in every layer, and the warnings."""
    tokens = table("tokens", "set", "prompts", "tokens", "a prompt", "ratio")
    for name, one in result.sets.items():
        tokens.add_row(name, str(one.prompts), str(one.tokens), f"{one.tokens_per_prompt:.1f}", f"{one.ratio:.2f}x")
    console.print(tokens)
    norms = table("residual norms", "set", "layer", "pos 0 mean", "pos 0 median", "later mean", "later median", "sinks")
    for name, one in result.sets.items():
        for n, (layer, norm) in enumerate(one.layers.items()):
            later = [_number(norm.later_norm_mean), _number(norm.later_norm_median)]
            first = [_number(norm.pos0_norm_mean), _number(norm.pos0_norm_median)]
            norms.add_row(name if n == 0 else "", str(layer), *first, *later, str(norm.sinks))
    console.print(norms)
    for line in result.warnings:
        console.print(f"[yellow]warning:[/] {cell(line)}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
