"""Tokens and norms of prompt sets: token efficiency, position 0 against the rest, sinks, and what to be wary of."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from saescope.analysis.cautions import Means, leading_tokens, many_sinks, position_0_drives
from saescope.analysis.pieces import Pieces, Sample, samples
from saescope.analysis.stats import Bools, Floats, Ints, bootstrap_mean
from saescope.errors import PromptError
from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.table import Table

SAMPLES = 3
_SAMPLED_PROMPTS = 200  # a set's words are looked for in its first prompts


@dataclass(frozen=True)
class LayerNorms:
    """One set's residual norms after one layer.

    Later positions leave sinks out, which `sinks` counts; `pos0_sinks` are the prompts whose first position is one.
    """

    pos0_norm_mean: float
    pos0_norm_median: float
    later_norm_mean: float | None
    later_norm_median: float | None
    with_pos0_norm_mean: float
    sinks: int
    pos0_sinks: int


@dataclass(frozen=True)
class Paired:
    """Tokens against the leanest paired set, prompt by prompt of one meaning: the mean ratio over `pairs` of them."""

    against: str
    pairs: int
    ratio: float
    ci: tuple[float, float] | None


@dataclass(frozen=True)
class SetProfile:
    """One set: its tokens, how many a prompt and against the leanest set, what they hold, its norms by layer."""

    prompts: int
    tokens: int
    tokens_per_prompt: float
    ratio: float
    paired: Paired | None
    bytes_per_token: float
    characters_per_token: float
    fragments: float
    samples: list[Sample]
    layers: dict[int, LayerNorms]


@dataclass(frozen=True)
class Sink:
    """A position whose norm is far over the median: in which layers, and how far in the one where it is furthest."""

    set: str
    prompt: str
    pos: int
    token: str
    layer: int
    norm: float
    ratio: float | None
    layers: tuple[int, ...]


@final
@dataclass(frozen=True)
class Profile(Table):
    """The answer to `profile`."""

    run: str
    sets: dict[str, SetProfile]
    sinks: list[Sink]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of `saescope profile`."""
        return {
            "sets": {
                name: {
                    **asdict(s),
                    "layers": {str(n): vars(norms) for n, norms in s.layers.items()},
                }
                for name, s in self.sets.items()
            },
            "sinks": [vars(sink) for sink in self.sinks],
            "warnings": self.warnings,
            "run": self.run,
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row a set and layer; `paired_ratio`, `paired_low` and `paired_high` are None where no pairs are shared."""
        return [
            {"set": name, **_flat(s), "layer": n, **vars(norms)}
            for name, s in self.sets.items()
            for n, norms in s.layers.items()
        ]


def _flat(one: SetProfile) -> dict[str, Any]:
    plain = {
        key: value for key, value in vars(one).items() if key not in ("paired", "samples", "layers")
    }
    low, high = one.paired.ci if one.paired and one.paired.ci else (None, None)
    ratio = one.paired.ratio if one.paired else None
    return {**plain, "paired_ratio": ratio, "paired_low": low, "paired_high": high}


def profile(
    run: Run,
    masking: Masking | None = None,
    *,
    layers: Sequence[int] | None = None,
    n_samples: int = SAMPLES,
    seed: int = 0,
) -> Profile:
    """Tokens and norms of every set of a run, in all of its layers or some.

    `n_samples` words a set are shown in their pieces; `seed` draws the bootstrap of the paired ratios. Raises
    PromptError for a negative `n_samples`, RunError for a layer the run does not hold.
    """
    if n_samples < 0:
        raise PromptError(f"--samples is {n_samples}: it must be at least 0")
    found = [
        _layer(run, masking or Masking(), layer) for layer in dict.fromkeys(layers or run.layers)
    ]
    by_set = _token_profiles(run, n_samples, seed)
    sets = {
        name: SetProfile(**of_tokens, layers={one.layer: one.norms[name] for one in found})
        for name, of_tokens in by_set.items()
    }
    warnings = leading_tokens(run) + [line for one in found for line in one.warnings]
    return Profile(run=str(run.path), sets=sets, sinks=_sinks(run, found), warnings=warnings)


# --- tokens


def _token_profiles(run: Run, n_samples: int, seed: int) -> dict[str, dict[str, Any]]:
    """What is said of each set without a layer: fields of SetProfile."""
    lengths = np.bincount(run.token_prompt, minlength=len(run.prompts))
    per_prompt = {
        name: float(lengths[run.set_of_prompt == i].mean()) for i, name in enumerate(run.sets)
    }
    paired = paired_ratios(run, lengths, per_prompt, seed)
    pieces = _pieces(run, lengths)
    return {
        name: {
            "prompts": len(group),
            "tokens": sum(len(one.data) for _, one in group),
            "tokens_per_prompt": per_prompt[name],
            "ratio": per_prompt[name] / min(per_prompt.values()),
            "paired": paired.get(name),
            **_held([one for _, one in group]),
            "samples": samples(group[:_SAMPLED_PROMPTS], n_samples),
        }
        for name, group in pieces.items()
    }


def _pieces(run: Run, lengths: Ints) -> dict[str, list[tuple[str, Pieces]]]:
    """Every set's prompts by id with their tokens."""
    ends = np.cumsum(lengths)
    made: dict[str, list[tuple[str, Pieces]]] = {name: [] for name in run.sets}
    for prompt, start, end in zip(run.prompts, ends - lengths, ends, strict=True):
        made[prompt.set].append(
            (prompt.id, Pieces.of(run.token_text[start:end], prompt.display_text))
        )
    return made


def _held(pieces: Sequence[Pieces]) -> dict[str, float]:
    """Bytes and characters a token, and the share of tokens that are no whole character."""
    tokens = sum(len(one.data) for one in pieces)
    return {
        "bytes_per_token": sum(len(data) for one in pieces for data in one.data) / tokens,
        "characters_per_token": sum(len(one.text) for one in pieces) / tokens,
        "fragments": sum(one.fragments for one in pieces) / tokens,
    }


def paired_ratios(
    run: Run, lengths: Ints, per_prompt: Mapping[str, float], seed: int
) -> dict[str, Paired]:
    """Every set's tokens against those of the leanest set that has pairs, over the pairs they share."""
    by_pair: defaultdict[str, dict[str, list[int]]] = defaultdict(dict)
    for prompt, n in zip(run.prompts, lengths, strict=True):
        if prompt.pair is not None:
            by_pair[prompt.set].setdefault(prompt.pair, []).append(int(n))
    sharing = [
        name for name, own in by_pair.items()
        if any(own.keys() & other.keys() for else_, other in by_pair.items() if else_ != name)
    ]  # fmt: skip
    if not sharing:
        return {}
    leanest = min(sharing, key=lambda name: per_prompt[name])
    return {
        name: one
        for name in sharing
        if (one := _paired(leanest, by_pair[name], by_pair[leanest], seed)) is not None
    }


def _paired(
    leanest: str, own: Mapping[str, Sequence[int]], lean: Mapping[str, Sequence[int]], seed: int
) -> Paired | None:
    ratios = np.array([np.mean(own[pair]) / np.mean(lean[pair]) for pair in own if pair in lean])
    if not len(ratios):
        return None
    ci = bootstrap_mean(ratios, seed) if len(ratios) > 1 else None
    return Paired(against=leanest, pairs=len(ratios), ratio=float(ratios.mean()), ci=ci)


# --- norms


@dataclass(frozen=True)
class _Layer:
    """One layer's norms by set, its sinks (rows of the token table), and what to be wary of."""

    layer: int
    median: float | None
    values: npt.NDArray[np.float32]
    sinks: Ints
    norms: dict[str, LayerNorms]
    warnings: list[str]


def _layer(run: Run, masking: Masking, layer: int) -> _Layer:
    values = run.features(layer).norms
    sinks = masking.apply(run.token_pos, values).sinks
    counted = (run.token_pos == 0) | (np.ones_like(sinks) if masking.keep_sinks else ~sinks)
    set_of_token = run.set_of_prompt[run.token_prompt]
    members = {name: set_of_token == i for i, name in enumerate(run.sets)}
    norms = {
        name: _norms(run.token_pos, values, sinks, counted, rows) for name, rows in members.items()
    }
    means = {
        name: Means(n.with_pos0_norm_mean, n.later_norm_mean)
        for name, n in norms.items()
        if n.later_norm_mean
    }
    later = [int((rows & (run.token_pos > 0)).sum()) for rows in members.values()]
    warnings = position_0_drives(layer, means)
    warnings += many_sinks(layer, run.sets, [n.sinks for n in norms.values()], later)
    return _Layer(
        layer, masking.median(run.token_pos, values), values, np.flatnonzero(sinks), norms, warnings
    )


def _norms(
    pos: Ints, norms: npt.NDArray[np.float32], sinks: Bools, counted: Bools, rows: Bools
) -> LayerNorms:
    first, later = (
        norms[rows & where].astype(np.float64) for where in (pos == 0, (pos > 0) & counted)
    )
    return LayerNorms(
        pos0_norm_mean=float(first.mean()),
        pos0_norm_median=float(np.median(first)),
        later_norm_mean=_or_none(later, np.mean),
        later_norm_median=_or_none(later, np.median),
        with_pos0_norm_mean=float(np.concatenate([first, later]).mean()),
        sinks=int((rows & (pos > 0) & sinks).sum()),
        pos0_sinks=int((rows & (pos == 0) & sinks).sum()),
    )


def _or_none(values: Floats, what: Callable[[Floats], Any]) -> float | None:
    return float(what(values)) if len(values) else None


def _sinks(run: Run, found: Sequence[_Layer]) -> list[Sink]:
    """All sinks, those after position 0 first, then by how far they are over the median."""
    layers: defaultdict[int, list[_Layer]] = defaultdict(list)
    for one in found:
        for row in one.sinks:
            layers[int(row)].append(one)
    sinks = [_sink(run, row, where) for row, where in layers.items()]
    return sorted(
        sinks, key=lambda sink: (sink.pos == 0, -(sink.ratio or np.inf), sink.prompt, sink.pos)
    )


def _sink(run: Run, row: int, where: Sequence[_Layer]) -> Sink:
    ratios = [float(one.values[row]) / one.median if one.median else None for one in where]
    furthest = max(range(len(where)), key=lambda n: ratios[n] or np.inf)
    prompt = run.prompts[run.token_prompt[row]]
    return Sink(
        set=prompt.set,
        prompt=prompt.id,
        pos=int(run.token_pos[row]),
        token=run.token_text[row],
        layer=where[furthest].layer,
        norm=float(where[furthest].values[row]),
        ratio=ratios[furthest],
        layers=tuple(one.layer for one in where),
    )
