"""How far one layer's features of two runs agree on single tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from saescope.store.arrays import Bools, Float32s, Floats, Indices, Ints
from saescope.store.tables import LayerFeatures

TINY = 1e-30
_CHUNK = 8192  # tokens at a time


@dataclass(frozen=True)
class Overlap:
    """`jaccard` (scored,) of each token's features.

    `act_diff` (shared,) is the relative difference of each activation that both runs have, and
    `token` (shared,) the token that it belongs to.
    """

    jaccard: Floats
    act_diff: Floats
    token: Indices


def overlap_of(a: LayerFeatures, b: LayerFeatures, scored: Bools) -> Overlap:
    """Compare the features of every scored token as sets, and the activations that both have."""
    jaccards, diffs, tokens = [], [], []
    rows = np.flatnonzero(scored)
    for chunk in np.split(rows, np.arange(_CHUNK, len(rows), _CHUNK)):
        in_a, in_b = a.take(chunk), b.take(chunk)
        shared, at_a, at_b = np.intersect1d(
            _keys(in_a), _keys(in_b), assume_unique=True, return_indices=True
        )
        token = shared >> 32
        both = np.bincount(token, minlength=len(chunk))
        either = in_a.counts + in_b.counts - both
        jaccards.append(np.where(either > 0, both / np.maximum(either, 1), 1.0))
        diffs.append(relative_difference(in_a.acts[at_a], in_b.acts[at_b]))
        tokens.append(chunk[token])
    return Overlap(np.concatenate(jaccards), np.concatenate(diffs), np.concatenate(tokens))


def _keys(features: LayerFeatures) -> Ints:
    """Return a number for every pair of a token and a feature that fires on it."""
    return np.asarray((features.token << 32) | features.ids.astype(np.int64))


def relative_difference(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Floats:
    """Return |a - b| over the larger of |a| and |b|, elementwise."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    larger = np.maximum(np.abs(a), np.abs(b))
    return np.asarray(np.abs(a - b) / np.maximum(larger, TINY))


def same_top(a: LayerFeatures, b: LayerFeatures, scored: Bools, n: int) -> float:
    """Return the share of tokens with the same n strongest features, in any order."""
    top_a, top_b = (np.sort(features.strongest(n)[scored], axis=1) for features in (a, b))
    return float((top_a == top_b).all(axis=1).mean())


def ties(features: LayerFeatures, scored: Bools, *, rounded: bool) -> float:
    """Return the share of tokens whose weakest activation equals `next_pre_act`."""
    fires = scored & (features.counts > 0)
    weakest = features.acts[features.starts[1:][fires] - 1]
    next_pre_act = features.next_pre_act[fires]
    equal = weakest == next_pre_act
    if rounded:
        equal = bfloat16(weakest) == bfloat16(next_pre_act)
    return float(equal.sum() / scored.sum())


def bfloat16(values: Float32s) -> npt.NDArray[np.uint32]:
    """Return the upper 16 bits after rounding to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    odd = (bits >> 16) & 1
    return np.asarray((bits + 0x7FFF + odd) >> 16, np.uint32)
