"""Whether an SAE fits a model that it was not trained on.

Compares runs that keep each token's reconstruction error.
"""

from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from saescope.analysis.agreement import LayerAgreement, agreement
from saescope.errors import RunError
from saescope.sources.catalog import SaeSpec
from saescope.sources.fingerprints import scheme_of
from saescope.store.arrays import Float32s
from saescope.store.masking import MaskedCounts, Masking
from saescope.store.run_positions import run_positions
from saescope.store.runs import Run
from saescope.store.sae_fit import unexplained_share
from saescope.store.tables import PromptResids
from saescope.table import Table

FITS_RATIO, FITS_JACCARD, POOR_FVU = 1.25, 0.6, 0.5


def fitness(run: Run, base: Run | None = None) -> "Fitness":
    """Measure how well the run's SAEs reconstruct its model's residuals.

    `base` is a run of the model that the SAEs were trained on, with the same prompts, to compare
    with. Position 0 and sinks never count here, because no SAE is trained on them. Raises RunError
    for runs without reconstruction errors (`extract(..., errors=True)`), of different SAEs, or of
    different tokens.

    >>> import tempfile
    >>> import saescope as ss
    >>> lm = ss.load_lm("saescope-tiny", [2])
    >>> saes = [ss.load_sae("saescope-tiny-sae", 2)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sets = ss.bundled_prompts()[:2]
    ...     run = ss.extract(lm, saes, sets, f"{folder}/run", errors=True)
    ...     0 < ss.fitness(run).layers[2].fvu < 0.5
    True
    """
    masking = Masking()
    agreed: dict[int, LayerAgreement] = {}
    if base is not None:
        _check_same_saes(run, base)
        agreed = agreement(base, run, masking).layers
    layers = {}
    for layer in run.layers:
        here = _measure(run, layer, masking)
        there = None
        if base is not None:
            there = _measure(base, layer, masking)
        layers[layer] = _layer_fitness(here, there, agreed.get(layer))
    return Fitness(
        model=run.model.repo,
        base=base.model.repo if base else None,
        sae=next(iter(run.saes.values())).release,
        layers=layers,
        run=str(run.path),
        base_run=str(base.path) if base else None,
    )


@final
@dataclass(frozen=True, repr=False)
class Fitness(Table):
    """The result of `fitness`."""

    shown = "layer tokens fvu base_fvu l0 base_l0 norm_median topk_jaccard"

    model: str
    base: str | None
    sae: str
    layers: dict[int, "LayerFitness"]
    run: str
    base_run: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-compatible dict that `saescope fitness --json` prints."""
        return {
            **vars(self),
            "layers": {str(n): layer.to_dict() for n, layer in self.layers.items()},
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per layer."""
        return [{"layer": n, **layer.to_dict()} for n, layer in self.layers.items()]


@dataclass(frozen=True)
class LayerFitness:
    """One layer: the fraction of variance unexplained (FVU) and the features per token (L0).

    `base_` figures are those of the model that the SAE was trained on, None without a base run.
    `topk_jaccard`, and `found_both` of `found_either`, compare the features that fire in the two
    models on the same tokens.
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
            fit = f"plausible fit: {share}"
            if self.fvu > POOR_FVU:
                fit = f"poor fit: only {share}"
            return f"{fit}; compare with a base run, of its own model, to know what it loses"
        share += f" ({100 * (1 - self.base_fvu):.0f} % on its own model)"
        same = f"{100 * self.topk_jaccard:.0f} % of features are the same"
        explains_less = self.fvu > FITS_RATIO * self.base_fvu
        other_features = self.topk_jaccard < FITS_JACCARD
        if explains_less and other_features:
            return f"does not fit: {share}, {same}; use an SAE trained on this model"
        if explains_less:
            return f"fits with losses: {share}, {same}; read weak features with care"
        if other_features:
            return (
                f"reconstructs, but with other features: {share}, only {same}; "
                "find features on this model anew"
            )
        return f"fits: {share}, {same}"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        return {**vars(self), "verdict": self.verdict}


def _check_same_saes(run: Run, base: Run) -> None:
    layers = run.saes.keys()
    if layers != base.saes.keys() or not all(
        _is_same_sae(run.saes[layer], base.saes[layer]) for layer in layers
    ):
        raise RunError(
            f"{run.path} and {base.path} have different SAEs: "
            "compare two models under the same SAEs"
        )


def _is_same_sae(one: SaeSpec, other: SaeSpec) -> bool:
    if scheme_of(one.fingerprint) == scheme_of(other.fingerprint):
        return one.fingerprint == other.fingerprint
    # Fingerprints of an earlier version cannot be compared: the rest has to be the same.
    return replace(one, fingerprint="") == replace(other, fingerprint="")


@dataclass(frozen=True)
class _Measurement:
    """One layer of one run, over its scored positions."""

    tokens: int
    fvu: float
    l0: float
    norm_median: float
    masked: MaskedCounts


def _measure(run: Run, layer: int, masking: Masking) -> _Measurement:
    features = run.features(layer)
    if features.error is None:
        raise RunError(f"{run.path} keeps no reconstruction errors: make it with saescope fitness")
    positions = run_positions(run, masking)[layer]
    scored = positions.scored
    if not scored.any():
        raise RunError(
            f"{run.path} has no scored position (position 0 and sinks do not count): "
            "use longer prompts"
        )
    norms = features.norms[scored]
    return _Measurement(
        tokens=len(norms),
        fvu=_fvu(norms, features.error[scored], run.resids(layer)),
        l0=float(features.counts[scored].mean()),
        norm_median=float(np.median(norms)),
        masked=positions.masked,
    )


def _fvu(norms: Float32s, errors: Float32s, resids: PromptResids) -> float:
    """Return the squared error over the squared distance from the mean residual."""
    weights = np.maximum(resids.positions, 1e-9)
    mean = np.average(resids.mean.astype(np.float64), axis=0, weights=weights)
    squares = float((norms.astype(np.float64) ** 2).sum())
    variance = squares - len(norms) * float(mean @ mean)
    unexplained = unexplained_share(float((errors.astype(np.float64) ** 2).sum()), variance)
    return float("inf") if unexplained is None else unexplained


def _layer_fitness(
    here: _Measurement, there: _Measurement | None, agreed: LayerAgreement | None
) -> LayerFitness:
    base: dict[str, Any] = {
        f"base_{name}": getattr(there, name, None) for name in ("fvu", "l0", "norm_median")
    }
    shared: dict[str, Any] = {
        name: getattr(agreed, name, None)
        for name in ("topk_jaccard", "top5_equal", "found_both", "found_either")
    }
    return LayerFitness(
        tokens=here.tokens,
        fvu=here.fvu,
        l0=here.l0,
        norm_median=here.norm_median,
        **base,
        **shared,
        masked_pos0=here.masked.pos0,
        masked_sinks=here.masked.sinks,
    )
