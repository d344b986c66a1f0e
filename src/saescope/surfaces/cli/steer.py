"""`saescope steer`: what a model writes with and without edits, side by side."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.live import Live
from rich.table import Table

from saescope.control.edits import EditSet, parse_edit, read_edits
from saescope.errors import EditError, PromptError
from saescope.sources.prompts import Message, Prompt
from saescope.surfaces.cli.inputs import Inputs
from saescope.surfaces.cli.show import cell, note, percent, print_json, stdout
from saescope.surfaces.visible import visible

if TYPE_CHECKING:
    from saescope.control.receipts import Receipt
    from saescope.engine.lm import LM
    from saescope.engine.sae import TopKSae

BREAKS = 0.5  # about half a residual's norm is where text starts to break


def steer(
    prompt: str,
    /,
    *,
    edits: Path | None = None,
    edit: tuple[str, ...] = (),
    chat: Annotated[bool, Parameter(negative="")] = False,
    system: str | None = None,
    thinking: bool | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    inputs: Inputs = Inputs(),  # noqa: B008 (frozen)
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Let a model go on from a prompt without edits and with them, and say what the edits did.

    Parameters
    ----------
    prompt
        Text to go on from, or with --chat a request to answer.
    edits
        An edits file, such as detect writes; its model and SAE are taken where --model and --sae do not say.
    edit
        An edit such as "17/23991 scale -1": feature, op, strength, then gate and scope. Instead of a feature, a file
        with a direction: "japanese.safetensors add 2", or japanese.safetensors@17 where it does not say its layer. May
        be given again.
    chat
        Put the prompt through the model's chat template.
    system
        A system message before it.
    thinking
        Tell the chat template to think, or not to.
    max_new_tokens
        Tokens to write at most.
    temperature
        0 takes the likeliest token each time; else tokens are sampled.
    seed
        Of the samples.
    json
        Print one JSON document instead of text.
    """
    if not prompt.strip():
        raise PromptError("the prompt is empty: give some text")
    wanted = wanted_edits(edits, edit)
    lm, saes = load_for(wanted, inputs)
    asked = _asked(prompt, chat=chat or system is not None or thinking is not None, system=system)
    from saescope.control.steer import steered
    from saescope.engine.generate import generate

    def write(on_token: Callable[[int, int], None] | None) -> str:
        [one] = generate(
            lm,
            [asked],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            thinking=thinking,
            on_token=on_token,
        )
        return one.text

    with _side_by_side(lm, quiet=json) as (left, right):
        base = write(left)
        with steered(lm, wanted.edits, saes) as receipt:
            changed = write(right)
    if json:
        print_json({"base": base, "steered": changed, "receipt": receipt.to_dict()})
    else:
        _show_receipt(receipt, base == changed)


def load_for(wanted: EditSet, inputs: Inputs) -> "tuple[LM, list[TopKSae]]":
    """The model and SAEs of these edits; raises EditError where they are another's, naming what differs."""
    chosen = inputs_for(wanted, inputs)
    alone = sorted({edit.layer for edit in wanted.edits})
    if chosen.layers is None:
        return chosen.load_model(alone), []
    lm, saes = chosen.load(decoder=True, alone=alone)
    check_sizes(wanted, saes)
    return lm, saes


def inputs_for(wanted: EditSet, inputs: Inputs) -> Inputs:
    """The inputs with model, SAE and layers of these edits; raises EditError where they are another's."""
    for name, given, own in (("--model", inputs.model, wanted.model), ("--sae", inputs.sae, wanted.sae)):
        if given and own and given != own:
            raise EditError(f"these edits are of {own}, {name} is {given}: edits belong to one model and one SAE")
    return replace(
        inputs,
        model=inputs.model or wanted.model or None,
        sae=inputs.sae or wanted.sae or None,
        layers=",".join(sorted({str(layer) for edit in wanted.edits for layer in edit.layers})) or None,
    )


def check_sizes(wanted: EditSet, saes: "Sequence[TopKSae]") -> None:
    """Raises EditError where these SAEs are of other sizes than those that the edits are of."""
    for sae in saes:
        for what, size, found in (
            ("d_model", wanted.d_model, sae.spec.d_model),
            ("d_sae", wanted.d_sae, sae.spec.d_sae),
        ):
            if size is not None and size != found:
                raise EditError(f"these edits are of an SAE with {what} {size}, {sae.spec.release} has {found}")


def wanted_edits(path: Path | None, given: Sequence[str]) -> EditSet:
    """Edits of a file and of the command line; raises EditError where there is none."""
    extra = tuple(parse_edit(text) for text in given)
    if path is None and not extra:
        raise EditError('nothing to edit: give --edits FILE or --edit "LAYER/ID scale -1"')
    if path is None:
        return EditSet("", "", extra)
    read = read_edits(path)
    return replace(read, edits=(*read.edits, *extra))


def _asked(prompt: str, *, chat: bool, system: str | None) -> Prompt:
    if not chat:
        return Prompt("prompt", "prompts", text=prompt)
    turns = ([Message("system", system)] if system else []) + [Message("user", prompt)]
    return Prompt("prompt", "prompts", messages=tuple(turns))


@contextmanager
def _side_by_side(
    lm: "LM", *, quiet: bool
) -> Iterator[tuple[Callable[[int, int], None] | None, Callable[[int, int], None] | None]]:
    """Callbacks that write tokens into two columns as they come."""
    if quiet:
        yield None, None
        return
    written: tuple[list[int], list[int]] = ([], [])

    def shown() -> Table:
        made = Table("without", "with edits", box=None, expand=True, padding=(0, 1), header_style="bold")
        made.add_row(*(cell(visible(lm.tokenizer.decode(ids, skip_special_tokens=True))) for ids in written))
        return made

    with Live(shown(), console=stdout(), auto_refresh=False) as live:

        def into(column: int) -> Callable[[int, int], None]:
            def on_token(_row: int, token: int) -> None:
                written[column].append(token)
                live.update(shown(), refresh=live.console.is_terminal)

            return on_token

        yield into(0), into(1)


def _show_receipt(receipt: "Receipt", same: bool) -> None:
    console = stdout()
    fired = ", ".join(f"{cell(e.name)} on {n}" for e, n in zip(receipt.edits, receipt.fired, strict=True))
    console.print(
        f"\nedited {receipt.positions} positions in {receipt.steps} passes; fired: {fired}; change / residual: "
        f"{percent(receipt.delta_norm_ratio)} on average, {percent(receipt.largest_ratio)} at most"
    )
    if not receipt.applied:
        note("nothing was changed: no edited feature fired")
    elif same:
        note("residuals were changed, the text was not")
    if receipt.largest_ratio > BREAKS:
        note(f"a change of over {percent(BREAKS)} of the residual: about there text starts to break")
