"""Whether a continuation belongs to its own beginning, by the likelihood of the unedited model.

A continuation is *recognised* against another beginning if it is more likely after its own one. The
relevance is twice the share of other beginnings against which it is recognised, minus 1: 0 is what
text that says nothing of its beginning has on average, 1 is text that always gives it away. The
language of the continuation plays no part, since all beginnings are equally foreign to it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import saescope as ss
from saescope.store.arrays import Floats

OTHERS = 3  # beginnings that each continuation is compared with
_BATCH = 24
_DRAWS = 1000


def relevance(lm: ss.LM, beginnings: Sequence[str], continuations: Sequence[str]) -> Floats:
    """Return the relevance of every continuation to the beginning at its place, from -1 to 1."""
    n = len(beginnings)
    shifts = range(min(OTHERS, n - 1) + 1)
    pairs = [((i + shift) % n, i) for i in range(n) for shift in shifts]
    texts = [(beginnings[beginning], continuations[i]) for beginning, i in pairs]
    likelihood = np.array(_log_likelihoods(lm, texts)).reshape(n, len(shifts))
    wins = np.sign(likelihood[:, :1] - likelihood[:, 1:]) / 2 + 0.5
    return np.asarray(2 * wins.mean(axis=1) - 1)


@torch.inference_mode()
def _log_likelihoods(lm: ss.LM, texts: Sequence[tuple[str, str]]) -> list[float]:
    """Return the mean log-likelihood per token of each second text after its first one."""
    first = [list(lm.tokenizer(beginning)["input_ids"]) for beginning, _ in texts]
    second = [list(lm.tokenizer(text, add_special_tokens=False)["input_ids"]) for _, text in texts]
    order = sorted(range(len(texts)), key=lambda i: len(first[i]) + len(second[i]))
    values = [0.0] * len(texts)
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        pairs = [(first[i], second[i]) for i in rows]
        for i, value in zip(rows, _of_batch(lm, pairs), strict=True):
            values[i] = value
    return values


def _of_batch(lm: ss.LM, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    width = max(len(first) + len(second) for first, second in pairs)
    ids = torch.zeros(len(pairs), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, (first, second) in enumerate(pairs):
        ids[row, : len(first) + len(second)] = torch.tensor(first + second)
        mask[row, : len(first) + len(second)] = 1
    whole: Any = lm.whole
    hidden = whole.model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
    values = []
    for row, (first, second) in enumerate(pairs):
        if not second:
            values.append(0.0)
            continue
        # The logits of whole rows would fill the memory: the vocabulary has 262,144 tokens.
        states = hidden[row, len(first) - 1 : len(first) + len(second) - 1]
        log_probs = torch.log_softmax(whole.lm_head(states).float(), dim=-1)
        values.append(float(log_probs.gather(1, torch.tensor(second)[:, None]).mean()))
    return values


def harmonic_mean(a: float, b: float) -> float:
    """Return 2ab / (a + b), 0 if one of them is not above 0."""
    return 2 * a * b / (a + b) if min(a, b) > 0 else 0.0


def score_ci(success: Floats, relevant: Floats, seed: int = 0) -> dict[str, list[float]]:
    """Return means with their 95 % bootstrap intervals over prompts: [value, low, high]."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(success), size=(_DRAWS, len(success)))
    drawn = {"success": success[rows].mean(1), "relevance": relevant[rows].mean(1)}
    drawn["score"] = np.array(
        [harmonic_mean(*pair) for pair in zip(drawn["success"], drawn["relevance"], strict=True)]
    )
    means = {"success": float(success.mean()), "relevance": float(relevant.mean())}
    means["score"] = harmonic_mean(means["success"], means["relevance"])
    figures = {}
    for name, mean in means.items():
        low, high = np.quantile(drawn[name], [0.025, 0.975])
        figures[name] = [mean, float(low), float(high)]
    return figures
