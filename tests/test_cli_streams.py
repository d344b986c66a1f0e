"""A result reaches stdout whole, or the exit code says that it did not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Pair
from forked import run_forked

COMMANDS = [
    ["scan", "hi you", "--json"],
    ["scan", "hi you"],
    ["--help"],
    ["contrast", "--help"],
    [],
]


def ended(
    tmp_path: Path, pair: Pair, arguments: list[str], **streams: str
) -> subprocess.CompletedProcess[str]:
    if arguments[:1] == ["scan"]:
        arguments = [*arguments, "--model", str(pair.model), "--sae", str(pair.sae)]
    return run_forked(*arguments, env=dict(os.environ), cwd=tmp_path, **streams)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("stdout", "code", "line"),
    [
        ("closed", 2, "saescope: stdout is closed, so no result can be shown"),
        ("full", 2, "saescope: cannot write the whole result to stdout: No space left on device"),
        ("unread", 141, ""),
    ],
)
def test_result_that_cannot_be_written_is_no_success(
    arguments: list[str], stdout: str, code: int, line: str, pair: Pair, tmp_path: Path
) -> None:
    process = ended(tmp_path, pair, arguments, stdout=stdout)
    assert process.returncode == code, process.stderr
    assert len(process.stderr.splitlines()) == bool(line)
    assert process.stderr.startswith(line)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_text_that_the_terminal_lacks_is_escaped(encoding: str, pair: Pair, tmp_path: Path) -> None:
    text = "日本 é 🙂"
    shown = ended(tmp_path, pair, ["scan", text], encoding=encoding)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "\\" in shown.stdout
    as_json = ended(tmp_path, pair, ["scan", text, "--json"], encoding=encoding)
    assert (as_json.returncode, as_json.stderr) == (0, "")
    assert json.loads(as_json.stdout)["prompts"][0]["text"] == text
    refused = ended(tmp_path, pair, ["scan", text, "--file", "日本.txt"], encoding=encoding)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert len(refused.stderr.splitlines()) == 1


def test_module_is_the_command() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "saescope", "scna"], capture_output=True, text=True
    )
    assert process.returncode == 2
    assert process.stderr == "saescope: unknown command 'scna': did you mean scan?\n"
