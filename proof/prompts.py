"""Small prompt files of experiments, drawn evenly from the sets that all of them share."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import saescope as ss
from saescope.sources.prompts import Split
from saescope.sources.splits import split_prompts, spread


def prompts_of(folder: Path, part: Split | None = None) -> dict[str, list[ss.Prompt]]:
    """Return the prompts of each set, or those of one part of the split."""
    by_set: dict[str, list[ss.Prompt]] = {}
    prompts = [prompt for one in ss.read_prompts(folder) for prompt in one.prompts]
    for prompt, its_part in zip(prompts, split_prompts(prompts), strict=True):
        if part in (None, its_part):
            by_set.setdefault(prompt.set, []).append(prompt)
    return by_set


def sample(folder: Path, counts: Mapping[str, int], part: Split | None) -> list[ss.Prompt]:
    """Return so many prompts of each set, at even distances."""
    by_set = prompts_of(folder, part)
    return [prompt for name, n in counts.items() for prompt in spread(by_set[name], n)]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a prompt file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def row(prompt: ss.Prompt, part: Split | None = None) -> dict[str, Any]:
    """Return a prompt as a row of a prompt file."""
    split = {"split": part} if part else {}
    return {"id": prompt.id, "set": prompt.set, "text": prompt.text, **split}
