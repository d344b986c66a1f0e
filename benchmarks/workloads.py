"""The prompts to compute: invented words of one token each, the same in every run."""

import random
from dataclasses import dataclass

from benchmarks.words import words

# Mean tokens per prompt in the article's 4 sets of 15: Chinese, English, Japanese, code.
_ARTICLE_MEANS = (5.3, 7.3, 8.5, 10.9)
_SHORTEST, _LONGEST = 4, 15


@dataclass(frozen=True)
class Workload:
    """A named list of prompts, defined by their lengths in tokens."""

    name: str
    title: str
    lengths: tuple[int, ...]

    def texts(self, vocab: int) -> list[str]:
        """The prompts as text, in words of a vocabulary of this size."""
        rng, known = random.Random(self.name), words(vocab)
        return ["".join(rng.choices(known, k=length)) for length in self.lengths]


def _article_lengths() -> tuple[int, ...]:
    rng = random.Random(0)
    drawn = [round(rng.gauss(mean, 1.8)) for mean in _ARTICLE_MEANS for _ in range(15)]
    return tuple(min(max(length, _SHORTEST), _LONGEST) for length in drawn)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("short", "60 prompts of 4 to 15 tokens", _article_lengths()),
        Workload("medium", "24 prompts of 64 tokens", (64,) * 24),
        Workload("many", "200 prompts of 64 tokens", (64,) * 200),
    )
}
