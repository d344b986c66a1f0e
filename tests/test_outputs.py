"""What commands print is what was read and kept, and fits the terminal."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.cells import cell_len

from outputs import EXAMPLES, WIDTHS, differences, printed
from saescope.surfaces.cli import COMMANDS

Texts = Mapping[tuple[str, int], str]
QUICK = [name for name, example in EXAMPLES.items() if not example.slow]
SLOW = [name for name, example in EXAMPLES.items() if example.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs").resolve()


@pytest.fixture(scope="module")
def quick(folder: Path) -> Texts:
    return {(name, width): text for name, width, text in printed(QUICK, folder)}


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    folder = tmp_path_factory.mktemp("slow").resolve()
    return {(name, width): text for name, width, text in printed(["contrast", *SLOW], folder)}


def test_every_command_has_an_example() -> None:
    verbs = {command.verb for commands in COMMANDS.values() for command in commands}
    lines = [example.line.split() for example in EXAMPLES.values()]
    assert verbs - {"serve"} <= {words[1] for words in lines if len(words) > 1}


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", QUICK)
def test_output_is_as_kept(name: str, width: int, quick: Texts) -> None:
    assert not differences(name, width, quick[name, width])
    _check_width(quick[name, width], width)


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SLOW)
def test_output_of_long_work_is_as_kept(name: str, width: int, slow: Texts) -> None:
    assert not differences(name, width, slow[name, width])
    _check_width(slow[name, width], width)


def _check_width(text: str, width: int) -> None:
    """Only a word that does not fit by itself makes a line longer, and notes, which are lines."""
    shown = text.split("\nstderr:\n")[0].splitlines()[1:]
    assert [line for line in shown if cell_len(line) > width and " " in line.strip()] == []


@pytest.mark.slow
def test_the_page_says_what_the_terminal_says(folder: Path, quick: Texts) -> None:
    sentence = " ".join(quick["contrast", 120].splitlines()[1:3])
    assert sentence.startswith("All 7 sets have a feature")
    assert f'<p class="lead">{sentence}</p>' in (folder / "run.html").read_text()


@pytest.mark.slow
def test_a_refused_request_prints_no_table(quick: Texts) -> None:
    for width in WIDTHS:
        shown, _, notes = quick["refusal", width].partition("\nstderr:\n")
        assert shown.splitlines()[1:] == []
        assert (
            notes == "saescope: edit of 2/70000: the SAE of layer 2 has 512 features (ids 0-511)\n"
        )
