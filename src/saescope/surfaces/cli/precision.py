"""`saescope precision`: the same job in two dtypes or on two devices, compared token by token."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from saescope.analysis.agreement import Agreement, agreement
from saescope.sources.prompts import DEFAULT_BUNDLE
from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.surfaces.cli.inputs import EXTRACT, Inputs, Masks, is_run, obtain_run
from saescope.surfaces.cli.show import cell, percent, present, table


def precision(
    sets: str = DEFAULT_BUNDLE,
    other: Path | None = None,
    /,
    *,
    against: Literal["float32", "bfloat16"] = "float32",
    against_device: Literal["auto", "cpu", "cuda", "mps"] | None = None,
    out: Path | None = None,
    inputs: Inputs = Inputs(),  # noqa: B008 (frozen)
    masks: Masks = Masks(),  # noqa: B008 (frozen)
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Do the same job in two dtypes, or on two devices, and say what they agree on.

    Parameters
    ----------
    sets
        Prompt sets, as for contrast, or a run made before.
    other
        Where the first is a run: another run of the same prompts, by which it is judged.
    against
        The dtype to judge by; --dtype is what is judged, bfloat16 when left out.
    against_device
        The device to judge by; the same when left out.
    out
        Directory for the two runs; runs/NAME-HASH each when left out.
    json
        Print one JSON document instead of tables.
    """
    options: dict[str, Any] = {"masking": asdict(masks.masking())}
    if other is not None and is_run(sets):
        judged = Run.open(sets)
        options["against"] = str(other.resolve())
    else:
        tested = replace(inputs, dtype="bfloat16" if inputs.dtype == "auto" else inputs.dtype)
        reference = replace(inputs, dtype=against, device=against_device or inputs.device)
        places = [out / name if out else None for name in ("a", "b")]
        judged_by = obtain_run(sets, reference, places[0], EXTRACT)
        options["against"] = str(judged_by.path.resolve())
        judged = obtain_run(sets, tested, places[1], {"verb": "precision", "options": options})
    present(judged, answer(judged, options), show_agreement, json=json)


def answer(run: Run, options: Mapping[str, Any]) -> Agreement:
    """What the command asks of a run: how far it agrees with the one it is judged by, or with itself."""
    judged_by = Run.open(options["against"]) if "against" in options else run
    return agreement(judged_by, run, Masking(**options["masking"]))


def show_agreement(console: Console, result: Agreement) -> None:
    """One row a layer, the worst prompts, and a verdict a layer."""
    shown = f"{result.what_b} judged by {result.what_a}"
    columns = (
        "layer",
        "top 1",
        "top 5",
        "top k",
        "of k shared",
        "activation",
        "residual",
        "ties",
        "in bfloat16",
        "found",
    )
    made = table(shown, *columns)
    for layer, one in result.layers.items():
        same = [
            percent(s) for s in (one.top1_equal, one.top5_equal, one.topk_equal, one.topk_jaccard)
        ]
        differences = [f"{100 * d:.2g} %" for d in (one.act_rel_diff, one.resid_rel_diff)]
        ties = [percent(one.ties), percent(one.ties_bfloat16)]
        made.add_row(
            str(layer), *same, *differences, *ties, f"{one.found_both} of {one.found_either}"
        )
    console.print(made)
    console.print(
        "top 1, 5, k: share of tokens with the same features there; activation, residual: median relative difference; "
        "ties: k-th and next pre-activation are one number (rounded to bfloat16); found: confirmed features of both."
    )
    for layer, one in result.layers.items():
        worst = one.worst[0]
        console.print(
            f"layer {layer}: {result.verdicts[layer]}. Worst prompt: {cell(worst.id)} ({percent(worst.topk_jaccard)} "
            f"of its features shared). Left out: {one.masked_pos0} first positions, {one.masked_sinks} sinks."
        )
