"""What Python and notebooks show of runs, models, SAEs and results: little, rounded, escaped."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import saescope as ss
from conftest import Pair
from saescope.control.evaluation.evaluation import Evaluation
from saescope.surfaces.report import notebook
from saescope.table import Table

LINES, COLUMNS, TABLE_COLUMNS = 10, 100, 8


@pytest.fixture(scope="module")
def objects(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    lm, saes = pair.load(1, 2)
    words = {"numbers": "one two", "日本語": "日本", "code": "def f(x):"}
    sets = tuple(
        ss.texts([f"{text} {n} {text}" for n in range(12)], name=name)[0]
        for name, text in words.items()
    )
    run = ss.extract(lm, saes, sets, tmp_path_factory.mktemp("small") / "run")
    edit = ss.Edit("2/5", "add", 3.0, when="1/3 > 0.5")
    with ss.steered(lm, saes, [edit]) as receipt:
        scan = ss.scan(lm, saes, sets[0].prompts[:2])
    direction = ss.Direction(2, np.ones(lm.spec.d_model), "a" * 60)
    return {
        "run": run,
        "lm": lm,
        "sae": saes[0],
        "acts": saes[0].encode(torch.ones(5, lm.spec.d_model)),
        "sets": sets[0],
        "prompt": sets[0].prompts[0],
        "long prompt": ss.Prompt("i" * 300, "set", text="\n日本語" * 90, pair="p" * 200),
        "edit": edit,
        "edits": ss.EditSet("m" * 200, "s", (edit,) * 40),
        "direction": direction,
        "receipt": receipt,
        "scan": scan,
        "contrast": ss.contrast(run),
        "layers": ss.layers(run),
        "profile": ss.profile(run),
        "detection": ss.detect(run, sets[0].name),
        "examples": ss.examples(run, ss.Feature(1, 3)),
        "agreement": ss.agreement(run, run),
    }


def width(line: str) -> int:
    return sum(2 if ord(char) > 0x2E80 else 1 for char in line)


def test_reprs_are_small(objects: dict[str, Any]) -> None:
    for name, value in objects.items():
        lines = repr(value).split("\n")
        assert len(lines) <= LINES, name
        assert max(map(width, lines)) <= COLUMNS, name
        assert "tensor(" not in repr(value), name
        assert "array(" not in repr(value), name
        assert not re.search(r"\d\.\d{6}", repr(value)), name
        assert "object at 0x" not in repr(value), name


def test_notebooks_show_few_columns_of_rounded_numbers(objects: dict[str, Any]) -> None:
    tables = {name: v for name, v in objects.items() if isinstance(v, Table) and v.rows()}
    assert len(tables) >= 6
    for name, value in tables.items():
        html = value._repr_html_().partition("</table>")[0]
        head = html.partition("</thead>")[0]
        assert 0 < head.count("<th>") <= TABLE_COLUMNS, name
        assert not re.search(r">-?\d*[1-9]\d*\.\d{3}|\d\.\d{9}", html), name


def test_every_shown_column_exists(objects: dict[str, Any]) -> None:
    for name, value in objects.items():
        if isinstance(value, Table) and value.rows():
            assert set(value.shown.split()) <= value.rows()[0].keys(), name
            assert len(value.shown.split()) <= TABLE_COLUMNS


def test_notebooks_show_the_plots_of_the_page(objects: dict[str, Any]) -> None:
    for name in ("contrast", "profile"):
        assert objects[name]._repr_html_().count("<svg") == 3, name
    assert "<svg" not in objects["layers"]._repr_html_()


def test_an_evaluation_shows_its_frontier(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(notebook, "frontier", lambda document, _label: drawn.append(document))
    evaluation = object.__new__(Evaluation)
    monkeypatch.setattr(Evaluation, "to_dict", lambda _self: {"arms": []})
    assert notebook.plots(evaluation) == ""
    assert drawn == [{"arms": []}]


class Hostile(Table):
    """A table of hostile text."""

    def rows(self) -> list[dict[str, Any]]:
        return [{"<b>": "<script>\x1b[31m\nalert", "x" * 300: 1 / 3, "y": None}] * 99

    def to_dict(self) -> dict[str, Any]:
        return {}

    @property
    def top_warnings(self) -> list[str]:
        return ["<i>\x1b[2J"]


def test_hostile_text_is_escaped() -> None:
    html, text = Hostile()._repr_html_(), repr(Hostile())
    assert "<script" not in html
    assert "<b>" not in html
    assert "<i>" not in html
    assert "\x1b" not in html + text
    assert "49 more rows" in html
    assert len(text.split("\n")) <= LINES
    assert max(map(len, text.split("\n"))) <= COLUMNS


def test_edits_that_differ_have_different_reprs() -> None:
    """Finished work is remembered by them."""
    one = ss.Direction(2, np.ones(3), "x")
    other = ss.Direction(2, np.array([1.0, 1.0, 1.0000001]), "x")
    edits = [
        ss.Edit("2/5"),
        ss.Edit("2/6"),
        ss.Edit("2/5", strength=1e-17),
        ss.Edit("2/5", strength=-1 - 1e-15),
        ss.Edit("2/5", gate="topk"),
        ss.Edit("2/5", when="1/3"),
        ss.Edit("2/5", when="1/3 > 0.25"),
        ss.Edit(direction=one, op="add", strength=1.0),
        ss.Edit(direction=other, op="add", strength=1.0),
    ]
    assert len({repr(edit) for edit in edits}) == len(edits)


def test_damaged_manifest_has_a_repr(tmp_path: Path) -> None:
    assert "layers" in repr(ss.Run(tmp_path, {}))
