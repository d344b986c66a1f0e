"""Prompt sets of the experiments: languages, other kinds of text, requests, neutral text.

Discovery and held-out prompts come from different documents; the SAEs saw only discovery documents
and no request of these sets.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from proof.documents import part
from proof.folder import REPOSITORY, DataFolder
from proof.passages import passages
from proof.texts import DENSE, INTERFACE, LANGUAGES, Text, read_texts
from saescope.sources.prompts import Split

Row = Mapping[str, Any]
REQUESTS = REPOSITORY / "proof" / "requests"
REQUEST_SETS = ("declined", "personal", "ordinary")
PER_LANGUAGE: Mapping[Split, int] = {"discovery": 120, "holdout": 80}
OTHER_KINDS = {"declaration": 48, "story": 80}  # prompts per language
NEUTRAL_PER_LANGUAGE, NEUTRAL_ENGLISH = 8, 48
_LENGTHS = (80, 320)  # characters
_DENSE_LENGTHS = (30, 130)


def write_sets(folder: DataFolder) -> None:
    """Write `sets/`, one folder per kind, one file per set."""
    with folder.publish(folder.sets) as out:
        parallel = _parallel(folder)
        for language in LANGUAGES:
            _write(out / "languages", language, _language(folder, parallel, language))
        for kind, number in OTHER_KINDS.items():
            for path in sorted((folder.texts / kind).glob("*.jsonl")):
                texts = read_texts(folder, kind, path.stem)
                _write(out / kind, path.stem, _other_kind(texts, kind, path.stem, number))
        for name in REQUEST_SETS:
            rows = list(requests(name))
            _write(out / "requests", name, rows)
        for row in requests("declined"):
            name = f"declined_{row['topic']}"
            _append(out / "topics", name, {**row, "set": name})
        gemma3 = _neutral(folder, LANGUAGES, NEUTRAL_PER_LANGUAGE)
        smollm2 = _neutral(folder, ["en"], NEUTRAL_ENGLISH)
        _write(out / "neutral-gemma3", "neutral", gemma3)
        _write(out / "neutral-smollm2", "neutral", smollm2)


def _parallel(folder: DataFolder) -> dict[str, dict[str, Text]]:
    """Help paragraphs of fitting length by language and key, only those in every language."""
    texts = {
        language: {text.key: text for text in read_texts(folder, "help", language)}
        for language in LANGUAGES
        if language not in INTERFACE
    }
    fitting = (
        {key for key, text in of_language.items() if _fits(text.text, language)}
        for language, of_language in texts.items()
    )
    common = set.intersection(*fitting)
    return {
        language: {key: of_language[key] for key in sorted(common)}
        for language, of_language in texts.items()
    }


def _fits(text: str, language: str) -> bool:
    least, most = _DENSE_LENGTHS if language in DENSE else _LENGTHS
    return least <= len(text) <= most


def _language(
    folder: DataFolder, parallel: Mapping[str, Mapping[str, Text]], language: str
) -> list[Row]:
    rows: list[Row] = []
    for split, number in PER_LANGUAGE.items():
        if language in parallel:
            chosen = spread(
                [t for t in parallel[language].values() if part(t.document) == split], number
            )
            rows += [
                _row(language, t.text, pair=t.key, split=split, place=n)
                for n, t in enumerate(chosen)
            ]
        else:
            fitting = [text for text in passages(folder, language, split) if _fits(text, language)]
            rows += [
                _row(language, text, split=split, place=n)
                for n, text in enumerate(fitting[:number])
            ]
    return rows


def spread(items: Sequence[Text], number: int) -> list[Text]:
    """At most one text per document while that suffices, at even distances."""
    first: dict[str, Text] = {}
    for text in items:
        first.setdefault(text.document, text)
    chosen = list(first.values())
    if len(chosen) < number:
        chosen = list(items)
    return [chosen[place * len(chosen) // number] for place in range(min(number, len(chosen)))]


def _other_kind(texts: Sequence[Text], kind: str, language: str, number: int) -> list[Row]:
    least = 20 if language in DENSE else 60
    fitting = [text for text in texts if least <= len(text.text) <= 500]
    return [
        _row(language, text.text, pair=text.key, place=place, kind=kind)
        for place, text in enumerate(spread(fitting, number))
    ]


def _neutral(folder: DataFolder, languages: Iterable[str], number: int) -> list[Row]:
    """Held-out passages, none of them a prompt of the languages."""
    return [
        {"id": f"neutral-{language}-{place:02}", "set": "neutral", "text": text}
        for language in languages
        for place, text in enumerate(passages(folder, language, "holdout")[-number:])
    ]


def requests(name: str) -> Iterable[Row]:
    """Requests to SmolLM2, from `proof/requests/NAME.txt`: topics after `#`, a request per line."""
    topic, place = "", 0
    for line in (REQUESTS / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            topic, place = line.removeprefix("# "), 0
            continue
        yield {
            "id": f"{name}-{topic}-{place:02}",
            "set": name,
            "topic": topic,
            "split": "holdout" if place % 5 in (1, 3) else "discovery",
            "messages": [{"role": "user", "content": line}],
        }
        place += 1


def _row(
    language: str,
    text: str,
    *,
    place: int,
    pair: str | None = None,
    split: Split | None = None,
    kind: str = "help",
) -> Row:
    name = "-".join(part for part in (language, kind, split, f"{place:03}") if part)
    row = {"id": name, "set": language, "text": text, "pair": pair, "split": split}
    return {column: value for column, value in row.items() if value is not None}


def _write(folder: Path, name: str, rows: Sequence[Row]) -> None:
    for row in rows:
        _append(folder, name, row)


def _append(folder: Path, name: str, row: Row) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as opened:
        opened.write(json.dumps(row, ensure_ascii=False) + "\n")
