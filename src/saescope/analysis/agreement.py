"""How far two runs of the same prompts agree, token by token.

The runs may differ in dtype, device, machine or model, and may have been made months apart: only
stored features are compared. A token's features are compared as sets; activations and norms, where
both runs have them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from saescope.analysis.contrast import ContrastSettings, contrast
from saescope.analysis.counts import count_fires
from saescope.analysis.safety import (
    LARGEST_RATE_DIFF,
    LARGEST_VALUE_DIFF,
    SafeUse,
    at_least,
    at_most,
    verdict,
)
from saescope.analysis.token_agreement import (
    TINY,
    Overlap,
    overlap_of,
    relative_difference,
    same_top,
    ties,
)
from saescope.errors import RunError
from saescope.store.arrays import Bools, Float32s, Floats, Ints
from saescope.store.masking import Masking
from saescope.store.run_positions import run_positions
from saescope.store.runs import Run
from saescope.table import Table

_N_CONFIRMED = 1000  # features per set whose confirmation is compared


def agreement(
    a: Run, b: Run, masking: Masking | None = None, *, n_worst: int = 5, seed: int = 0
) -> "Agreement":
    """Compare two runs of the same prompts and tokens in the layers that both have.

    Positions count if they do in both runs. Raises RunError if the runs do not have the same
    tokens, or no layer in common.

    >>> import tempfile
    >>> import saescope as ss
    >>> lm = ss.load_lm("saescope-tiny", [2])
    >>> saes = [ss.load_sae("saescope-tiny-sae", 2)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     a = ss.extract(lm, saes, ss.bundled_prompts()[:1], f"{folder}/a")
    ...     b = ss.extract(lm, saes, ss.bundled_prompts()[:1], f"{folder}/b", batch_tokens=64)
    ...     ss.agreement(a, b).layers[2].topk_equal
    1.0
    """
    check_same_tokens(a, b)
    layers = [layer for layer in a.layers if layer in b.layers]
    if not layers:
        raise RunError(f"{a.path} and {b.path} have no layer in common")
    masking = masking or Masking()
    settings = ContrastSettings(n_top=_N_CONFIRMED, shuffles=0, seed=seed, masking=masking)
    confirmed_a, confirmed_b = (_confirmed(run, layers, settings) for run in (a, b))
    results = {}
    for layer in layers:
        pair = _LayerPair(a, b, layer, masking)
        confirmed = confirmed_a[layer], confirmed_b[layer]
        resid_diff = _resid_diff(a.resids(layer).last, b.resids(layer).last)
        results[layer] = _compare(pair, resid_diff, confirmed, n_worst)
    return Agreement(
        a=str(a.path),
        b=str(b.path),
        what_a=_difference(a, b),
        what_b=_difference(b, a),
        layers=results,
    )


@final
@dataclass(frozen=True, repr=False)
class Agreement(Table):
    """The result of `precision`: run `a` is the reference that run `b` is compared with.

    `what_a` and `what_b` name what differs between the runs, such as a dtype.
    """

    shown = "layer tokens top1_equal top5_equal topk_jaccard act_rel_diff rate_diff ties"

    a: str
    b: str
    what_a: str
    what_b: str
    layers: dict[int, "LayerAgreement"]

    @property
    def verdicts(self) -> dict[int, str]:
        """What may be concluded from run b, one line per layer."""
        return {n: layer.verdict(self.what_b) for n, layer in self.layers.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-compatible dict that `saescope precision --json` prints."""
        layers = {}
        for n, layer in self.layers.items():
            layers[str(n)] = {**layer.to_dict(), "verdict": self.verdicts[n]}
        return {
            "a": {"run": self.a, "what": self.what_a},
            "b": {"run": self.b, "what": self.what_b},
            "layers": layers,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per layer."""
        rows = []
        for n, layer in self.layers.items():
            row = {"layer": n, **vars(layer)}
            del row["worst"]
            rows.append(row)
        return rows


@dataclass(frozen=True)
class LayerAgreement:
    """One layer over the scored positions of both runs.

    Shares of tokens: `top1_equal`, `top5_equal` and `topk_equal` (the same features among the
    strongest, in any order), `ties` and `ties_bfloat16` (the k-th and the next pre-activation are
    equal, as they are or rounded). Medians: `act_rel_diff` over features that fire in both,
    `norm_rel_diff` over tokens, `resid_rel_diff` (|a - b| / |a| of the last position's residual)
    over prompts. `rate_diff` is the largest difference of any feature's rate in any set. Of
    `found_either` features that a contrast of one run or the other confirms, `found_both` are
    confirmed by both.
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
    worst: list["WorstPrompt"]

    @property
    def uses(self) -> list[SafeUse]:
        """What the second run may be used for, each with the measured figure and its limit."""
        points, value = 100 * self.rate_diff, 100 * self.act_rel_diff
        rates = f"rates (differ by at most {points:.1f} points"
        values = f"values (activations differ by {value:.2g} % in the median"
        uses = [at_most("rates", rates, self.rate_diff, LARGEST_RATE_DIFF, " points")]
        if self.found_either:
            both = f"best features ({self.found_both} of {self.found_either} confirmed by both"
            uses.append(at_least("best_features", both, self.found_both / self.found_either))
        uses.append(at_most("values", values, self.act_rel_diff, LARGEST_VALUE_DIFF))
        top5 = f"the five strongest features of a token (the same on {_percent(self.top5_equal)}"
        topk = f"the whole top k of a token (the same on {_percent(self.topk_equal)}"
        uses.append(at_least("top5", top5, self.top5_equal))
        uses.append(at_least("topk", topk, self.topk_equal))
        return uses

    def verdict(self, what: str) -> str:
        """Return what the second run, which differs by `what`, allows to conclude."""
        return verdict(what, self.uses)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        values = dict(vars(self))
        values["masked"] = {"pos0": values.pop("masked_pos0"), "sinks": values.pop("masked_sinks")}
        values["worst"] = [vars(prompt) for prompt in values.pop("worst")]
        values["safe_for"] = {use.name: use.to_dict() for use in self.uses}
        return values


def _percent(share: float) -> str:
    return f"{100 * share:.0f} % of tokens"


@dataclass(frozen=True)
class WorstPrompt:
    """A prompt on which the runs agree least."""

    id: str
    set: str
    text: str
    topk_jaccard: float
    act_rel_diff: float


def check_same_tokens(a: Run, b: Run) -> None:
    """Raise RunError unless both runs have the same prompts and the same tokens."""
    ids_a, ids_b = ([prompt.id for prompt in run.prompts] for run in (a, b))
    if a.sets != b.sets or ids_a != ids_b:
        raise RunError(
            f"{a.path} and {b.path} have different prompts: compare two runs of the same sets"
        )
    same_ids = np.array_equal(a.token_id, b.token_id)
    if not (same_ids and np.array_equal(a.token_prompt, b.token_prompt)):
        raise RunError(
            f"{a.path} and {b.path} have different tokens: their models do not share a tokenizer"
        )


def _difference(run: Run, other: Run) -> str:
    """Return a name that tells this run from the other one: the first field that differs."""
    job, other_job = run.manifest["job"], other.manifest["job"]
    names = [job[key] for key in ("dtype", "device") if job[key] != other_job[key]]
    if run.model.fingerprint != other.model.fingerprint:
        names.insert(0, run.model.repo)
    return " on ".join(names) or f"{job['dtype']} on {job['device']}"


def _confirmed(
    run: Run, layers: Sequence[int], settings: ContrastSettings
) -> Mapping[int, set[tuple[str, Any]]]:
    """Return the confirmed (set, feature) pairs of each layer."""
    confirmed: dict[int, set[tuple[str, Any]]] = {layer: set() for layer in layers}
    if len(run.sets) < 2:
        return confirmed
    for layer, result in contrast(run, settings, layers=layers).layers.items():
        for name, in_set in result.sets.items():
            confirmed[layer] |= {(name, f.feature) for f in in_set.features if f.confirmed}
    return confirmed


class _LayerPair:
    """One layer of both runs, and the positions that count in both."""

    def __init__(self, run: Run, other: Run, layer: int, masking: Masking) -> None:
        self.run, self.layer = run, layer
        self.a, self.b = run.features(layer), other.features(layer)
        positions_a, positions_b = (run_positions(r, masking)[layer] for r in (run, other))
        self.scored = positions_a.scored & positions_b.scored
        self.masked_pos0 = positions_a.masked_pos0
        self.masked_sinks = int((masking.candidates(run.token_pos) & ~self.scored).sum())
        if not self.scored.any():
            raise RunError(
                f"{run.path} has no scored position (position 0 and sinks do not count): "
                "set keep_pos0=True"
            )


def _compare(
    pair: _LayerPair,
    resid_diff: float,
    confirmed: tuple[set[tuple[str, Any]], set[tuple[str, Any]]],
    n_worst: int,
) -> LayerAgreement:
    a, b, scored = pair.a, pair.b, pair.scored
    overlap = overlap_of(a, b, scored)
    confirmed_a, confirmed_b = confirmed
    act_diff = overlap.act_diff if len(overlap.act_diff) else np.zeros(1)
    return LayerAgreement(
        tokens=int(scored.sum()),
        top1_equal=same_top(a, b, scored, 1),
        top5_equal=same_top(a, b, scored, 5),
        topk_equal=float((overlap.jaccard == 1).mean()),
        topk_jaccard=float(overlap.jaccard.mean()),
        act_rel_diff=float(np.median(act_diff)),
        act_rel_diff_p99=float(np.quantile(act_diff, 0.99)),
        norm_rel_diff=float(np.median(relative_difference(a.norms[scored], b.norms[scored]))),
        resid_rel_diff=resid_diff,
        ties=ties(a, scored, rounded=False),
        ties_bfloat16=ties(a, scored, rounded=True),
        rate_diff=_rate_diff(pair),
        found_both=len(confirmed_a & confirmed_b),
        found_either=len(confirmed_a | confirmed_b),
        masked_pos0=pair.masked_pos0,
        masked_sinks=pair.masked_sinks,
        worst=_worst(pair.run, scored, overlap, n_worst),
    )


def _resid_diff(a: Float32s, b: Float32s) -> float:
    """Return the median over prompts of |a - b| / |a|."""
    norms = np.maximum(np.linalg.norm(a, axis=1), TINY)
    return float(np.median(np.linalg.norm(a - b, axis=1) / norms))


def _rate_diff(pair: _LayerPair) -> float:
    counts_a, counts_b = (count_fires(pair.run, f, pair.scored) for f in (pair.a, pair.b))
    features = np.union1d(counts_a.features, counts_b.features)
    diff = np.zeros((counts_a.n_sets, len(features)))
    diff[:, np.searchsorted(features, counts_a.features)] += counts_a.rates()
    diff[:, np.searchsorted(features, counts_b.features)] -= counts_b.rates()
    return float(np.abs(diff).max(initial=0.0))


def _worst(run: Run, scored: Bools, overlap: Overlap, n: int) -> list[WorstPrompt]:
    n_prompts = len(run.prompts)
    jaccard, n_scored = _prompt_means(run.token_prompt[scored], overlap.jaccard, n_prompts)
    act_diff, _ = _prompt_means(run.token_prompt[overlap.token], overlap.act_diff, n_prompts)
    ranked = np.argsort(np.where(n_scored > 0, jaccard, np.inf), kind="stable")
    worst = []
    for index in ranked[: min(n, int((n_scored > 0).sum()))].tolist():
        prompt = run.prompts[index]
        figures = float(jaccard[index]), float(act_diff[index])
        worst.append(WorstPrompt(prompt.id, prompt.set, prompt.display_text, *figures))
    return worst


def _prompt_means(prompt: Ints, values: Floats, n_prompts: int) -> tuple[Floats, Ints]:
    """Return the mean of values per prompt, and their number."""
    counts = np.bincount(prompt, minlength=n_prompts)
    sums = np.bincount(prompt, weights=values, minlength=n_prompts)
    return sums / np.maximum(counts, 1), counts
