"""Tables hold their numbers whole at any width, whatever sets and tokens are called."""

import io
import random
from collections.abc import Callable

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from saescope.analysis.contrast import ContrastSettings, contrast
from saescope.analysis.detect import detect
from saescope.analysis.detection import DetectSettings
from saescope.analysis.layers import layers
from saescope.analysis.profile import profile
from saescope.sources.catalog import Feature
from saescope.store.runs import Run
from saescope.surfaces.cli.consoles import from_markup
from saescope.surfaces.cli.contrast import show_contrast
from saescope.surfaces.cli.detect import show_detection
from saescope.surfaces.cli.layers import show_layers
from saescope.surfaces.cli.lines import print_line
from saescope.surfaces.cli.profile import show_profile
from saescope.surfaces.cli.show import cell, p_value, significant
from saescope.surfaces.cli.tables import ResultTable
from stored import write_run

WIDTHS = (60, 80, 100, 120)
LONG, CJK = "a_very_long_name_of_a_set_that_nobody_types_twice", "日本語のとても長い集合の名前です"
SETS = [LONG, CJK, "اللغة العربية", "layer", "नमस्ते 👩‍👩‍👧 🇯🇵"]
D_SAE = 70_000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Feature 60000 + n is set n's; one token in ten has a norm far above the others."""
    n_prompts, length = 12, 4
    of_set = np.repeat(np.arange(len(SETS)), n_prompts * length)
    fires = np.zeros((len(of_set), D_SAE), bool)
    fires[np.arange(len(of_set)), 60_000 + of_set] = True
    fires[:, 5] = np.arange(len(of_set)) % 3 == 0
    norms = np.where(np.arange(len(of_set)) % 10 == 7, 123_456.0, 0.000_012_3).astype(np.float32)
    return write_run(
        tmp_path_factory.mktemp("names") / "run",
        {name: [length] * n_prompts for name in SETS},
        {17: fires, 35: fires},
        norms=norms,
        words=["[/]", "\\xe6", "鳩が美しい", "ं"],
    )


def shown(show: Callable[[Console], None], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, height=100)
    show(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


VERBS: dict[str, Callable[[Run], Callable[[Console], None]]] = {
    "contrast": lambda run: (
        lambda console: show_contrast(console, contrast(run, ContrastSettings(shuffles=1, n_top=3)))
    ),
    "layers": lambda run: (
        lambda console: show_layers(console, layers(run, feature=Feature(17, 60_001)))
    ),
    "detect": lambda run: (
        lambda console: show_detection(console, detect(run, CJK, DetectSettings(shuffles=2)))
    ),
    "profile": lambda run: lambda console: show_profile(console, profile(run)),
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_results_fit_and_keep_their_numbers(
    verb: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables: list[ResultTable] = []
    print_table = ResultTable.print

    def record(table: ResultTable, console: Console) -> None:
        tables.append(table)
        print_table(table, console)

    monkeypatch.setattr(ResultTable, "print", record)
    show = VERBS[verb](run)
    for width in WIDTHS:
        shown(show, width)
    monkeypatch.undo()
    assert len(tables) >= len(WIDTHS)
    for table in tables:
        for width in WIDTHS:
            check(table, width)


@pytest.mark.parametrize("seed", range(20))
def test_any_table_fits_and_keeps_its_numbers(seed: int) -> None:
    rng = random.Random(seed)
    words = [
        *SETS,
        "a",
        "two words",
        "/a/path/of/some/depth/file.bin",
        "",
        "[/]",
        "e\u0301",
    ]
    values = ["-1.234e-05", "17/65535", "100.0 % (57-100)", "0", "-", "1,234,567", "0.97-1.00"]
    names = rng.sample(["set", "KL mean", "held out / elsewhere", LONG, CJK, "p", "q", "n"], 7)
    table = ResultTable(
        cell(rng.choice(words)),
        text=[cell(name) for name in names[:2]],
        numbers=[cell(name) for name in names[2:6]],
        after=[cell(names[6])],
        optional=[cell(name) for name in rng.sample(names[2:], 2)],
    )
    for _ in range(5):
        texts = [cell(rng.choice(words)) for _ in range(3)]
        table.add(*texts[:2], *(rng.choice(values) for _ in range(4)), texts[2])
    for width in WIDTHS:
        check(table, width)


def check(table: ResultTable, width: int) -> None:
    """No line is too wide, and every number is whole in its row or its column named below."""
    text = shown(table.print, width)
    assert max(map(cell_len, text.splitlines())) <= width
    _, _, named = " ".join(text.split()).partition("columns left out at this width: ")
    left_out = named.count(";") + 1 if named else 0
    assert left_out < len(table.columns)
    first = len(table.text)
    for index, name in enumerate(table.numbers, start=first):
        cells = [from_markup(row[index]).plain for row in table.rows]
        is_shown = all(value in text for value in cells)
        assert is_shown or from_markup(name).plain.split()[0] in named


def test_columns_go_in_the_stated_order() -> None:
    table = ResultTable(
        "", text=("set",), numbers=("a" * 12, "b" * 12, "c" * 12), optional=("b" * 12, "a" * 12)
    )
    table.add("x", "1", "2", "3")
    left_out = [shown(table.print, width).partition("width: ")[2] for width in (60, 45, 30)]
    assert [" ".join(text.split()).partition(" (")[0] for text in left_out] == [
        "",
        "b" * 12,
        f"{'b' * 12}; {'a' * 12}",
    ]


def test_lines_break_between_words_and_paths_stay_whole() -> None:
    path = "/a/path/that/is/longer/than/the/line/run.html"
    text = f"left out: 252 first positions of 37.0 % in {path} and more words here"
    lines = shown(lambda console: print_line(console, text), 30).splitlines()
    assert " ".join(lines).split() == text.split()
    assert path in lines
    assert any("37.0 %" in line for line in lines)
    assert all(cell_len(line) <= 30 for line in lines if line != path)
    japanese = "それは長い文章で、言葉の間に空白がありません。"
    lines = shown(lambda console: print_line(console, japanese), 30).splitlines()
    assert "".join(lines) == japanese
    assert max(map(cell_len, lines)) <= 30


def test_numbers_line_up() -> None:
    assert [significant(value) for value in (39.52, 7.4, 0.0, 1234.5, 0.000_012_34, -2.0)] == [
        *("39.5", "7.40", "0", "1,234", "1.23e-05", "-2.00")
    ]
    assert [p_value(p) for p in (1.0, 0.0391, 0.001, 4e-7, None)] == [
        *("1", "0.04", "0.001", "4e-07", "-")
    ]
