"""`saescope profile`: tokens, norms and sinks of prompt sets."""

from collections.abc import Sequence

from rich.console import Console

from saescope.analysis.profile import Profile, SetProfile, Sink
from saescope.analysis.sentences import profile_sentence
from saescope.analysis.token_figures import Paired
from saescope.jobs.profile import NormsAnswer, ProfileRequest
from saescope.surfaces.cli.lines import print_line
from saescope.surfaces.cli.options import Output, command
from saescope.surfaces.cli.show import (
    TERMINAL,
    cell,
    note,
    number,
    percent,
    present,
    present_answer,
    print_finding,
    print_parts_note,
    print_warnings,
    significant,
    token_cell,
)
from saescope.surfaces.cli.tables import ResultTable

_SINKS_SHOWN, _PIECES_SHOWN = 10, 12


@command
def profile(request: ProfileRequest = ProfileRequest(), *, output: Output = Output()) -> None:
    answer = request.run(TERMINAL)
    if isinstance(answer, NormsAnswer):
        present(answer, output, lambda console: show_profile(console, answer.result))
        if not output.json:
            note("no SAE: features were not computed and no run was stored; pass --sae for both")
        return
    present_answer(answer, output, show_profile)


def show_profile(console: Console, result: Profile) -> None:
    """Print the finding, tokens, words in their pieces, norms, later sinks, and warnings."""
    print_finding(console, profile_sentence(result))
    _tokens(result).print(console)
    _bytes(result).print(console)
    samples = [sample for in_set in result.sets.values() for sample in in_set.samples]
    if samples:
        _words(result).print(console)
        print_parts_note(console, (piece for sample in samples for piece in sample.shown))
    first_set = next(iter(result.sets.values()))
    for layer in first_set.layers:
        _norms(result, layer).print(console)
    print_line(console, "sinks: at position 0 + at later positions")
    _show_sinks(console, [sink for sink in result.sinks if sink.pos > 0])
    print_warnings(console, result.warnings)


def _tokens(result: Profile) -> ResultTable:
    numbers = ["prompts", "tokens", "per prompt", "ratio"]
    reference = _paired_reference(result)
    if reference:
        numbers.append(f"by pair, to {cell(reference)}")
    table = ResultTable("tokens", text=("set",), numbers=numbers, optional=("prompts", "tokens"))
    for name, in_set in result.sets.items():
        table.add(cell(name), *_token_cells(in_set, paired=reference is not None))
    return table


def _paired_reference(result: Profile) -> str | None:
    """Return the set that paired prompts are compared with, if prompts are paired."""
    pairs = (in_set.paired for in_set in result.sets.values())
    return next((pair.against for pair in pairs if pair), None)


def _token_cells(in_set: SetProfile, *, paired: bool) -> list[str]:
    cells = [
        str(in_set.prompts),
        str(in_set.tokens),
        f"{in_set.tokens_per_prompt:.1f}",
        f"{in_set.ratio:.2f}x",
    ]
    if paired:
        cells.append(_ratio(in_set.paired))
    return cells


def _ratio(paired: Paired | None) -> str:
    if paired is None:
        return "-"
    if paired.ci is None:
        return f"{paired.ratio:.2f}x"
    low, high = paired.ci
    return f"{paired.ratio:.2f}x ({low:.2f}-{high:.2f})"


def _bytes(result: Profile) -> ResultTable:
    table = ResultTable(
        "what a token holds",
        text=("set",),
        numbers=("bytes", "characters", "fragments of a character"),
    )
    for name, in_set in result.sets.items():
        table.add(
            cell(name),
            f"{in_set.bytes_per_token:.2f}",
            f"{in_set.characters_per_token:.2f}",
            percent(in_set.fragments),
        )
    return table


def _words(result: Profile) -> ResultTable:
    table = ResultTable(
        "words in pieces, the typical word of a set last",
        text=("set", "word"),
        numbers=("tokens",),
        after=("pieces",),
    )
    for name, in_set in result.sets.items():
        label = cell(name)
        for sample in in_set.samples:
            pieces = [token_cell(piece) for piece in sample.shown[:_PIECES_SHOWN]]
            if len(sample.pieces) > _PIECES_SHOWN:
                pieces.append("…")
            table.add(label, cell(sample.word), str(len(sample.pieces)), " ".join(pieces))
            label = ""
        table.end_section()
    return table


def _norms(result: Profile, layer: int) -> ResultTable:
    table = ResultTable(
        f"residual norms, layer {layer}",
        text=("set",),
        numbers=("pos 0 mean", "pos 0 median", "later mean", "later median", "sinks"),
        optional=("pos 0 median", "later median"),
    )
    for name, in_set in result.sets.items():
        norms = in_set.layers[layer]
        table.add(
            cell(name),
            _norm(norms.pos0_norm_mean),
            _norm(norms.pos0_norm_median),
            _norm(norms.later_norm_mean),
            _norm(norms.later_norm_median),
            f"{norms.pos0_sinks} + {norms.sinks}",
        )
    return table


def _norm(norm: float | None) -> str:
    return "-" if norm is None else significant(norm, 4)


def _show_sinks(console: Console, sinks: Sequence[Sink]) -> None:
    if not sinks:
        return
    table = ResultTable(
        "sinks after position 0",
        text=("set", "prompt", "token"),
        numbers=("pos", "norm", "medians", "in layers"),
        optional=("prompt", "medians"),
    )
    for sink in sinks[:_SINKS_SHOWN]:
        layers = ", ".join(map(str, sink.layers))
        table.add(
            cell(sink.set),
            cell(sink.prompt),
            token_cell(sink.token),
            str(sink.pos),
            _norm(sink.norm),
            number(sink.ratio, ".1f"),
            layers,
        )
    table.print(console)
    if len(sinks) > _SINKS_SHOWN:
        print_line(console, f"and {len(sinks) - _SINKS_SHOWN} more: --json has them all")
