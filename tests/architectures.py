"""The page docs/architectures.md, made of what the tests of capabilities find.

``python tests/architectures.py --update`` runs them all and rewrites the page.
"""

import re
import sys
import tempfile
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from capabilities import CAPABILITIES, YES, Outcome, outcome, subject
from kinds import KINDS, stock_class

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
Row = Mapping[str, Outcome]
_NOTE = re.compile(r"- \*\*(?P<word>[a-z ]+)\*\* \((?P<capabilities>.*?)\): (?P<rest>.*)")
_INTRODUCTION = """\
# Architectures

What saescope does with the architectures that are tested, each compared with transformers. Other
causal decoders work too if they are [built alike](models.md#models).

A cell of the table is a test: a tiny random checkpoint of that class is written to disk, saescope
and stock transformers open the same folder in float32, and their answers have to agree. Models with
images are opened by the class that transformers chooses, and read prompts of text.

| column | what is compared with transformers |
|---|---|
"""
_WORDS = """\

- **yes**: saescope's answer is transformers'.
- **approximate**: it is labelled so, with the reason. The logits are nearer to those of the hooks
  than the model's own.
- **file only**: the vector is right, but llama.cpp cannot run the model.
- **refused**: nothing is computed or written, and one sentence says why.

## Table

"""
_REASONS = """
## Reasons

What saescope says about the cells that are not "yes". MODEL stands for the model's folder.

"""


def row_of(model: str, folder: Path) -> Row:
    """What every capability does with one architecture; a wrong answer raises AssertionError."""
    on = subject(KINDS[model], folder)
    return {name: outcome(name, on) for name in CAPABILITIES}


def render(rows: Mapping[str, Row]) -> str:
    """The page."""
    compared = [
        f"| {name} | {(check.__doc__ or '').removesuffix('.')} |"
        for name, check in CAPABILITIES.items()
    ]
    table = [
        "| model | class | " + " | ".join(CAPABILITIES) + " |",
        "|---" * (2 + len(CAPABILITIES)) + "|",
    ]
    for model, row in rows.items():
        words = " | ".join(found.word for found in row.values())
        table.append(f"| {model} | `{stock_class(KINDS[model]).__name__}` | {words} |")
    return "".join(
        [_INTRODUCTION, *_lines(compared), _WORDS, *_lines(table), _REASONS, *_lines(_notes(rows))]
    )


def _lines(lines: Iterator[str] | list[str]) -> list[str]:
    return [line + "\n" for line in lines]


def _notes(rows: Mapping[str, Row]) -> Iterator[str]:
    """One note per reason: the cells it stands for, and the sentence."""
    cells: dict[Outcome, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for model, row in rows.items():
        for capability, found in row.items():
            if found != YES:
                cells[found][model].append(capability)
    for found, models in sorted(cells.items(), key=lambda item: (item[0].word, item[0].why)):
        alike: dict[str, list[str]] = defaultdict(list)
        for model, capabilities in models.items():
            alike[", ".join(capabilities)].append(model)
        for capabilities_text, names in alike.items():
            note = f"- **{found.word}** ({capabilities_text}): {', '.join(names)}: {found.why}"
            yield textwrap.fill(
                note, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )


def read(page: str) -> dict[str, Row]:
    """The rows that a page shows."""
    whys: dict[tuple[str, str], str] = {}
    for note in page.partition(_REASONS)[2].replace("\n  ", " ").splitlines():
        match = _NOTE.fullmatch(note)
        assert match is not None, note
        models, _, why = match["rest"].partition(": ")
        for model in models.split(", "):
            for capability in match["capabilities"].split(", "):
                whys[model, capability] = why
    rows = {}
    for line in page.partition("## Table")[2].splitlines():
        model, _, *words = [cell.strip() for cell in line.strip("|").split("|")] + [""]
        if model in KINDS:
            rows[model] = {
                name: Outcome(word, whys.get((model, name), ""))
                for name, word in zip(CAPABILITIES, words, strict=False)
            }
    return rows


def shown(model: str) -> Row:
    """The row of the page about one architecture."""
    return read(PAGE.read_text(encoding="utf-8"))[model]


def main() -> None:
    """Run every capability on every architecture, and rewrite the page."""
    torch.set_num_threads(1)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, model in enumerate(KINDS):
            rows[model] = row_of(model, Path(folder) / str(number))
            print(model, *(f"{name}: {found.word}" for name, found in rows[model].items()))
    PAGE.write_text(render(rows), encoding="utf-8")


if __name__ == "__main__" and sys.argv[1:] == ["--update"]:
    main()
