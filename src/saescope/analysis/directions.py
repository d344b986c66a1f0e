"""The difference of means of a run: the plain baseline that an edit of a feature has to beat."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from saescope.analysis.sets import Comparison, check_sets
from saescope.errors import PromptError
from saescope.sources.directions import Direction
from saescope.store.arrays import Bools, Floats
from saescope.store.runs import Run

Position = Literal["mean", "last"]


def difference_of_means(
    run: Run,
    target: str,
    layer: int,
    *,
    against: Sequence[str] | None = None,
    position: Position = "mean",
    every_prompt: bool = False,
    seed: int = 0,
) -> Direction:
    """Return the mean residual of `target` prompts minus that of prompts of the sets `against`.

    Default of `against`: all other sets. Every prompt counts once, with the mean over its scored
    positions or with its `last` position. Only discovery prompts of the split by `seed` are used,
    unless `every_prompt` is set. Raises PromptError for sets that are not in the run or have no
    prompt that counts, RunError for a layer that the run does not hold.

    >>> import tempfile
    >>> import saescope as ss
    >>> lm = ss.load_lm("saescope-tiny", [2])
    >>> saes = [ss.load_sae("saescope-tiny-sae", 2)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = ss.extract(lm, saes, ss.bundled_prompts()[:2], f"{folder}/run")
    ...     direction = ss.difference_of_means(run, run.sets[0], 2)
    >>> direction.layer, direction.values.shape == (lm.spec.d_model,)
    (2, True)
    """
    others = check_sets(run.sets, target, against)
    if position not in get_args(Position):
        choices = ", ".join(get_args(Position))
        raise PromptError(f"position must be one of {choices}, got {position!r}")
    resids = run.resids(layer)
    comparison = Comparison(run, target, others, seed)
    rows = comparison.is_target | comparison.is_other
    if not every_prompt:
        rows = rows & comparison.is_discovery
    if position == "mean":
        rows = rows & (resids.positions > 0)
    vectors = getattr(resids, position).astype(np.float64)
    origin = _origin(comparison, rows, position, every_prompt)
    return Direction(
        layer,
        mean_difference(vectors, comparison.is_target, rows),
        name=f"{target} by means",
        model=run.model.repo,
        origin=origin,
    )


def mean_difference(resid: Floats, positive: Bools, rows: Bools) -> Floats:
    """Mean residual of the positive prompts among `rows` minus that of the others, (d_model,).

    `resid` is (prompts, d_model); every prompt counts once.
    """
    positive_mean = resid[rows & positive].mean(axis=0)
    return np.asarray(positive_mean - resid[rows & ~positive].mean(axis=0))


def _origin(comparison: Comparison, rows: Bools, position: Position, every_prompt: bool) -> str:
    """What the direction is made of; raises PromptError if no prompt of a side counts."""
    kind, split = "discovery prompt", f", seed {comparison.seed}"
    if every_prompt:
        kind, split = "prompt", ""
    target, others = comparison.target, ", ".join(comparison.against)
    n_target = int((rows & comparison.is_target).sum())
    n_others = int(rows.sum()) - n_target
    for names, n in ((target, n_target), (others, n_others)):
        if n == 0:
            raise PromptError(
                f"{names}: no {kind} has a position that counts: nothing to take a mean of"
            )
    residual = {"last": "last residual", "mean": "mean scored residual"}[position]
    return (
        f"mean over {n_target} {kind}s of {target} "
        f"less mean over {n_others} of {others}: {residual}{split}"
    )
