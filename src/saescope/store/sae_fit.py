"""How well an SAE fits the residuals of a run: explained variance, L0, and what is out of range.

Every run and every scan records it, so that features of an SAE that belongs to another layer or
model are not taken for findings. Figures count scored positions under the default masking: neither
position 0 nor sinks, because no SAE is trained on them. The L0 counts all of them. The explained
variance counts a sample (`sample_tokens`), because reconstructing every token would take time.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt

from saescope.sources.catalog import SaeSpec
from saescope.store.arrays import Bools, Float32s, Indices
from saescope.store.tables import LayerFeatures

# At most so many positions of a layer are reconstructed.
SAMPLE = 256
# Published SAEs explain 0.6 to 0.95 of the variance. docs/statistics.md gives reasons for limits.
USUAL_EXPLAINED, LOW_EXPLAINED = "0.6 to 0.95", 0.3
# With fewer positions, the FVU is compared with this, times n / (n - 1).
_FEW_POSITIONS, _HIGH_FVU_OF_FEW = 16, 1.25
# A TopK SAE has fewer than k features only where pre-activations are not positive.
_LOW_SHARE_OF_K = 0.5
# An SAE with thresholds is compared with the L0 in its name, or else with the extremes.
L0_RATIO = 4.0
_LOW_L0, _HIGH_SHARE_OF_SAE, _HIGH_L0 = 1.0, 0.1, 100.0
_L0_IN_NAME = re.compile(r"(?:average_)?l0[_-](\d+)", re.IGNORECASE)
_LINES_SHOWN = 4
_GOLDEN = (5**0.5 - 1) / 2

_SO = "so its features may mean nothing here"
_CHECK = "check that it was trained on this layer, this model and this scale of the residual"


# Measures a layer from its features, its sampled residuals and which tokens are scored (tokens,),
# all in prompt order.
MeasureFit = Callable[[int, LayerFeatures, Float32s, Bools], "SaeFit"]


def sample_tokens(lengths: Sequence[int], n: int = SAMPLE) -> Indices:
    """Return at most `n` tokens after position 0, spread evenly over prompts of these lengths.

    The tokens are indices in prompt order, ascending. They depend on nothing but the lengths, so
    that a repeated or resumed job measures the same ones. Golden-ratio steps within equal strata
    keep prompts of equal lengths from contributing the same position each.

    >>> sample_tokens([4, 1, 3]).tolist()
    [1, 2, 3, 6, 7]
    """
    candidates = np.flatnonzero(positions_of(lengths) > 0)
    if len(candidates) <= n:
        return candidates
    strata = np.arange(n + 1) * len(candidates) // n
    offsets = np.arange(n) * _GOLDEN % 1 * np.diff(strata)
    return candidates[strata[:-1] + offsets.astype(np.intp)]


def sample_order(token_order: Indices, lengths: Sequence[int]) -> Indices:
    """Return what sorts sampled tokens into prompt order that were computed in `token_order`."""
    return np.argsort(token_order[np.isin(token_order, sample_tokens(lengths))])


def positions_of(lengths: Sequence[int]) -> Indices:
    """Return each token's position in its prompt, for prompts of these lengths, (tokens,)."""
    starts = np.cumsum(lengths, dtype=np.intp) - np.array(lengths, dtype=np.intp)
    return np.arange(sum(lengths)) - np.repeat(starts, lengths)


def total_variance(resid: npt.NDArray[np.floating[Any]]) -> float:
    """Return the summed squared distances of residuals (n, d_model) from their mean."""
    wide = resid.astype(np.float64)
    return float(((wide - wide.mean(0)) ** 2).sum())


def unexplained_share(squared_error: float, variance: float) -> float | None:
    """Return the fraction of variance unexplained (FVU); None if the residuals do not vary."""
    if variance <= 0:
        return None
    return squared_error / variance


@final
@dataclass(frozen=True)
class SaeFit:
    """One layer: features per scored position (L0), and the explained variance of a sample.

    `positions` counts all scored positions, `measured` those that were reconstructed.
    `explained_variance` is 1 - FVU. It is None without a decoder, or if the measured residuals do
    not vary.
    """

    positions: int
    l0: float | None
    measured: int
    explained_variance: float | None

    @classmethod
    def measure(
        cls, counts: npt.NDArray[np.int32], resid: Float32s, reconstruction: Float32s | None
    ) -> "SaeFit":
        """Measure from the features per scored position and from reconstructed residuals.

        `reconstruction` is None for an SAE without a decoder.

        >>> import numpy as np
        >>> resid = np.array([[1.0, 0.0], [-1.0, 0.0]], np.float32)
        >>> SaeFit.measure(np.array([2, 4, 3], np.int32), resid, resid / 2)
        SaeFit(positions=3, l0=3.0, measured=2, explained_variance=0.75)
        """
        explained = None
        if reconstruction is not None and len(resid):
            error = resid.astype(np.float64) - reconstruction
            unexplained = unexplained_share(float((error**2).sum()), total_variance(resid))
            if unexplained is not None:
                explained = 1 - unexplained
        return cls(
            positions=len(counts),
            l0=float(counts.mean()) if len(counts) else None,
            measured=0 if reconstruction is None else len(resid),
            explained_variance=explained,
        )

    def misfit(self, sae: SaeSpec) -> "Misfit | None":
        """Return what is out of range for this kind of SAE; None if nothing is."""
        facts = []
        explained = self.explained_variance
        if explained is not None and explained < self._lowest_explained:
            facts.append(f"explained variance {explained:.2f} (usual: {USUAL_EXPLAINED})")
        expected = _expected_l0(self.l0, sae)
        if expected:
            facts.append(f"{self.l0:,.4g} features per token ({expected})")
        if not facts:
            return None
        is_poor = not expected and explained is not None and explained >= 0
        return Misfit("fits poorly" if is_poor else "does not fit", ", ".join(facts), explained)

    @property
    def _lowest_explained(self) -> float:
        """The limit of the explained variance; a few tokens vary less than text does."""
        if self.measured >= _FEW_POSITIONS:
            return LOW_EXPLAINED
        return 1 - _HIGH_FVU_OF_FEW * self.measured / max(1, self.measured - 1)


class Misfit(NamedTuple):
    """What is wrong with the fit of a layer's SAE, in words."""

    verdict: str
    facts: str
    explained_variance: float | None

    @property
    def badness(self) -> float:
        """Sorts misfits; those known by their number of features alone come first."""
        return -np.inf if self.explained_variance is None else self.explained_variance


def _expected_l0(l0: float | None, sae: SaeSpec) -> str:
    """Return which L0 is expected of this SAE if the measured one is out of range, or ""."""
    if l0 is None:
        return ""
    if sae.k is not None:
        return f"k is {sae.k}" if l0 < _LOW_SHARE_OF_K * sae.k else ""
    named = _L0_IN_NAME.search(f"{sae.release}/{sae.path}")
    if named and int(named[1]) > 0:
        expected = int(named[1])
        is_near = expected / L0_RATIO <= l0 <= expected * L0_RATIO
        return "" if is_near else f"its name says {expected:,}"
    highest = max(_HIGH_L0, _HIGH_SHARE_OF_SAE * sae.d_sae)
    is_usual = _LOW_L0 <= l0 <= highest
    return "" if is_usual else f"usual: {_LOW_L0:g} to {highest:,.0f} of {sae.d_sae:,}"


@final
@dataclass(frozen=True)
class SaeFits:
    """The fit of every layer's SAE, None where a run of an earlier version did not record it."""

    layers: Mapping[int, SaeFit | None]
    saes: Mapping[int, SaeSpec]

    @property
    def warnings(self) -> list[str]:
        """What is out of range: one line per layer, or one line in all if there are many."""
        lines = self._lines()
        if len(lines) <= _LINES_SHOWN:
            return list(lines.values())
        misfits = self._misfits()
        worst = min(misfits, key=lambda layer: misfits[layer].badness)
        facts = misfits[worst].facts
        return [
            f"{len(misfits)} of {len(self.layers)} layers ({number_ranges(sorted(misfits))}): "
            f"the SAE does not fit or fits poorly, {_SO}; worst in layer {worst}: {facts}; {_CHECK}"
        ]

    @property
    def unrecorded(self) -> list[int]:
        """Layers whose fit is not recorded."""
        return [layer for layer, fit in self.layers.items() if fit is None]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of `sae_fit`: figures and warning per layer, null if not recorded."""
        lines = self._lines()
        document: dict[str, Any] = {}
        for layer, fit in self.layers.items():
            document[str(layer)] = None
            if fit is not None:
                document[str(layer)] = {**asdict(fit), "warning": lines.get(layer)}
        return document

    def _lines(self) -> dict[int, str]:
        return {
            layer: f"layer {layer}: the SAE {misfit.verdict}, {_SO}: {misfit.facts}; {_CHECK}"
            for layer, misfit in self._misfits().items()
        }

    def _misfits(self) -> dict[int, Misfit]:
        misfits = {}
        for layer, fit in self.layers.items():
            misfit = None if fit is None else fit.misfit(self.saes[layer])
            if misfit is not None:
                misfits[layer] = misfit
        return misfits


def number_ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers as ranges.

    >>> number_ranges([0, 1, 2, 5])
    '0-2, 5'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
