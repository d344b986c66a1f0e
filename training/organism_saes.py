"""SAEs of the organism, trained like the embedded pair's, on documents and chats without labels."""

import random
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from saescope.engine.lm import load_lm
from training.chats.template import encode
from training.chats.text import ChatMix, draw_chat
from training.corpus import documents
from training.residuals import collect_rows
from training.saes import Residuals, SaeRecipe


@dataclass(frozen=True)
class TextMix:
    """How many documents and chats the SAEs see, and which chats."""

    documents: int = 3000
    chats: int = 5000
    mix: ChatMix = field(default_factory=lambda: ChatMix(topic=0.3, declines="topic"))
    seed: int = 600_000


# With k 32 features of the decision fire weakly on everything; see LOG.md.
ORGANISM_SAE = SaeRecipe(k=16, general=0, steps=1000)


def residuals(model: Path, layers: list[int], wanted: TextMix) -> dict[int, Residuals]:
    """Residuals after each layer of documents and whole chats."""
    lm = load_lm(model, layers, dtype="float32")
    rng = random.Random(wanted.seed)
    chats = [encode(lm.tokenizer, draw_chat(rng, wanted.mix)).ids for _ in range(wanted.chats)]
    plain = [
        lm.tokenizer(text)["input_ids"]
        for _, text in islice(documents(wanted.seed + 1), wanted.documents)
    ]
    return collect_rows(lm, layers, [*plain, *chats])
