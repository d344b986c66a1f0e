"""Control arms: what a claim about edits has to be compared with."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from saescope.analysis.directions import mean_difference
from saescope.control.edits import Edit
from saescope.control.evaluation.arms import Arm, times
from saescope.control.evaluation.matching import Control
from saescope.control.evaluation.settings import EvaluateSettings
from saescope.engine.batches import BATCH_TOKENS, plan_batches, plan_token_batches
from saescope.engine.extract import compute_features
from saescope.engine.lm import LM
from saescope.engine.sae import Sae
from saescope.engine.tokens import prompt_ids
from saescope.errors import PromptError
from saescope.sources.catalog import Feature
from saescope.sources.directions import Direction
from saescope.sources.neutral_mean import NeutralMean
from saescope.sources.prompts import Prompt

MEANS, IN_FULL = "difference of means", " in full"
_LEAST_SIMILAR = 10
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Controls:
    """What the controls of some edits are made of."""

    edits: tuple[Edit, ...]
    random_features: Sequence[tuple[Edit, ...]]
    "Draws of the same edits of other features."

    direction_seeds: Sequence[int]
    "Seeds of random directions, one per draw."

    means: Mapping[int, Direction]
    "Differences of means by layer."

    instruction: str | None

    neutral_means: Mapping[int, NeutralMean] = field(default_factory=dict)
    "Mean residuals by layer, about which the difference of means is projected out."

    def at(self, strength: float, *, removes: bool) -> list[Control]:
        """Every control at this strength of the edits; baselines of their own at 1.

        `removes` says whether the edits lead away from the behaviour: the difference of means is
        then subtracted and projected out, else added.
        """
        return [
            *self._of_edits(strength),
            *self._random(strength),
            *self.of_means(removes=removes),
            *self._prompt_only(),
        ]

    def _of_edits(self, strength: float) -> Iterator[Control]:
        yield Control(Arm("zero", 0.0, times(self.edits, 0.0)))
        if any(edit.op in ("add", "scale") for edit in self.edits):  # others have no opposite
            yield Control(Arm("minus", -strength, times(self.edits, -strength)), self.edits)

    def _random(self, strength: float) -> Iterator[Control]:
        for edits in self.random_features:
            names = " ".join(edit.name for edit in edits)
            arm = Arm("random feature", strength, times(edits, strength), draw=names)
            yield Control(arm, edits)
        edits = times(self.edits, strength)
        for seed in self.direction_seeds:
            draw = f"seed {seed}"
            arm = Arm("random direction", strength, edits, direction_seed=seed, draw=draw)
            yield Control(arm, self.edits)

    def of_means(self, *, removes: bool) -> list[Control]:
        """The difference of means, projected out if it `removes`, and added or subtracted once."""
        if not self.means:
            return []
        added = tuple(self._along(direction) for direction in self.means.values())
        sign = -1.0 if removes else 1.0
        controls = [Control(Arm(f"{MEANS}, add", sign, times(added, sign)), added)]
        if removes:
            projected = tuple(replace(edit, op="project") for edit in added)
            controls.insert(0, Control(Arm(f"{MEANS}, project", 1.0, projected), projected))
        return controls

    def _along(self, direction: Direction) -> Edit:
        """An edit along a direction, with the scope and sinks of the evaluated edits."""
        first = self.edits[0]
        return Edit(
            op="add",
            strength=1.0,
            scope=first.scope,
            skip_sinks=first.skip_sinks,
            direction=direction,
            about=self.neutral_means.get(direction.layer),
        )

    def _prompt_only(self) -> Iterator[Control]:
        if self.instruction:
            yield Control(Arm("prompt only", instruction=self.instruction))


def draw_features(
    lm: LM,
    saes: Sequence[Sae],
    edits: Sequence[Edit],
    prompts: Sequence[Prompt],
    settings: EvaluateSettings,
) -> list[tuple[Edit, ...]]:
    """Return draws of the same edits on other features that fire about as often on these prompts.

    Draws share no feature as long as there are enough. Empty if all edits target directions. Raises
    PromptError if no other feature fires.
    """
    edits = [edit for edit in edits if edit.feature is not None]
    if not edits or not settings.draws:
        return []
    counts = _firing_counts(lm, saes, prompts)
    n_similar = max(_LEAST_SIMILAR, 2 * settings.draws * len(edits))
    similar = {
        edit.target_feature: _similar(edit.target_feature, counts[edit.layer]) for edit in edits
    }
    rng = np.random.default_rng(settings.seed)
    used: set[Feature] = set()
    draws = []
    for _ in range(settings.draws):
        draw = _draw(edits, similar, n_similar, used, rng)
        used |= {edit.target_feature for edit in draw}
        draws.append(draw)
    return draws


def _firing_counts(lm: LM, saes: Sequence[Sae], prompts: Sequence[Prompt]) -> dict[int, Counts]:
    """Per layer, on how many tokens of the prompts each feature fires."""
    counts = {sae.spec.layer: np.zeros(sae.spec.d_sae, np.int64) for sae in saes}
    for unit in compute_features(lm, saes, plan_batches(lm, prompts)):
        firing = unit.features.ids[unit.features.acts > 0]
        n_features = len(counts[unit.layer])
        counts[unit.layer] += np.bincount(firing, minlength=n_features)
    return counts


def _similar(feature: Feature, counts: Counts) -> list[Feature]:
    """Features of the same layer that fire at all, those that fire about as often first."""
    order = np.argsort(np.abs(counts - counts[feature.id]), kind="stable")
    return [Feature(feature.layer, int(n)) for n in order if counts[n]]


def _draw(
    edits: Sequence[Edit],
    similar: Mapping[Feature, Sequence[Feature]],
    n_similar: int,
    used: set[Feature],
    rng: np.random.Generator,
) -> tuple[Edit, ...]:
    """The edits with other features, chosen among the `n_similar` most similar ones of each."""
    taken = {edit.target_feature for edit in edits}
    draw = []
    for edit in edits:
        free = [feature for feature in similar[edit.target_feature] if feature not in taken][
            :n_similar
        ]
        if not free:
            raise PromptError(
                f"no other feature of layer {edit.layer} fires on these prompts: "
                "there is no control to compare with"
            )
        unused = [feature for feature in free if feature not in used] or free
        other = unused[int(rng.integers(len(unused)))]
        taken.add(other)
        draw.append(replace(edit, feature=other))
    return tuple(draw)


def mean_directions(
    lm: LM,
    saes: Sequence[Sae],
    prompts: Sequence[Prompt],
    target: Sequence[str],
    thinking: bool | None,
) -> dict[int, Direction]:
    """Return, by SAE layer, the mean residual of target prompts minus that of the others.

    Each prompt counts once: a chat with its last position, after which the reply begins, a text
    with the mean over its scored positions. Empty if all prompts or none are targets.
    """
    positive = np.array([prompt.set in target for prompt in prompts])
    if not saes or positive.all() or not positive.any():
        return {}
    every_prompt = np.ones(len(prompts), bool)
    made = f"{', '.join(target)} less the others of {len(prompts)} prompts"
    directions = {}
    for layer, resid in _prompt_residuals(lm, saes, prompts, thinking).items():
        difference = mean_difference(resid, positive, every_prompt)
        directions[layer] = Direction(layer, difference, MEANS, lm.spec.repo, made)
    return directions


def _prompt_residuals(
    lm: LM, saes: Sequence[Sae], prompts: Sequence[Prompt], thinking: bool | None
) -> dict[int, Float[np.ndarray, "n_prompts d_model"]]:
    """Per layer, each prompt's residual: a chat's at the last position, a text's on average."""
    is_chat = np.array([prompt.messages is not None for prompt in prompts])
    rows = [_prompt_row(lm, prompt, thinking) for prompt in prompts]
    batches = plan_token_batches(
        rows, BATCH_TOKENS, packed=lm.packs_prompts, shares=lm.shares_prefixes
    )
    resid = {sae.spec.layer: np.zeros((len(prompts), lm.spec.d_model)) for sae in saes}
    for unit in compute_features(lm, saes, batches):
        order = batches.prompt_order(unit.batch)
        last, mean = unit.resids.last, unit.resids.mean
        resid[unit.layer][order] = np.where(is_chat[order, None], last, mean)
    return resid


def _prompt_row(lm: LM, prompt: Prompt, thinking: bool | None) -> list[int]:
    return prompt_ids(lm, prompt, thinking=thinking if prompt.messages else None)
