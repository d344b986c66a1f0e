"""The training text: documents of seven sets in equal shares, generated on demand."""

import random
from collections.abc import Iterator

from training import pycode
from training.grammar import text

CODE = "code"
SETS = (*text.LANGUAGES, CODE)


def documents(seed: int) -> Iterator[tuple[str, str]]:
    """Endless (set, document) pairs with a random set each time; a seed fixes the sequence."""
    rng = random.Random(seed)
    while True:
        name = rng.choice(SETS)
        if name == CODE:
            yield name, pycode.document(rng)
        else:
            yield name, text.document(name, rng)
