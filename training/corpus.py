"""The training text: documents of seven sets in equal shares, made as they are asked for."""

import random
from collections.abc import Iterator

from training import pycode
from training.grammar import text

CODE = "code"
SETS = (*text.LANGUAGES, CODE)


def documents(seed: int) -> Iterator[tuple[str, str]]:
    """Endless (set, document) pairs, a set drawn at random each time; one seed gives one sequence."""
    rng = random.Random(seed)
    while True:
        name = rng.choice(SETS)
        yield name, pycode.document(rng) if name == CODE else text.document(name, rng)
