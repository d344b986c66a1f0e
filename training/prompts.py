"""The bundled prompt sets: sentences and snippets that the training text cannot contain, paired over the languages."""

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
    """Write `N_PROMPTS` prompts a set as JSON lines with id, set, text and, for languages, pair."""
    rows = []
    pairs = text.paired_sentences(N_PROMPTS, seed)
    for language in text.LANGUAGES:
        rows += [_paired(language, n, pair[language]) for n, pair in enumerate(pairs, 1)]
    for n, snippet in enumerate(pycode.held_out_prompts(N_PROMPTS, seed), 1):
        rows.append({"id": f"{CODE}-{n:02}", "set": CODE, "text": snippet})
    _write(out, rows)


def write_conlangs(out: Path, seed: int = 0) -> None:
    """Write what the languages' prompts say in each constructed language, with the same pairs."""
    meanings = [meaning for meaning, _ in text.paired_meanings(N_PROMPTS, seed)]
    tongues = TONGUES.items()
    _write(
        out,
        [
            _paired(name, n, sentence(m, one))
            for name, one in tongues
            for n, m in enumerate(meanings, 1)
        ],
    )


def _paired(name: str, number: int, said: str) -> dict[str, str]:
    return {"id": f"{name}-{number:02}", "set": name, "pair": f"{number:02}", "text": said}


def _write(out: Path, rows: Iterable[Mapping[str, str]]) -> None:
    out.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
