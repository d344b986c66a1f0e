"""Measure a written checkpoint against three runs of its base model on neutral text.

The base model runs unedited, with the edits as steered, and under each method's reference
intervention (the hook). Models are streamed, one after the other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saescope.control.baking.bake_plan import BakePlan
from saescope.control.baking.bake_result import Distances
from saescope.control.baking.distance import Distance, RecordedOutputs, distance, record_outputs
from saescope.control.baking.planning import BaseCheckpoint
from saescope.control.baking.settings import Method
from saescope.control.baking.stock import StockReading, judge
from saescope.control.edits import Edit
from saescope.control.steer import steered
from saescope.engine.lm import LM
from saescope.engine.logits import Logits
from saescope.engine.sae import Sae
from saescope.engine.tokens import prompt_ids
from saescope.errors import EditError
from saescope.sources.prompts import Prompt

Progress = Callable[[str, int, int], None]
# Below this, in nats per token, distances are rounding of float32.
_NOISE = 1e-8


@dataclass(frozen=True)
class BakeInputs:
    """What is baked, and the prompts to measure on (empty: nothing is measured)."""

    base: BaseCheckpoint
    saes: Sequence[Sae]
    edits: Sequence[Edit]
    neutral_prompts: Sequence[Prompt]
    progress: Progress

    def token_ids(self, lm: LM) -> list[list[int]]:
        """Return the token ids of each prompt."""
        return [prompt_ids(lm, prompt) for prompt in self.neutral_prompts]


@dataclass(frozen=True)
class BaseOutputs:
    """The base model's outputs: unedited, with the edits applied by steered(), and references."""

    token_ids: Sequence[Sequence[int]]
    unedited: RecordedOutputs
    steered: RecordedOutputs

    references: Mapping[Method, RecordedOutputs]
    "Outputs under each method's reference intervention."


def record_base(inputs: BakeInputs, plans: Sequence[BakePlan]) -> BaseOutputs:
    """Run the base model over the neutral prompts in every state."""
    base = inputs.base
    lm = base.load_streamed()
    token_ids = inputs.token_ids(lm)
    logits = Logits(base.shards, base.anatomy, lm.device)
    interventions: list[Any] = [None, steered(lm, inputs.saes, inputs.edits)]
    interventions += [plan.reference for plan in plans]
    outputs = []
    for intervention in interventions:
        outputs.append(record_outputs(lm, logits, token_ids, base.anatomy, intervention))
        inputs.progress("measuring", len(outputs), len(interventions))
    unedited, steered_outputs, *reference_outputs = outputs
    methods = [plan.method for plan in plans]
    references = dict(zip(methods, reference_outputs, strict=True))
    return BaseOutputs(token_ids, unedited, steered_outputs, references)


def measure(
    inputs: BakeInputs, before: BaseOutputs, staging: Path, *, with_transformers: bool
) -> Distances:
    """Return the distances from the base model's outputs to the written checkpoint.

    `with_transformers`: also let transformers' own model judge both folders.
    """
    written = BaseCheckpoint.open(staging, device=inputs.base.device)
    lm = written.load_streamed()
    logits = Logits(written.shards, written.anatomy, lm.device)
    baked = record_outputs(lm, logits, before.token_ids, written.anatomy)
    [reference] = before.references.values()
    distances = Distances(
        reference=distance(reference, baked),
        effect=distance(before.unedited, reference),
        steered_effect=distance(before.unedited, before.steered),
        steered=distance(before.steered, baked),
        base=distance(before.unedited, baked),
    )
    del lm
    stock: StockReading | str = "measuring is off"
    if with_transformers:
        folders = (inputs.base.files, written.files)
        stock = judge(folders, before.token_ids, (before.unedited, baked))
    inputs.progress("comparing", 1, 1)
    return replace(distances, stock=stock)


def refuse_distant(distances: Distances, plan: BakePlan, *, tolerance: float = 1.0) -> None:
    """Raise EditError if a checkpoint is further from its hook than the hook moves the model.

    For approximate methods, the effect of the edits as steered is a limit too: if residuals share
    a large mean, every-write's hook may itself wreck the model, and its effect is then so large
    that any weights would pass. `tolerance` allows for chance on little text. Also raises EditError
    if transformers reads one of the two folders otherwise than saescope.
    """
    if isinstance(distances.stock, StockReading) and not distances.stock.agrees:
        raise EditError(
            f"transformers ({distances.stock.model_class}) reads the model or the baked folder "
            f"otherwise than saescope: {distances.stock.kl_own:.2g} nats per token between the "
            "two, so no figure here would hold: nothing was written (force writes it all the same)"
        )
    away, effects = distances.reference, [distances.effect]
    if not plan.exact:
        effects.append(distances.steered_effect)
    known = [effect for effect in effects if effect is not None]
    if away is None or all(_is_within(away, effect, tolerance) for effect in known):
        return
    least = min(effect.mean for effect in known)
    raise EditError(
        f"method {plan.method!r} gives weights that are {away.mean:.2g} nats per token away from "
        f"the hook they stand for, while the edit changes the model by {least:.2g}"
        f"{_because(plan)}: nothing was written. Use another method=, steer it at run time, or "
        "set force=True to write it all the same"
    )


def _is_within(away: Distance, effect: Distance, tolerance: float) -> bool:
    """Whether the distance is at most the effect; never if it is no number."""
    return away.mean <= max(tolerance * effect.mean, _NOISE)


def _because(plan: BakePlan) -> str:
    return "" if plan.approximation_reason is None else f" ({plan.approximation_reason})"
