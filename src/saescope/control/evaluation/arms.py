"""Arms of an evaluation: edits at one strength, a control, or no edit at all."""

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from saescope.control.conditions import Condition
from saescope.control.edits import Edit
from saescope.control.receipts import Receipt
from saescope.control.steer import steered
from saescope.engine.lm import LM
from saescope.engine.sae import Sae
from saescope.engine.tokens import prompt_ids
from saescope.errors import PromptError
from saescope.sources.chats import Content, Message
from saescope.sources.directions import Direction
from saescope.sources.prompts import Prompt


@dataclass(frozen=True)
class Arm:
    """One way to run the model, measured like every other: a name and what it edits."""

    name: str
    strength: float | None = None
    "Multiple of the edits' strength; None if that has no meaning."

    edits: tuple[Edit, ...] = ()
    direction_seed: int | None = None
    "Seed of the random directions that replace those of the edits."

    instruction: str | None = None
    "Instruction that prompts get instead of an edit."

    draw: str = ""
    "What distinguishes this draw of a random control from the others."

    @property
    def title(self) -> str:
        """The name under which its replies are reported."""
        title = self.name
        if self.strength is not None:
            title += f" x{self.strength:g}"
        if self.draw:
            title += f" ({self.draw})"
        return title

    @property
    def key_parts(self) -> list[str]:
        """Everything that decides its replies, for a cache key."""
        edits = [f"{edit!r} {_digest(edit.direction)}" for edit in self.edits]
        return [*edits, repr(self.direction_seed), repr(self.instruction)]

    def steered(self, lm: LM, saes: Sequence[Sae]) -> AbstractContextManager[Receipt | None]:
        """A block in which the model is edited as this arm says."""
        if not self.edits:
            return nullcontext()
        return steered(lm, saes, self.edits, random_directions=self.direction_seed)

    def steered_everywhere(
        self, lm: LM, saes: Sequence[Sae]
    ) -> AbstractContextManager[Receipt | None]:
        """The same for text read in one pass: edits of the newest token apply to every token."""
        edits = tuple(_at_all_positions(edit) for edit in self.edits)
        return replace(self, edits=edits).steered(lm, saes)

    @property
    def condition(self) -> Condition:
        """The edits of this arm, for rows of a batch."""
        return Condition(self.edits, self.direction_seed)

    def prompts(self, lm: LM, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        """The prompts as this arm puts them."""
        if self.instruction is None:
            return prompts
        return with_instruction(lm, prompts, self.instruction)


def _digest(direction: Direction | None) -> str:
    return "" if direction is None else hashlib.sha256(direction.values.tobytes()).hexdigest()


def _at_all_positions(edit: Edit) -> Edit:
    return replace(edit, scope="all") if edit.scope in ("last", "decode") else edit


def times(edits: Sequence[Edit], factor: float) -> tuple[Edit, ...]:
    """The edits at a multiple of their strengths."""
    return tuple(_times(edit, factor) for edit in edits)


def _times(edit: Edit, factor: float) -> Edit:
    if edit.op == "project":  # removes at most all of a direction
        return replace(edit, strength=min(1.0, max(0.0, edit.amount * factor)))
    if edit.op in ("clamp", "readout_clamp"):  # a target has no multiple, but it can be left out
        return edit if factor else replace(edit, op="add", strength=0.0)
    return replace(edit, strength=edit.amount * factor)


def with_instruction(lm: LM, prompts: Sequence[Prompt], instruction: str) -> list[Prompt]:
    """Return the prompts with an instruction: a system message, or a line before a text.

    If the chat template has no system message, the instruction begins the first turn.
    """
    as_system = _takes_system_message(lm, prompts, instruction)
    return [_instructed(prompt, instruction, as_system) for prompt in prompts]


def _takes_system_message(lm: LM, prompts: Sequence[Prompt], instruction: str) -> bool:
    chat = next((prompt for prompt in prompts if prompt.messages), None)
    if chat is None:
        return True
    try:
        prompt_ids(lm, _instructed(chat, instruction, as_system=True))
    except PromptError:
        return False
    return True


def _instructed(prompt: Prompt, instruction: str, as_system: bool) -> Prompt:
    if prompt.text is not None:
        return replace(prompt, text=f"{instruction}\n{prompt.text}")
    first, *rest = prompt.messages or ()
    if first.role == "system":
        first = replace(first, content=_joined(first.content, instruction))
    elif as_system:
        return replace(prompt, messages=(Message("system", instruction), first, *rest))
    else:
        first = replace(first, content=_joined(instruction, first.content))
    return replace(prompt, messages=(first, *rest))


def _joined(first: Content, second: Content) -> Content:
    """Two contents of a message with an empty line between them, in parts if one of them is."""
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return (*_parts(first), "\n\n", *_parts(second))


def _parts(content: Content) -> tuple[str, ...]:
    return content if isinstance(content, tuple) else (content or "",)
