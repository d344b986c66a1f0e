"""Options in files: a saescope.toml that lies in a folder runs no code and writes nowhere else."""

import json
import os
from pathlib import Path

import pytest

from conftest import Pair
from saescope.surfaces.cli import _commands, app, run
from saescope.surfaces.cli.settings import outputs_of, user_file

# Options with a path that is read; every other one is written and must be named in `outputs_of`.
_READ = {"file", "reference", "answers", "judge-check", "run", "directory"}
_READ_EDITS = {"steer", "evaluate", "bake", "export", "diff"}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A judge in the working folder and in a package, which leaves a trace when it is imported."""
    trace = tmp_path / "ran"
    Path("judge.py").write_text(
        f"open({str(trace)!r}, 'a').close()\ndef score(reply):\n    return 'a' in reply\n"
    )
    return trace


def evaluation(pair: Pair) -> list[str]:
    Path("sets").mkdir()
    for name in ("a", "b"):
        (Path("sets") / f"{name}.txt").write_text(
            "\n".join(f"{name} prompt {n} {'x' * n}" for n in range(6))
        )
    return [
        *("evaluate", "--prompts", "sets", "--neutral", "sets"),
        *("--draws", "1", "--max-new-tokens", "2"),
        *("--edit", "1/3 scale -1"),
        *("--model", str(pair.model), "--sae", str(pair.sae)),
    ]


def users_file(text: str) -> None:
    user_file().parent.mkdir(parents=True, exist_ok=True)
    user_file().write_text(text)


def refusal(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The one line of a refused command."""
    capfd.readouterr()
    code = run(arguments)
    out, err = capfd.readouterr()
    assert (code, out) == (2, "")
    [line] = err.splitlines()
    return line


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ('judge = "judge.py:score"', "--judge judge.py:score"),
        ('judge = "judge:score"', "--judge judge:score"),
        ('judge = "http://127.0.0.1:9/x"', "--judge http://127.0.0.1:9/x"),
        ('out = "../up.json"', "--out ../up.json"),
        ('out = "/tmp/up.json"', "--out /tmp/up.json"),
        ('out = "~/up.json"', "--out '~/up.json'"),
        ('out = "link/up.json"', "--out link/up.json"),
        ('plot = "../up.html"', "--plot ../up.html"),
        ('out = "\\u0000"', "--out"),
    ],
)
def test_folder_chooses_no_judge_and_no_place_outside(
    settings: str,
    option: str,
    pair: Pair,
    code: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    Path("link").symlink_to(tmp_path)
    Path("saescope.toml").write_text(settings)
    before = sorted(tmp_path.iterdir())
    line = refusal(["evaluate", "--edit", "1/3 scale -1", "--prompts", "sets"], capfd)
    assert f"type {option}" in line
    assert str(user_file()) in line
    assert not code.exists()
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("verb", ["detect", "select"])
@pytest.mark.parametrize("key", ["edits", "out", "direction"])
def test_written_edits_stay_in_the_folder(
    verb: str, key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if key == "direction" and verb == "select":
        pytest.skip("it writes none")
    Path("saescope.toml").write_text(f'{key} = "../up.toml"')
    assert f"type --{key} ../up.toml" in refusal([verb, "sets", "--target", "a"], capfd)


@pytest.mark.parametrize("setting", ['host = "0.0.0.0"', 'api_key = "known"', 'dir = "../up"'])
def test_folder_opens_no_server_to_others(setting: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path("saescope.toml").write_text(setting)
    option = setting.partition(" ")[0].replace("_", "-")
    assert f"type --{option}" in refusal(["serve", "--port", "0"], capfd)


def test_refused_keys_of_another_type(capfd: pytest.CaptureFixture[str]) -> None:
    for text in ('out = ["/tmp/x"]', '[judge]\nx = "judge.py:score"', "judge = 5"):
        Path("saescope.toml").write_text(text)
        assert "must be text" in refusal(["evaluate"], capfd)


@pytest.mark.slow
def test_command_line_and_users_file_choose_the_judge(
    pair: Pair, code: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = evaluation(pair)
    Path("saescope.toml").write_text('judge = "other.py:score"\n')
    assert run([*words, "--judge", "judge.py:score", "--out", "../typed.json"]) == 0
    assert code.exists()
    assert (tmp_path / "typed.json").exists()
    code.unlink()
    Path("saescope.toml").unlink()
    users_file(f'judge = "{Path("judge.py").resolve()}:score"\nout = "{tmp_path}/mine.json"\n')
    assert run(words) == 0, capfd.readouterr().err
    assert code.exists()
    assert (tmp_path / "mine.json").exists()
    users_file('judge = "judge.py:score"\n')  # whichever folder one works in may have a judge.py
    assert "whole path" in refusal(words, capfd)


@pytest.mark.slow
def test_folder_wins_over_users_file_and_command_line_over_both(
    pair: Pair, capfd: pytest.CaptureFixture[str]
) -> None:
    users_file(f"model = '{pair.model}'\nsae = '{pair.sae}'\nlayers = '0'\nn-top = 3\n")
    Path("saescope.toml").write_text("layers = '1'\n")

    def features(*options: str) -> dict[str, int]:
        capfd.readouterr()
        assert run(["scan", "hi you", "--json", *options]) == 0
        token = json.loads(capfd.readouterr().out)["prompts"][0]["tokens"][1]
        return {layer: len(top) for layer, top in token["features"].items()}

    assert features() == {"1": 3}
    assert features("--layers", "2", "--n-top", "1") == {"2": 1}
    Path("saescope.toml").unlink()
    assert features() == {"0": 3}


def test_output_within_the_folder_may_be_set_there(
    pair: Pair, sets_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("saescope.toml").write_text(
        f"model = '{pair.model}'\nsae = '{pair.sae}'\nout = 'runs/here'\njudge = 'x.py:y'\n"
    )
    assert run(["profile", str(sets_folder)]) == 0, capfd.readouterr().err  # it judges nothing
    assert Path("runs/here/manifest.json").exists()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("modle = 'x'", "modle"),
        ("k = " + "[" * 100_000, "nested"),
        ("k = 1" + "0" * 5000, "readable as TOML"),
        ("# " + "x" * 2**20, "more than"),
        ("k = '\x1b[31m'", "readable as TOML"),
    ],
)
@pytest.mark.parametrize("whose", ["folder", "user"])
def test_damaged_file_is_refused(
    text: str, word: str, whose: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if whose == "user":
        users_file(text)
    else:
        Path("saescope.toml").write_text(text)
    line = refusal(["scan", "hello"], capfd)
    assert word in line
    assert "\x1b" not in line


def test_fifo_is_not_read_as_settings(capfd: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("saescope.toml")
    assert "it is a FIFO, not a file" in refusal(["scan", "hello"], capfd)


def test_every_option_with_a_path_is_known_as_read_or_written() -> None:
    for command in _commands():
        read = _READ | ({"edits"} if command.verb in _READ_EDITS else set())
        for argument in app[command.verb].assemble_argument_collection():
            if "Path" in str(argument.hint):
                [name] = {name.removeprefix("--") for name in argument.names}
                assert (name in read) != (name in outputs_of(command.verb)), (command.verb, name)
