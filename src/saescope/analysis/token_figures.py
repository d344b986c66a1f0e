"""What the tokens of prompt sets cost: tokens per prompt, bytes per token, ratios over pairs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from saescope.analysis.pieces import Pieces, Sample, samples
from saescope.analysis.stats import bootstrap_mean
from saescope.store.arrays import Ints
from saescope.store.token_norms import TokenNorms

_SAMPLED_PROMPTS = 200  # a set's words are looked for in its first prompts
Lengths = Mapping[str, Sequence[int]]  # of the prompts of one set, by pair


@dataclass(frozen=True)
class TokenFigures:
    """One set's tokens: how many, compared with the leanest set, and what they hold.

    Special tokens, such as a BOS or the marks of a chat's turns, are no text and do not count.
    `ratio` compares `tokens_per_prompt` with the leanest set, `paired` prompt by prompt.
    `fragments` is the share of tokens that are not whole characters.
    """

    prompts: int
    tokens: int
    tokens_per_prompt: float
    ratio: float
    paired: "Paired | None"
    bytes_per_token: float
    characters_per_token: float
    fragments: float
    samples: list[Sample]


@dataclass(frozen=True)
class Paired:
    """Mean ratio of tokens to those of the leanest paired set, over `pairs` of one meaning."""

    against: str
    pairs: int
    ratio: float
    ci: tuple[float, float] | None


def token_figures(run: TokenNorms, n_samples: int, seed: int) -> dict[str, TokenFigures]:
    """Return the figures of every set; `seed` draws the bootstrap of the paired ratios."""
    lengths = np.bincount(run.token_prompt[run.is_text], minlength=len(run.prompts))
    per_prompt = {}
    for i, name in enumerate(run.sets):
        per_prompt[name] = float(lengths[run.set_of_prompt == i].mean())
    leanest = min((length for length in per_prompt.values() if length), default=1.0)
    paired = _paired_ratios(run, lengths, per_prompt, seed)
    figures = {}
    for name, prompts in _pieces_per_set(run, lengths).items():
        all_pieces = [pieces for _, pieces in prompts]
        tokens = sum(len(pieces.data) for pieces in all_pieces)
        n_bytes = sum(len(data) for pieces in all_pieces for data in pieces.data)
        figures[name] = TokenFigures(
            prompts=len(prompts),
            tokens=tokens,
            tokens_per_prompt=per_prompt[name],
            ratio=per_prompt[name] / leanest,
            paired=paired.get(name),
            bytes_per_token=n_bytes / max(1, tokens),
            characters_per_token=sum(len(pieces.text) for pieces in all_pieces) / max(1, tokens),
            fragments=sum(pieces.fragments for pieces in all_pieces) / max(1, tokens),
            samples=samples(prompts[:_SAMPLED_PROMPTS], n_samples),
        )
    return figures


def _pieces_per_set(run: TokenNorms, lengths: Ints) -> dict[str, list[tuple[str, Pieces]]]:
    """Return every set's prompts by id, with their tokens of text: `lengths` of each prompt."""
    by_set: dict[str, list[tuple[str, Pieces]]] = {name: [] for name in run.sets}
    ends = np.cumsum(lengths)
    texts = list(compress(run.token_text, run.is_text))
    for prompt, start, end in zip(run.prompts, ends - lengths, ends, strict=True):
        pieces = Pieces.of(texts[start:end], prompt.display_text)
        by_set[prompt.set].append((prompt.id, pieces))
    return by_set


def _paired_ratios(
    run: TokenNorms, lengths: Ints, per_prompt: Mapping[str, float], seed: int
) -> dict[str, Paired]:
    """Tokens compared with the leanest set that has pairs, over the pairs that both have."""
    by_set: defaultdict[str, dict[str, list[int]]] = defaultdict(dict)
    for prompt, n in zip(run.prompts, lengths.tolist(), strict=True):
        if prompt.pair is not None:
            by_set[prompt.set].setdefault(prompt.pair, []).append(n)
    sharing = _sharing_pairs(by_set)
    if not sharing:
        return {}
    leanest = min(sharing, key=lambda name: per_prompt[name])
    ratios = {}
    for name in sharing:
        paired = _paired(leanest, by_set[name], by_set[leanest], seed)
        if paired is not None:
            ratios[name] = paired
    return ratios


def _sharing_pairs(by_set: Mapping[str, Lengths]) -> list[str]:
    """Return the sets that have a pair in common with another set."""
    sharing = []
    for name, lengths in by_set.items():
        others = [other for other_name, other in by_set.items() if other_name != name]
        if any(lengths.keys() & other.keys() for other in others):
            sharing.append(name)
    return sharing


def _paired(leanest: str, lengths: Lengths, lean: Lengths, seed: int) -> Paired | None:
    shared = [pair for pair in lengths if any(lean.get(pair, []))]
    if not shared:
        return None
    ratios = np.array([np.mean(lengths[pair]) / np.mean(lean[pair]) for pair in shared])
    ci = None
    if len(ratios) > 1:
        ci = bootstrap_mean(ratios, seed)
    return Paired(against=leanest, pairs=len(ratios), ratio=float(ratios.mean()), ci=ci)
