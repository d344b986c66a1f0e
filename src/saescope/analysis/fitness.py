"""Whether an SAE fits a model it was not trained on, from runs that keep each token's reconstruction error."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from saescope.analysis.agreement import agreement
from saescope.analysis.stats import Bools
from saescope.errors import RunError
from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.table import Table

FITS_RATIO, FITS_JACCARD, POOR_FVU = 1.25, 0.6, 0.5


@dataclass(frozen=True)
class LayerFitness:
    """One layer: share of variance unexplained (FVU) and features that fire a token (L0), here and on the base model.

    `topk_jaccard` and `found_both` of `found_either` compare the features that the two models fire on the same tokens.
    """

    tokens: int
    fvu: float
    l0: float
    norm_median: float
    base_fvu: float | None
    base_l0: float | None
    base_norm_median: float | None
    topk_jaccard: float | None
    top5_equal: float | None
    found_both: int | None
    found_either: int | None
    masked_pos0: int
    masked_sinks: int

    @property
    def verdict(self) -> str:
        """What may be expected of the SAE on this model, in words."""
        share = f"{100 * (1 - self.fvu):.0f} % of the variance is explained"
        if self.base_fvu is None or self.topk_jaccard is None:
            known = "; compare with the model it was trained on (--base) to know what it loses"
            return (
                f"poor fit: only {share}" if self.fvu > POOR_FVU else f"plausible fit: {share}"
            ) + known
        beside = f"{share} ({100 * (1 - self.base_fvu):.0f} % on its own model)"
        kept = f"{100 * self.topk_jaccard:.0f} % of features are the same"
        worse = self.fvu > FITS_RATIO * self.base_fvu
        if worse and self.topk_jaccard < FITS_JACCARD:
            return f"does not fit: {beside}, {kept}; use an SAE trained on this model"
        if worse:
            return f"fits with losses: {beside}, {kept}; read weak features with care"
        if self.topk_jaccard < FITS_JACCARD:
            return f"reconstructs, but with other features: {beside}, only {kept}; find features on this model anew"
        return f"fits: {beside}, {kept}"


@final
@dataclass(frozen=True)
class Fitness(Table):
    """The answer to `fitness`."""

    model: str
    base: str | None
    sae: str
    layers: dict[int, LayerFitness]
    run: str
    base_run: str | None

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of `saescope fitness`."""
        return {
            "model": self.model,
            "base": self.base,
            "sae": self.sae,
            "layers": {
                str(n): {**vars(one), "verdict": one.verdict} for n, one in self.layers.items()
            },
            "run": self.run,
            "base_run": self.base_run,
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row a layer."""
        return [{"layer": n, **vars(one), "verdict": one.verdict} for n, one in self.layers.items()]


def fitness(run: Run, base: Run | None = None) -> Fitness:
    """How well the run's SAEs rebuild its model's residuals, beside a run of the model they were trained on.

    Position 0 and sinks never count here: no SAE is trained on them.
    Raises RunError for runs without reconstruction errors, of other SAEs, or of other tokens.
    """
    rule = Masking()
    if base is not None and {n: s.fingerprint for n, s in base.saes.items()} != {
        n: s.fingerprint for n, s in run.saes.items()
    }:
        raise RunError(
            f"{run.path} and {base.path} are of different SAEs: compare two models under the same ones"
        )
    agreed = agreement(base, run, rule).layers if base is not None else {}
    layers = {}
    for layer in run.layers:
        here, there = (
            _measure(run, layer, rule),
            _measure(base, layer, rule) if base is not None else None,
        )
        same = agreed.get(layer)
        layers[layer] = LayerFitness(
            tokens=int(here.scored.sum()),
            fvu=here.fvu,
            l0=here.l0,
            norm_median=here.norm_median,
            base_fvu=there.fvu if there else None,
            base_l0=there.l0 if there else None,
            base_norm_median=there.norm_median if there else None,
            topk_jaccard=same.topk_jaccard if same else None,
            top5_equal=same.top5_equal if same else None,
            found_both=same.found_both if same else None,
            found_either=same.found_either if same else None,
            masked_pos0=here.masked_pos0,
            masked_sinks=here.masked_sinks,
        )
    return Fitness(
        model=run.model.repo,
        base=base.model.repo if base else None,
        sae=next(iter(run.saes.values())).release,
        layers=layers,
        run=str(run.path),
        base_run=str(base.path) if base else None,
    )


@dataclass(frozen=True)
class _Measured:
    scored: Bools
    fvu: float
    l0: float
    norm_median: float
    masked_pos0: int
    masked_sinks: int


def _measure(run: Run, layer: int, rule: Masking) -> _Measured:
    """FVU as squared error over squared distance from the mean residual, over scored positions."""
    features = run.features(layer)
    if features.error is None:
        raise RunError(f"{run.path} keeps no reconstruction errors: make it with saescope fitness")
    positions = rule.apply(run.token_pos, features.norms)
    scored = positions.scored
    if not scored.any():
        raise RunError(
            f"{run.path} has no scored position (position 0 and sinks do not count): use --keep-pos0"
        )
    resids = run.resids(layer)
    mean = np.average(
        resids.mean.astype(np.float64), axis=0, weights=np.maximum(resids.positions, 1e-9)
    )
    squared = float((features.norms[scored].astype(np.float64) ** 2).sum())
    variance = squared - int(scored.sum()) * float(mean @ mean)
    error = float((features.error[scored].astype(np.float64) ** 2).sum())
    return _Measured(
        scored=scored,
        fvu=error / variance if variance > 0 else float("inf"),
        l0=float(features.counts[scored].mean()),
        norm_median=float(np.median(features.norms[scored])),
        masked_pos0=positions.masked_pos0,
        masked_sinks=positions.masked_sinks,
    )
