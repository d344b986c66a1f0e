"""`saescope steer`: what a model writes with and without edits, side by side."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from saescope.control.edits import EditSet
from saescope.errors import PromptError
from saescope.sources.prompts import Message, Prompt
from saescope.surfaces.cli.editing import Edits, load_for
from saescope.surfaces.cli.inputs import Inputs
from saescope.surfaces.cli.show import cell, note, percent, print_json, stdout, table
from saescope.surfaces.visible import visible

if TYPE_CHECKING:
    from saescope.control.receipts import Receipt
    from saescope.engine.lm import LM

BREAKS = 0.5  # about half a residual's norm is where text starts to break


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Writing:
    """How the prompt is put, and how the model goes on from it."""

    chat: Annotated[bool, Parameter(negative="")] = False
    "Put the prompt through the model's chat template."

    system: str | None = None
    "A system message before it."

    thinking: bool | None = None
    "Tell the chat template to think, or not to."

    max_new_tokens: int = 64
    "Tokens to write at most."

    temperature: float = 0.0
    "0 takes the likeliest token each time; else tokens are sampled."

    seed: int = 0
    "Of the samples."

    def asked(self, prompt: str) -> Prompt:
        """The prompt as a text, or as a chat where any option of chats is given; raises PromptError for none."""
        if not prompt.strip():
            raise PromptError("the prompt is empty: give some text")
        if not self.chat and self.system is None and self.thinking is None:
            return Prompt("prompt", "prompts", text=prompt)
        turns = ([Message("system", self.system)] if self.system else []) + [
            Message("user", prompt)
        ]
        return Prompt("prompt", "prompts", messages=tuple(turns))


def steer(
    prompt: str,
    /,
    *,
    given: Edits = Edits(),  # noqa: B008 (frozen)
    writing: Writing = Writing(),
    inputs: Inputs = Inputs(),  # noqa: B008
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Let a model go on from a prompt without edits and with them, and say what the edits did.

    Parameters
    ----------
    prompt
        Text to go on from, or with --chat a request to answer.
    json
        Print one JSON document instead of text.
    """
    asked, wanted = writing.asked(prompt), given.wanted()
    lm, saes = load_for(wanted, inputs)
    _say_what_differs(lm, asked, wanted, writing.thinking)
    from saescope.control.steer import steered
    from saescope.engine.generate import generate_batch

    def write(on_token: Callable[[int, int], None] | None) -> str:
        [one] = generate_batch(
            lm,
            [asked],
            max_new_tokens=writing.max_new_tokens,
            temperature=writing.temperature,
            seed=writing.seed,
            thinking=writing.thinking,
            on_token=on_token,
        )
        return one.text

    with _side_by_side(lm, quiet=json) as (left, right):
        base = write(left)
        with steered(lm, saes, wanted.edits) as receipt:
            changed = write(right)
    if json:
        print_json({"base": base, "steered": changed, "receipt": receipt.to_dict()})
    else:
        _show_receipt(receipt, base == changed)


def _say_what_differs(lm: "LM", asked: Prompt, wanted: EditSet, thinking: bool | None) -> None:
    """Notes on what was asked for and has no effect, or was found in another model."""
    from saescope.engine.tokens import prompt_ids

    if thinking is not None and prompt_ids(lm, asked, thinking=True) == prompt_ids(
        lm, asked, thinking=False
    ):
        note(f"the chat template of {lm.spec.repo} knows no thinking: it is the same on and off")
    for one in {edit.direction for edit in wanted.edits if edit.direction is not None}:
        if one.model not in ("", lm.spec.repo):
            note(f"direction {one} was found in {one.model}, this is {lm.spec.repo}")


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
        return columns(
            *(visible(lm.tokenizer.decode(ids, skip_special_tokens=True)) for ids in written)
        )

    with Live(shown(), console=stdout(), auto_refresh=False) as live:

        def into(column: int) -> Callable[[int, int], None]:
            def on_token(_row: int, token: int) -> None:
                written[column].append(token)
                live.update(shown(), refresh=live.console.is_terminal)

            return on_token

        yield into(0), into(1)


def columns(base: str, changed: str) -> Table:
    """Two texts side by side, folded where they have no spaces, so that nothing is cut off."""
    made = Table(box=None, expand=True, padding=(0, 1), header_style="bold")
    for title in ("without", "with edits"):
        made.add_column(title, overflow="fold", ratio=1)
    made.add_row(escape(base), escape(changed))  # running text: its spaces stay spaces
    return made


def _show_receipt(receipt: "Receipt", same: bool) -> None:
    console = stdout()
    made = table(
        "", "edit", "meant for", "fired on", "largest activation", "read-out gain", "direction norm"
    )
    for one in receipt.to_dict()["edits"]:
        when = f" when {one['when']}, on {one['held']}" if one["when"] else ""
        said = f"{one['edit']} {one['op']} {one['strength']:g} {one['gate']} {one['scope']}{when}"
        most = f"{one['largest_act']:.3g}" + _share(one)
        made.add_row(cell(said), str(one["meant"]), str(one["fired"]), most, f"{one['readout_gain']:.3g}",
                     f"{one['direction_norm']:.3g}")  # fmt: skip
    console.print(made)
    console.print(
        f"looked at {receipt.positions} positions in {receipt.steps} passes, changed {receipt.changed}; change / "
        f"residual: {percent(receipt.delta_norm_ratio)} on average, {percent(receipt.largest_ratio)} at most"
    )
    if not receipt.applied:
        note("nothing was changed: no edited feature fired, or rounding lost what was added")
    elif same:
        note("residuals were changed, the text was not")
    if receipt.largest_ratio > BREAKS:
        note(
            f"a change of over {percent(BREAKS)} of the residual: about there text starts to break"
        )


def _share(edit: Mapping[str, Any]) -> str:
    """How a strength in units of activation compares with the largest one seen."""
    comparable = edit["op"] in ("add", "clamp", "readout_clamp") and edit["largest_act"] > 0
    return f" (strength {edit['strength'] / edit['largest_act']:.2g} of it)" if comparable else ""
