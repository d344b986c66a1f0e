"""The bundled prompt sets: held-out sentences, paired across languages, and held-out snippets."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from training import pycode
from training.conlangs.sentence import sentence
from training.conlangs.tongues import TONGUES
from training.corpus import CODE
from training.grammar import text

N_PROMPTS = 36


def write_prompts(out: Path, seed: int = 0) -> None:
    """Write `N_PROMPTS` prompts per set as JSON lines: id, set, text and, for languages, pair."""
    rows = []
    pairs = text.paired_sentences(N_PROMPTS, seed)
    for language in text.LANGUAGES:
        rows += [_paired(language, n, pair[language]) for n, pair in enumerate(pairs, 1)]
    for n, snippet in enumerate(pycode.held_out_prompts(N_PROMPTS, seed), 1):
        rows.append({"id": f"{CODE}-{n:02}", "set": CODE, "text": snippet})
    _write(out, rows)


def write_conlangs(out: Path, seed: int = 0) -> None:
    """Write the same meanings, with the same pairs, in each constructed language."""
    meanings = [meaning for meaning, _ in text.paired_meanings(N_PROMPTS, seed)]
    rows = []
    for name, tongue in TONGUES.items():
        rows += [
            _paired(name, n, sentence(meaning, tongue)) for n, meaning in enumerate(meanings, 1)
        ]
    _write(out, rows)


def _paired(name: str, number: int, prompt: str) -> dict[str, str]:
    return {"id": f"{name}-{number:02}", "set": name, "pair": f"{number:02}", "text": prompt}


def _write(out: Path, rows: Iterable[Mapping[str, str]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    out.write_text("".join(lines), encoding="utf-8")
