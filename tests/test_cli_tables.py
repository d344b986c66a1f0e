"""Tables and help fit the terminal; tables leave out whole columns."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from saescope.analysis.contrast import ContrastSettings
from saescope.jobs.contrast import ContrastRequest
from saescope.jobs.detect import DetectRequest
from saescope.jobs.fitness import FitnessRequest
from saescope.jobs.inputs import ModelInputs
from saescope.jobs.layers import LayersRequest
from saescope.jobs.plan import PlanRequest
from saescope.jobs.precision import PrecisionRequest
from saescope.jobs.profile import ProfileRequest
from saescope.store.runs import Run
from saescope.surfaces.cli import COMMANDS, run
from saescope.surfaces.cli.contrast import show_contrast
from saescope.surfaces.cli.detect import show_detection
from saescope.surfaces.cli.fitness import show_fitness
from saescope.surfaces.cli.layers import show_layers
from saescope.surfaces.cli.plan import show_plan
from saescope.surfaces.cli.precision import show_agreement
from saescope.surfaces.cli.profile import show_profile
from saescope.surfaces.cli.tables import ResultTable

VERBS = [command.verb for commands in COMMANDS.values() for command in commands]


def printed(show: Callable[[Console], None], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    show(console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def example(optional: tuple[str, ...] = ("p", "score")) -> ResultTable:
    table = ResultTable(
        "features", text=("set", "feature"), numbers=("score", "p", "rate"), optional=optional
    )
    table.add("japanese", "2/5", "0.9512", "0.00012", "92.9 / 1.4 % chinese")
    return table


def test_wide_console_shows_every_column() -> None:
    text = printed(example().print)
    assert "0.9512" in text
    assert "left out" not in text


def test_narrow_console_leaves_out_optional_columns_and_names_them() -> None:
    text = printed(example().print, width=56)
    assert "0.00012" not in text
    assert "0.9512" in text
    assert "left out at this width: p (--json has them)" in text
    assert "92.9 / 1.4 % chinese" in text


def test_numbers_never_break_before_text_folds() -> None:
    table = ResultTable("words", text=("pieces",), numbers=("tokens",))
    table.add("a " * 60, "123456")
    lines = printed(table.print, width=40).splitlines()
    assert sum("123456" in line for line in lines) == 1
    assert max(map(cell_len, lines)) <= 40


@pytest.mark.parametrize("width", range(36, 90))
def test_no_width_cuts_a_cell(width: int) -> None:
    text = printed(example(optional=("p", "score", "rate")).print, width)
    table, _, left_out = text.partition("left out")
    for name, cell in {"p": "0.00012", "score": "0.9512", "rate": "92.9 / 1.4 % chinese"}.items():
        hidden = name in left_out.replace("width", "").replace("left", "")
        assert (cell in table) is not hidden


@pytest.fixture(scope="module")
def embedded_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("tables")
    inputs = ModelInputs(layers=(0, 2))
    request = ContrastRequest(
        inputs=inputs, settings=ContrastSettings(shuffles=1), out=folder / "run"
    )
    return request.run().run


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["contrast", "profile", "layers", "detect", "precision", "plan"])
def test_tables_fit_80_columns(verb: str, embedded_run: Run) -> None:
    sets = str(embedded_run.path)
    show: dict[str, Callable[[Console], None]] = {
        "contrast": lambda c: show_contrast(c, ContrastRequest(sets).ask(embedded_run)),
        "profile": lambda c: show_profile(c, ProfileRequest(sets).ask(embedded_run)),
        "layers": lambda c: show_layers(c, LayersRequest(sets, feature="2/5").ask(embedded_run)),
        "detect": lambda c: show_detection(
            c, DetectRequest(sets, target="japanese").ask(embedded_run)
        ),
        "precision": lambda c: show_agreement(c, PrecisionRequest(sets).ask(embedded_run)),
        "plan": lambda c: show_plan(c, PlanRequest().run()),
    }
    lines = printed(show[verb]).splitlines()
    soft_wrapped = ("to fetch", "computing")  # sentences that the terminal wraps
    tables = [line for line in lines if not line.startswith(soft_wrapped)]
    assert max(map(cell_len, tables)) <= 80


@pytest.mark.slow
def test_fitness_table_fits_80_columns(tmp_path: Path) -> None:
    answer = FitnessRequest(out=tmp_path).run()
    lines = printed(lambda console: show_fitness(console, answer.result)).splitlines()
    assert max(map(cell_len, lines)) <= 80


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_80_columns(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(cell_len, text.splitlines())) <= 80


def test_saescope_alone_shows_commands_to_try(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("  saescope ") for line in lines) == 4
    assert max(map(len, lines)) <= 80


def test_help_lists_commands_in_the_order_of_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    places = [text.index(f"─ {title} ─") for title in COMMANDS]
    assert places == sorted(places)


def test_unknown_command_is_named_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["contarst"]) == 2
    assert "unknown command 'contarst': did you mean contrast?" in capsys.readouterr().err
