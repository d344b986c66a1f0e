"""`saescope bake`: edits put into weights, said to be exact or approximate, and measured."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from saescope.errors import PromptError
from saescope.sources.prompts import Prompt
from saescope.store.atomic import refuse_existing
from saescope.surfaces.cli.editing import Edits, inputs_for, saes_for
from saescope.surfaces.cli.inputs import EMBEDDED_PAIR, Inputs
from saescope.surfaces.cli.judging import flat_prompts
from saescope.surfaces.cli.show import cell, note, percent, print_json, progress, stdout, table

if TYPE_CHECKING:
    from saescope.control.baking.bake_result import BakeResult

MethodName = Literal["every-write", "readers-above", "next-layer", "writers-up-to", "bias"]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Baking:
    """How edits are put into weights."""

    method: MethodName | None = None
    (
        "every-write: all that writes to the residual is projected. readers-above: all that reads it above the layer. "
        "next-layer: only what reads it in the next layer. writers-up-to: what writes to it up to the layer. bias: for "
        "add. The exact one of the edits' op when left out."
    )

    as_: Annotated[Literal["project"] | None, Parameter(name="--as")] = None
    "project: bake edits that depend on a feature's firing as projections of its direction."


def bake(
    *,
    out: Path,
    given: Edits = Edits(),  # noqa: B008 (frozen)
    baking: Baking = Baking(),
    neutral: str = "neutral",
    measure: bool = True,
    inputs: Inputs = Inputs(),  # noqa: B008
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write a checkpoint with edits in its weights, which stock transformers loads, and say how far it is from them.

    Parameters
    ----------
    out
        Folder to write; it must not exist.
    neutral
        Prompt sets of plain text on which distances are measured; the bundled sentences when left out.
    measure
        Measure how far the written checkpoint is from the hook, from the edits as steered, and from the model.
    json
        Print one JSON document instead of tables.
    """
    wanted = given.wanted()
    chosen = inputs_for(wanted, inputs)
    refuse_existing(out.expanduser())
    text = _text(neutral) if measure else []
    saes = saes_for(wanted, chosen)
    model = chosen.names()[0] if saes or chosen.sae else chosen.model or EMBEDDED_PAIR[0]
    from saescope.control.baking.bake import bake as bake_edits
    from saescope.control.baking.settings import BakeSettings

    with _stages() as advance:
        baked = bake_edits(
            model,
            saes,
            wanted.edits,
            out,
            BakeSettings(method=baking.method, convert=baking.as_, measure=measure),
            neutral=text,
            device=chosen.device,
            offline=chosen.offline,
            progress=advance,
        )
    if json:
        print_json(baked.to_dict())
    else:
        show_baked(stdout(), baked)


def _text(neutral: str) -> list[Prompt]:
    found = flat_prompts(neutral)
    if not found:
        raise PromptError(f"{neutral} has no prompt")
    return found


@contextmanager
def _stages() -> Iterator[Callable[[str, int, int], None]]:
    """Progress of what is being done, in hundredths."""
    with progress("bake", "%") as advance:
        # Reading twice or thrice and comparing takes about as long as writing.
        start = {"measuring": 0, "writing": 30, "comparing": 70}
        span = {"measuring": 30, "writing": 40, "comparing": 30}
        yield lambda what, done, total: advance(
            start[what] + span[what] * done // max(1, total), 100
        )


def show_baked(console: Console, baked: "BakeResult") -> None:
    """What was written, its label, and the distances."""
    why = "" if baked.why_not is None else f": {baked.why_not}"
    console.print(f"{baked.out}: {baked.method}, [bold]{baked.label}[/bold]{cell(why)}")
    if baked.kl_hook_baked is not None:
        made = table(
            "KL to the written checkpoint on neutral text, nats a token",
            "from",
            "mean",
            "p95",
            "p99",
            "flips",
        )
        for row in baked.rows():
            words = {
                "hook": baked.hook,
                "steered": "the edits as steered",
                "base": "the model without edits",
            }
            figures = [f"{row[key]:.2g}" for key in ("mean", "p95", "p99")]
            made.add_row(cell(words[row["compared with"]]), *figures, percent(row["flips"]))
        console.print(made)
    if (worst := baked.worst_rounding) is not None:
        mean = sum(one.lost for one in baked.rounding) / len(baked.rounding)
        console.print(
            f"{len(baked.rounding)} tensors changed; rounding lost {percent(mean)} of the change along the direction, "
            f"{percent(worst.lost)} in the worst ({cell(worst.tensor)})"
        )
    for line in baked.notes:
        note(line)
