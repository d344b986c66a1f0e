"""How far two runs of the same prompts agree: another dtype, device, machine or model, token by token.

Everything is asked of stored features; the runs may have been made months apart. A token's features are compared as
sets; activations and norms where both runs have them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from saescope.analysis.contrast import ContrastSettings, contrast
from saescope.analysis.counts import count_fires
from saescope.analysis.stats import Bools, Floats, Ints
from saescope.errors import RunError
from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.store.tables import LayerFeatures
from saescope.table import Table

SAFE_TOP5, SAFE_RATE = 0.9, 0.05
_CHUNK = 8192


@dataclass(frozen=True)
class WorstPrompt:
    """A prompt on which the runs agree least."""

    id: str
    set: str
    text: str
    topk_jaccard: float
    act_rel_diff: float


@dataclass(frozen=True)
class LayerAgreement:
    """One layer over the scored positions of both runs.

    Shares of tokens: `top1_equal`, `top5_equal` and `topk_equal` (the same features among the strongest, in any order),
    `ties` and `ties_bfloat16` (the k-th and the next pre-activation are one number, as they are or rounded).
    Medians: `act_rel_diff` over features that fire in both, `norm_rel_diff` over tokens, `resid_rel_diff`
    (|a - b| / |a| of the last position's residual) over prompts. `rate_diff` is the largest difference of any feature's
    rate in any set; `found_both` of `found_either` features are confirmed by a contrast of each run.
    """

    tokens: int
    top1_equal: float
    top5_equal: float
    topk_equal: float
    topk_jaccard: float
    act_rel_diff: float
    act_rel_diff_p99: float
    norm_rel_diff: float
    resid_rel_diff: float
    ties: float
    ties_bfloat16: float
    rate_diff: float
    found_both: int
    found_either: int
    masked_pos0: int
    masked_sinks: int
    worst: list[WorstPrompt]

    @property
    def rates_agree(self) -> bool:
        """Whether no rate differs by more than 5 points."""
        return self.rate_diff <= SAFE_RATE

    @property
    def tokens_agree(self) -> bool:
        """Whether nine tokens in ten have the same five strongest features."""
        return self.top5_equal >= SAFE_TOP5


@final
@dataclass(frozen=True)
class Agreement(Table):
    """The answer to `precision`: run `a` is what run `b` is judged by."""

    a: str
    b: str
    what_a: str
    what_b: str
    layers: dict[int, LayerAgreement]

    @property
    def verdicts(self) -> dict[int, str]:
        """One line a layer: what may be concluded from run b."""
        return {layer: _verdict(self.what_b, found) for layer, found in self.layers.items()}

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of `saescope precision`."""
        return {
            "a": {"run": self.a, "what": self.what_a},
            "b": {"run": self.b, "what": self.what_b},
            "layers": {
                str(layer): {
                    **{
                        key: value
                        for key, value in vars(found).items()
                        if key not in ("worst", *_MASKED)
                    },
                    "masked": {"pos0": found.masked_pos0, "sinks": found.masked_sinks},
                    "worst": [vars(prompt) for prompt in found.worst],
                    "verdict": self.verdicts[layer],
                }
                for layer, found in self.layers.items()
            },
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row a layer."""
        return [
            {"layer": layer, **{key: value for key, value in vars(found).items() if key != "worst"}}
            for layer, found in self.layers.items()
        ]


_MASKED = ("masked_pos0", "masked_sinks")


def _verdict(what: str, found: LayerAgreement) -> str:
    rates = f"rates differ by at most {100 * found.rate_diff:.1f} points"
    tokens = f"{100 * found.top5_equal:.0f} % of tokens have the same five strongest features"
    if found.rates_agree and found.tokens_agree:
        return f"{what} is safe here: {rates}, {tokens}"
    if found.rates_agree:
        return f"{what} is safe for rates, not for single tokens: {rates}, but only {tokens}"
    return f"{what} is not safe here: {rates}, {tokens}"


def agreement(
    a: Run, b: Run, masking: Masking | None = None, *, n_worst: int = 5, seed: int = 0
) -> Agreement:
    """Compare two runs of the same prompts and tokens in the layers that both have.

    Positions count where they do in both runs. Raises RunError where the runs have not the same tokens.
    """
    refuse_other_tokens(a, b)
    layers = [layer for layer in a.layers if layer in b.layers]
    if not layers:
        raise RunError(f"{a.path} and {b.path} have no layer in common")
    rule = masking or Masking()
    settings = ContrastSettings(shuffles=0, seed=seed, masking=rule, n_top=1000)
    found = [_confirmed(run, layers, settings) for run in (a, b)]
    return Agreement(
        a=str(a.path),
        b=str(b.path),
        what_a=_what(a, b),
        what_b=_what(b, a),
        layers={
            layer: _layer(a, b, layer, rule, (found[0][layer], found[1][layer]), n_worst)
            for layer in layers
        },
    )


def refuse_other_tokens(a: Run, b: Run) -> None:
    """Raises RunError unless both runs have the same prompts and the same tokens."""
    if a.sets != b.sets or [p.id for p in a.prompts] != [p.id for p in b.prompts]:
        raise RunError(
            f"{a.path} and {b.path} have different prompts: compare two runs of the same sets"
        )
    if not (
        np.array_equal(a.token_id, b.token_id) and np.array_equal(a.token_prompt, b.token_prompt)
    ):
        raise RunError(
            f"{a.path} and {b.path} have different tokens: their models do not share a tokenizer"
        )


def _what(run: Run, other: Run) -> str:
    """What a person calls this run beside the other one: what differs first."""
    job, beside = run.manifest["job"], other.manifest["job"]
    names = [job[key] for key in ("dtype", "device") if job[key] != beside[key]]
    if run.model.fingerprint != other.model.fingerprint:
        names.insert(0, run.model.repo)
    return " on ".join(names) or f"{job['dtype']} on {job['device']}"


def _confirmed(
    run: Run, layers: Sequence[int], settings: ContrastSettings
) -> dict[int, set[tuple[str, int]]]:
    if len(run.sets) < 2:
        return {layer: set() for layer in layers}
    found = contrast(run, settings, layers=layers).layers
    return {
        layer: {
            (name, f.feature.id)
            for name, one in found[layer].sets.items()
            for f in one.features
            if f.confirmed
        }
        for layer in layers
    }


def _layer(
    a: Run,
    b: Run,
    layer: int,
    rule: Masking,
    confirmed: tuple[set[tuple[str, int]], set[tuple[str, int]]],
    n_worst: int,
) -> LayerAgreement:
    one, two = a.features(layer), b.features(layer)
    positions = [rule.apply(a.token_pos, features.norms) for features in (one, two)]
    scored = positions[0].scored & positions[1].scored
    if not scored.any():
        raise RunError(
            f"{a.path} has no scored position (position 0 and sinks do not count): use --keep-pos0"
        )
    jaccard, diffs, token = _overlap(one, two, scored)
    resid_a, resid_b = a.resids(layer).last, b.resids(layer).last
    return LayerAgreement(
        tokens=int(scored.sum()),
        top1_equal=_same_top(one, two, scored, 1),
        top5_equal=_same_top(one, two, scored, 5),
        topk_equal=float((jaccard == 1).mean()),
        topk_jaccard=float(jaccard.mean()),
        act_rel_diff=float(np.median(diffs)) if len(diffs) else 0.0,
        act_rel_diff_p99=float(np.quantile(diffs, 0.99)) if len(diffs) else 0.0,
        norm_rel_diff=float(np.median(_relative(one.norms[scored], two.norms[scored]))),
        resid_rel_diff=float(
            np.median(
                np.linalg.norm(resid_a - resid_b, axis=1)
                / np.maximum(np.linalg.norm(resid_a, axis=1), 1e-30)
            )
        ),
        ties=_ties(one, scored, rounded=False),
        ties_bfloat16=_ties(one, scored, rounded=True),
        rate_diff=_rate_diff(a, one, two, scored),
        found_both=len(confirmed[0] & confirmed[1]),
        found_either=len(confirmed[0] | confirmed[1]),
        masked_pos0=positions[0].masked_pos0,
        masked_sinks=int((rule.candidates(a.token_pos) & ~scored).sum()),
        worst=_worst(a, scored, jaccard, diffs, token, n_worst),
    )


def _overlap(
    one: LayerFeatures, two: LayerFeatures, scored: Bools
) -> tuple[Floats, Floats, npt.NDArray[np.intp]]:
    """Jaccard of each scored token's features; relative differences of shared ones, and which token each belongs to."""
    jaccards, diffs, tokens = [], [], []
    rows = np.flatnonzero(scored)
    for block in np.split(rows, np.arange(_CHUNK, len(rows), _CHUNK)):
        a, b = one.take(block), two.take(block)
        shared, in_a, in_b = np.intersect1d(
            _keys(a), _keys(b), assume_unique=True, return_indices=True
        )
        of = shared >> 32
        both = np.bincount(of, minlength=len(block))
        either = a.counts + b.counts - both
        jaccards.append(np.where(either > 0, both / np.maximum(either, 1), 1.0))
        diffs.append(_relative(a.acts[in_a], b.acts[in_b]))
        tokens.append(block[of])
    return np.concatenate(jaccards), np.concatenate(diffs), np.concatenate(tokens)


def _keys(features: LayerFeatures) -> Ints:
    """A number for every token and feature that fires on it."""
    return np.asarray((features.token << 32) | features.ids.astype(np.int64))


def _relative(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Floats:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.asarray(np.abs(a - b) / np.maximum(np.maximum(np.abs(a), np.abs(b)), 1e-30))


def _same_top(one: LayerFeatures, two: LayerFeatures, scored: Bools, n: int) -> float:
    firsts = [np.sort(features.strongest(n)[scored], axis=1) for features in (one, two)]
    return float((firsts[0] == firsts[1]).all(axis=1).mean())


def _ties(features: LayerFeatures, scored: Bools, *, rounded: bool) -> float:
    """Share of tokens whose weakest firing and strongest silent feature have the same pre-activation."""
    some = scored & (features.counts > 0)
    last, border = features.acts[features.starts[1:][some] - 1], features.next_pre_act[some]
    same = _bfloat16(last) == _bfloat16(border) if rounded else last == border
    return float(same.sum() / scored.sum())


def _bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """The upper 16 bits after rounding to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return np.asarray((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, np.uint32)


def _rate_diff(run: Run, one: LayerFeatures, two: LayerFeatures, scored: Bools) -> float:
    counts = [count_fires(run, features, scored) for features in (one, two)]
    features = np.union1d(counts[0].features, counts[1].features)
    rates = []
    for part in counts:
        full = np.zeros((part.n_sets, len(features)))
        full[:, np.searchsorted(features, part.features)] = part.rates()
        rates.append(full)
    return float(np.abs(rates[0] - rates[1]).max(initial=0.0))


def _worst(
    run: Run, scored: Bools, jaccard: Floats, diffs: Floats, token: npt.NDArray[np.intp], n: int
) -> list[WorstPrompt]:
    prompt, total = run.token_prompt[scored], len(run.prompts)
    count = np.bincount(prompt, minlength=total)
    agreed = np.bincount(prompt, weights=jaccard, minlength=total) / np.maximum(count, 1)
    shared = np.bincount(run.token_prompt[token], minlength=total)
    differ = np.bincount(run.token_prompt[token], weights=diffs, minlength=total) / np.maximum(
        shared, 1
    )
    ranked = [
        int(p) for p in np.argsort(np.where(count > 0, agreed, np.inf), kind="stable") if count[p]
    ]
    return [
        WorstPrompt(
            run.prompts[p].id,
            run.prompts[p].set,
            run.prompts[p].display_text,
            float(agreed[p]),
            float(differ[p]),
        )
        for p in ranked[:n]
    ]
