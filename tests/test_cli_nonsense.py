"""Every command with nonsense: an exit code that is allowed, one line for 2, no traceback.

`SAESCOPE_NONSENSE_CALLS=1000` makes more calls than the default, with the same seed.
"""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Pair
from saescope.surfaces.cli import COMMANDS, app, run
from saescope.surfaces.cli.endings import CLOSED_PIPE, DONE, INTERRUPTED, REFUSED
from saescope.surfaces.cli.naming import typed_names

CALLS = int(os.environ.get("SAESCOPE_NONSENSE_CALLS", "60"))
FINDING = 1  # of a command that was asked for one, such as `verify`
CODES = (DONE, FINDING, REFUSED, INTERRUPTED, CLOSED_PIPE)
# `demo` has no input that could be wrong, and takes long; `serve` does not end by itself.
VERBS = sorted(
    {command.verb for commands in COMMANDS.values() for command in commands} - {"demo", "serve"}
)
NONSENSE = [
    "", "x", "-1", "0", "nan", "inf", "1e30", str(2**70), "None", "[/]", "\x1b[31mred", "a\nb",
    "日本", "\udce9", "*" * 300, "../x", "-", "--", "@", "%s", "9" * 5000, "1/1", "0/1 scale -1",
    "1/9999", "99/1", "red", "feature:1/9", "language:xx", "http://[", "json:loads", "8GiB", "1B",
    "all", "0,99", "0.5", "a:b/c", "none.txt", "FOLDER", "CONFIG", "SAE", "EMPTY", "BINARY",
]  # fmt: skip
NEEDED = {
    "scan": ["hi"],
    "steer": ["hi", "--edit", "1/1", "--max-new-tokens", "2"],
    "contrast": ["SETS", "--shuffles", "0"],
    "layers": ["SETS"],
    "profile": ["SETS"],
    "precision": ["SETS"],
    "fitness": ["SETS"],
    "detect": ["SETS", "--target", "red", "--shuffles", "0"],
    "select": ["SETS", "--target", "red", "--max-new-tokens", "2"],
    "evaluate": ["--prompts", "SETS", "--edit", "1/1", "--neutral", "SETS", "--draws", "0"],
    "diff": ["MODEL", "MODEL"],
    "bake": ["--edit", "1/1 project", "--no-measure", "--out", "baked"],
    "export": ["--format", "saelens", "--out", "exported"],
    "report": ["RUN"],
    "rerun": ["RUN"],
    "verify": ["RUN"],
}
ON_RUNS = ("report", "rerun", "verify")


def calls(pair: Pair, sets: Path, folder: Path) -> Iterator[list[str]]:
    """Yield command lines: each command as it should be, with one to three options of nonsense."""
    chance = random.Random(15)
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "binary.jsonl").write_bytes(bytes(range(256)))
    places = {
        "SETS": sets,
        "MODEL": pair.model,
        "SAE": pair.sae,
        "CONFIG": pair.model / "config.json",
        "FOLDER": folder,
        "EMPTY": folder / "empty.jsonl",
        "BINARY": folder / "binary.jsonl",
    }
    for n in range(CALLS):
        verb = VERBS[n % len(VERBS)]
        names = sorted(name for name in typed_names(app[verb]).values() if name.startswith("--"))
        words = [verb, *NEEDED.get(verb, [])]
        if verb not in ON_RUNS:
            words += ["--model", "MODEL", "--sae", "SAE"]
        for _ in range(chance.choice((1, 1, 2, 3))):
            words += [chance.choice(names), chance.choice(NONSENSE)]
        if chance.random() < 0.3:
            words.append("--json")
        yield [str(places.get(word, word)) for word in words]


@pytest.mark.slow
def test_nonsense_ends_in_one_line(
    pair: Pair,
    sets_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    refused = 0
    for arguments in calls(pair, sets_folder, tmp_path):
        code = run(arguments)
        out, err = capfd.readouterr()
        called = [word[:80] for word in arguments]
        assert code in CODES, called
        assert "Traceback" not in out + err, (called, err)
        assert "SAESCOPE_DEBUG" not in err, (called, err)
        assert "\x1b" not in out + err, called
        if code == REFUSED:
            refused += 1
            said = [line for line in err.splitlines() if line.startswith("saescope: ")]
            lines = [line for line in said if not line.startswith("saescope: warning: ")]
            assert len(lines) == 1, (called, err)
            assert out == "", called
        if code == DONE and "--json" in arguments:
            json.loads(out)
    assert refused > CALLS / 2


def test_path_with_a_colon_is_no_address(
    pair: Pair,
    sets_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--model", str(pair.model), "--sae", str(pair.sae), "--out", "a:b/c", "--json"]
    for command in (["contrast", str(sets_folder), *options], ["profile", "a:b/c", "--json"]):
        assert run([*command]) == 0, capfd.readouterr().err
        json.loads(capfd.readouterr().out)
