"""Ways of editing that an evaluation compares: the edits themselves, and the controls that a claim about them needs."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np

from saescope.analysis.directions import mean_difference
from saescope.control.edits import Edit
from saescope.control.receipts import Receipt
from saescope.control.steer import steered
from saescope.engine.batches import plan_rows
from saescope.engine.extract import BATCH_TOKENS, compute, plan
from saescope.engine.lm import LM
from saescope.engine.sae import Sae
from saescope.engine.tokens import prompt_ids
from saescope.errors import PromptError
from saescope.sources.catalog import Feature
from saescope.sources.directions import Direction
from saescope.sources.prompts import Message, Prompt

_NEAR = 10
MEANS = "difference of means"


@dataclass(frozen=True)
class Way:
    """One way of editing: its name, the multiple of the edits' strength, and what is done.

    `turned` is the seed of random directions that the edits write along, `instruction` what prompts are told instead
    of any edit, `drawn` what distinguishes it from other draws of the same control.
    """

    name: str
    strength: float | None = None
    edits: tuple[Edit, ...] = ()
    turned: int | None = None
    instruction: str | None = None
    drawn: str = ""

    @property
    def title(self) -> str:
        """The name that its replies have."""
        strength = "" if self.strength is None else f" x{self.strength:g}"
        return f"{self.name}{strength}{f' ({self.drawn})' if self.drawn else ''}"

    @property
    def parts(self) -> list[str]:
        """All that makes its replies differ from another's, to be named by."""
        edits = [f"{edit!r} {_digest(edit.direction)}" for edit in self.edits]
        return [*edits, repr(self.turned), repr(self.instruction)]

    def enter(self, lm: LM, saes: Sequence[Sae]) -> AbstractContextManager[Receipt | None]:
        """A block in which the model is edited this way."""
        return (
            steered(lm, saes, self.edits, random_directions=self.turned)
            if self.edits
            else nullcontext()
        )

    def read(self, lm: LM, saes: Sequence[Sae]) -> AbstractContextManager[Receipt | None]:
        """The same for text that is read in one pass as if it were generated: each position was the last of a pass."""
        edits = [
            replace(e, scope="all") if e.scope in ("last", "decode") else e for e in self.edits
        ]
        return replace(self, edits=tuple(edits)).enter(lm, saes)


def _digest(direction: Direction | None) -> str:
    return hashlib.sha256(direction.values.tobytes()).hexdigest() if direction is not None else ""


@dataclass(frozen=True)
class Controls:
    """What the controls of some edits are made of; `ways` gives them at one strength.

    `others` are draws of other features, `seeds` of random directions, `means` differences of means by layer.
    """

    edits: tuple[Edit, ...]
    others: Sequence[Sequence[Edit]]
    seeds: Sequence[int]
    means: Mapping[int, Direction]
    instruction: str | None

    def ways(self, strength: float, *, removes: bool) -> list[Way]:
        """Every control of the edits at this multiple; the difference of means is taken away, or else added."""
        signed = any(
            edit.op in ("add", "scale") for edit in self.edits
        )  # only these have an opposite
        return [
            Way("zero", 0.0, _all(self.edits, 0.0)),
            *([Way("minus", -strength, _all(self.edits, -strength))] if signed else []),
            *(Way("random feature", strength, _all(one, strength), drawn=" ".join(edit.name for edit in one))
              for one in self.others),
            *(Way("random direction", strength, _all(self.edits, strength), seed, drawn=f"seed {seed}")
              for seed in self.seeds),
            *self._of_means(removes),
            *([Way("prompt only", instruction=self.instruction)] if self.instruction else []),
        ]  # fmt: skip

    def _of_means(self, removes: bool) -> list[Way]:
        if not self.means:
            return []
        sign, common = (-1.0, self._common()) if removes else (1.0, self._common())
        added = [
            replace(common, feature=None, direction=one, op="add", strength=sign)
            for one in self.means.values()
        ]
        taken = [replace(edit, op="project", strength=1.0) for edit in added]
        ways = [Way(f"{MEANS}, add", sign, tuple(added))]
        return [Way(f"{MEANS}, project", None, tuple(taken)), *ways] if removes else ways

    def _common(self) -> Edit:
        """An edit whose scope and sinks the difference of means takes over."""
        first = self.edits[0]
        return Edit(
            first.feature, "add", 1.0, "relu", first.scope, first.skip_sinks, first.direction
        )


def _all(edits: Sequence[Edit], factor: float) -> tuple[Edit, ...]:
    return tuple(times(edit, factor) for edit in edits)


def times(edit: Edit, factor: float) -> Edit:
    """The edit at a multiple of its strength; what only removes (project, the clamps) cannot be more than itself."""
    if edit.op == "project":
        return replace(edit, strength=min(1.0, max(0.0, edit.amount * factor)))
    if edit.op in ("clamp", "readout_clamp"):
        # A target has no multiple; where there is to be no edit there is none.
        return edit if factor else replace(edit, op="add", strength=0.0)
    return replace(edit, strength=edit.amount * factor)


def instructed(lm: LM, prompts: Sequence[Prompt], instruction: str) -> list[Prompt]:
    """The prompts with an instruction: as system message of a chat, in the first turn where the template has none.

    Before a text it stands as a line of its own.
    """
    chats = [prompt for prompt in prompts if prompt.messages]
    as_system = True
    try:
        if chats:
            prompt_ids(lm, _told(chats[0], instruction, as_system))
    except PromptError:
        as_system = False
    return [_told(prompt, instruction, as_system) for prompt in prompts]


def _told(prompt: Prompt, instruction: str, as_system: bool) -> Prompt:
    if prompt.text is not None:
        return replace(prompt, text=f"{instruction}\n{prompt.text}")
    turns = list(prompt.messages or ())
    if as_system and turns[0].role != "system":
        return replace(prompt, messages=(Message("system", instruction), *turns))
    first = turns[0]
    content = (
        f"{first.content}\n\n{instruction}"
        if first.role == "system"
        else f"{instruction}\n\n{first.content}"
    )
    return replace(prompt, messages=(Message(first.role, content), *turns[1:]))


def other_features(
    lm: LM,
    saes: Sequence[Sae],
    edits: Sequence[Edit],
    prompts: Sequence[Prompt],
    draws: int,
    seed: int,
) -> list[tuple[Edit, ...]]:
    """Draws of the same edits of other features that fire about as often on these prompts; none for directions alone.

    A draw has no feature of another one while there are enough. Raises PromptError where no other feature fires.
    """
    edits = [edit for edit in edits if edit.feature is not None]
    if not edits or not draws:
        return []
    counts = {sae.spec.layer: np.zeros(sae.spec.d_sae, np.int64) for sae in saes}
    for _, layer, features, _ in compute(lm, saes, plan(lm, prompts)):
        counts[layer] += np.bincount(features.ids[features.acts > 0], minlength=len(counts[layer]))
    rng = np.random.default_rng(seed)
    used: set[Feature] = set()
    chosen = []
    for _ in range(draws):
        one = _draw(edits, counts, used, max(_NEAR, 2 * draws * len(edits)), rng)
        used |= {edit.target_feature for edit in one}
        chosen.append(one)
    return chosen


def _draw(
    edits: Sequence[Edit],
    counts: Mapping[int, "np.ndarray[tuple[int], np.dtype[np.int64]]"],
    used: set[Feature],
    near: int,
    rng: np.random.Generator,
) -> tuple[Edit, ...]:
    taken = {edit.target_feature for edit in edits}
    chosen = []
    for edit in edits:
        layer, fired = edit.layer, counts[edit.layer]
        order = np.argsort(np.abs(fired - fired[edit.target_feature.id]), kind="stable").tolist()
        free = [Feature(layer, n) for n in order if fired[n] and Feature(layer, n) not in taken][
            :near
        ]
        if not free:
            raise PromptError(
                f"no other feature of layer {layer} fires on these prompts: there is no control to compare"
            )
        fresh = [feature for feature in free if feature not in used] or free
        other = fresh[int(rng.integers(len(fresh)))]
        taken.add(other)
        chosen.append(replace(edit, feature=other))
    return tuple(chosen)


def mean_directions(
    lm: LM,
    saes: Sequence[Sae],
    prompts: Sequence[Prompt],
    target: Sequence[str],
    thinking: bool | None,
) -> dict[int, Direction]:
    """At every SAE's layer the mean residual of the target sets' prompts less that of the others', every prompt once.

    A chat counts with its last position, from which the answer is written, a text with the mean over its scored ones.
    Empty where the prompts are all of one kind.
    """
    positive = np.array([prompt.set in target for prompt in prompts])
    if not saes or positive.all() or not positive.any():
        return {}
    rows = [
        prompt_ids(lm, prompt, thinking=thinking if prompt.messages else None) for prompt in prompts
    ]
    work = plan_rows(rows, BATCH_TOKENS, packed=lm.packs, shares=lm.shares)
    chats = np.array([prompt.messages is not None for prompt in prompts])
    resid = {sae.spec.layer: np.zeros((len(prompts), lm.spec.d_model)) for sae in saes}
    for number, layer, _, found in compute(lm, saes, work):
        order = work.order(number)
        resid[layer][order] = np.where(chats[order, None], found.last, found.mean)
    made = f"{', '.join(target)} less the others of {len(prompts)} prompts"
    return {
        layer: Direction(
            layer,
            mean_difference(one, positive, np.ones(len(prompts), bool)),
            MEANS,
            lm.spec.repo,
            made,
        )
        for layer, one in resid.items()
    }
