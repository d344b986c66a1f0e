"""The bundled prompt sets: sentences and snippets that the training text cannot contain, paired over the languages."""

import json
from pathlib import Path

from training import pycode
from training.corpus import CODE
from training.grammar import text

N_PROMPTS = 36


def write_prompts(out: Path, seed: int = 0) -> None:
    """Write `N_PROMPTS` prompts a set as JSON lines with id, set, text and, for languages, pair."""
    rows = []
    pairs = text.paired_sentences(N_PROMPTS, seed)
    for language in text.LANGUAGES:
        for n, pair in enumerate(pairs, 1):
            rows.append({"id": f"{language}-{n:02}", "set": language, "pair": f"{n:02}", "text": pair[language]})
    for n, snippet in enumerate(pycode.held_out_prompts(N_PROMPTS, seed), 1):
        rows.append({"id": f"{CODE}-{n:02}", "set": CODE, "text": snippet})
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
