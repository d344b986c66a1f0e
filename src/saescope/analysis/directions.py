"""Directions found in a run: the difference of means, the plain baseline that an edit of a feature has to beat."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from saescope.analysis.sets import check_sets
from saescope.analysis.stats import Bools, Floats
from saescope.errors import PromptError
from saescope.sources.directions import Direction
from saescope.sources.prompts import split_prompts
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
    """The mean residual of `target` prompts less that of prompts of the sets `against` (all others when left out).

    Every prompt counts once: with the mean over its scored positions, or with its `last` position. Only discovery
    prompts are taken (by `seed`, as everywhere), unless `every_prompt` is. Raises PromptError for sets that are not
    there or of which no prompt counts, RunError for a layer that the run does not hold.
    """
    others = check_sets(run.sets, target, against, None)
    if position not in get_args(Position):
        raise PromptError(f"position {position!r} is not one of {', '.join(get_args(Position))}")
    resids = run.resids(layer)
    part = np.array(
        [every_prompt or part == "discovery" for part in split_prompts(run.prompts, seed=seed)]
    )
    counts = part & ((resids.positions > 0) if position == "mean" else True)
    positive = np.array([p.set == target for p in run.prompts])
    rows = counts & (positive | np.array([p.set in others for p in run.prompts]))
    n, n_others = int((rows & positive).sum()), int((rows & ~positive).sum())
    if not n or not n_others:
        raise PromptError(
            f"{target if not n else ', '.join(others)}: no {'' if every_prompt else 'discovery '}prompt has a position "
            "that counts: nothing to take a mean of"
        )
    which = "last residual" if position == "last" else "mean scored residual"
    less = f"mean over {n_others} of {', '.join(others)}"
    kind, seeded = ("", "") if every_prompt else ("discovery ", f", seed {seed}")
    return Direction(
        layer,
        mean_difference(getattr(resids, position).astype(np.float64), positive, rows),
        name=f"{target} by means",
        model=run.model.repo,
        origin=f"mean over {n} {kind}prompts of {target} less {less}: {which}{seeded}",
    )


def mean_difference(resid: Floats, positive: Bools, rows: Bools) -> Floats:
    """Mean residual of the positive prompts among `rows` less that of the others, every prompt counted once."""
    return np.asarray(resid[rows & positive].mean(axis=0) - resid[rows & ~positive].mean(axis=0))
