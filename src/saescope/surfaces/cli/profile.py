"""`saescope profile`: tokens, norms and sinks of prompt sets."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from saescope.analysis.profile import SAMPLES, Paired, Profile, Sink
from saescope.analysis.profile import profile as profile_run
from saescope.errors import PromptError
from saescope.sources.prompts import DEFAULT_BUNDLE
from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.surfaces.cli.inputs import Inputs, Masks, obtain_run, parse_layers
from saescope.surfaces.cli.show import cell, percent, present, table

_SETS = f"{DEFAULT_BUNDLE}+conlangs"
_SINKS_SHOWN, _PIECES_SHOWN = 10, 12


def profile(
    sets: str = _SETS,
    /,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    out: Path | None = None,
    inputs: Inputs = Inputs(),  # noqa: B008 (frozen)
    masks: Masks = Masks(),  # noqa: B008 (frozen)
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Measure tokens a prompt, the pieces of words, residual norms and sinks of prompt sets.

    Parameters
    ----------
    sets
        Prompt sets, or a run made before, as for contrast; A+B joins two. The bundled languages and constructed
        languages (languages+conlangs) when left out.
    samples
        Words of each set to show in their pieces.
    seed
        Draws the bootstrap intervals.
    out
        Directory for the run; runs/NAME-HASH when left out.
    json
        Print one JSON document instead of tables.
    """
    if samples < 0:  # refused before anything is computed
        raise PromptError(f"--samples is {samples}: it must be at least 0")
    wanted = None if inputs.layers == "all" else parse_layers(inputs.layers)
    options = {
        "masking": asdict(masks.masking()),
        "layers": wanted,
        "n_samples": samples,
        "seed": seed,
    }
    run = obtain_run(sets, inputs, out, {"verb": "profile", "options": options})
    present(run, answer(run, options), show_profile, json=json)


def answer(run: Run, options: Mapping[str, Any]) -> Profile:
    """What the command asks of a run."""
    return profile_run(run, **{**options, "masking": Masking(**options["masking"])})


def show_profile(console: Console, result: Profile) -> None:
    """Tokens of every set, words in their pieces, norms in every layer, sinks after position 0, and the warnings."""
    console.print(_tokens(result))
    console.print(_held(result))
    if any(one.samples for one in result.sets.values()):
        console.print(_words(result))
    for layer in next(iter(result.sets.values())).layers:
        console.print(_norms(result, layer))
    console.print("sinks: at position 0 + at later positions")
    _show_sinks(console, [sink for sink in result.sinks if sink.pos > 0])
    for line in result.warnings:
        console.print(f"[yellow]warning:[/] {cell(line)}")


def _tokens(result: Profile) -> Table:
    against = next((one.paired.against for one in result.sets.values() if one.paired), None)
    paired = [f"by pair, to {cell(against)}"] if against else []
    made = table("tokens", "set", "prompts", "tokens", "a prompt", "ratio", *paired)
    for name, one in result.sets.items():
        numbers = [
            str(one.prompts),
            str(one.tokens),
            f"{one.tokens_per_prompt:.1f}",
            f"{one.ratio:.2f}x",
        ]
        made.add_row(cell(name), *numbers, *([_ratio(one.paired)] if against else []))
    return made


def _ratio(paired: Paired | None) -> str:
    if paired is None:
        return "-"
    interval = f" ({paired.ci[0]:.2f}-{paired.ci[1]:.2f})" if paired.ci else ""
    return f"{paired.ratio:.2f}x{interval}"


def _held(result: Profile) -> Table:
    made = table("what a token holds", "set", "bytes", "characters", "fragments of a character")
    for name, one in result.sets.items():
        numbers = [
            f"{one.bytes_per_token:.2f}",
            f"{one.characters_per_token:.2f}",
            percent(one.fragments),
        ]
        made.add_row(cell(name), *numbers)
    return made


def _words(result: Profile) -> Table:
    made = table(
        "words in pieces, a set's typical one last", "set", "word", "tokens", "pieces", left=4
    )
    made.columns[2].justify = "right"
    for name, one in result.sets.items():
        for n, sample in enumerate(one.samples):
            pieces = " ".join(map(cell, sample.pieces[:_PIECES_SHOWN]))
            more = " …" * (len(sample.pieces) > _PIECES_SHOWN)
            row = [cell(sample.word), str(len(sample.pieces)), pieces + more]
            made.add_row(cell(name) if n == 0 else "", *row, end_section=n == len(one.samples) - 1)
    return made


def _norms(result: Profile, layer: int) -> Table:
    made = table(
        f"residual norms, layer {layer}",
        "set",
        "pos 0 mean",
        "median",
        "later mean",
        "median",
        "sinks",
    )
    for name, one in result.sets.items():
        norm = one.layers[layer]
        numbers = [
            norm.pos0_norm_mean,
            norm.pos0_norm_median,
            norm.later_norm_mean,
            norm.later_norm_median,
        ]
        made.add_row(cell(name), *map(_number, numbers), f"{norm.pos0_sinks} + {norm.sinks}")
    return made


def _show_sinks(console: Console, sinks: Sequence[Sink]) -> None:
    if not sinks:
        return
    made = table(
        "sinks after position 0",
        "set",
        "prompt",
        "token",
        "pos",
        "norm",
        "medians",
        "in layers",
        left=3,
    )
    for sink in sinks[:_SINKS_SHOWN]:
        medians = "-" if sink.ratio is None else f"{sink.ratio:.1f}"
        numbers = [str(sink.pos), f"{sink.norm:.4g}", medians, ", ".join(map(str, sink.layers))]
        made.add_row(cell(sink.set), cell(sink.prompt), cell(sink.token), *numbers)
    console.print(made)
    if len(sinks) > _SINKS_SHOWN:
        console.print(f"and {len(sinks) - _SINKS_SHOWN} more: --json has them all")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
