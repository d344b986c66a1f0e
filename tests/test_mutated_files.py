"""Files of every kind, damaged at random: done or refused in one line, in bounded time and memory.

SAESCOPE_MUTATIONS=300 tries that many files instead of a few; SAESCOPE_MUTATION_SEED chooses other
ones.
"""

import os
import random
import shutil
from pathlib import Path

import pytest

from mutated_files import Kind, corpus, mutated, try_file
from saescope.surfaces.cli import run

N_FILES = int(os.environ.get("SAESCOPE_MUTATIONS", "18"))
SEED = os.environ.get("SAESCOPE_MUTATION_SEED", "0")


def import_all(kinds: list[Kind], valid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of each verb here, so that the children have imported what it needs."""
    monkeypatch.chdir(valid)
    commands = {kind.command[0]: kind.command for kind in kinds}
    for command in commands.values():
        assert run(command) == 0
    shutil.rmtree(valid / "runs")


@pytest.mark.slow
def test_damaged_files_are_read_or_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    valid = tmp_path / "valid"
    kinds = corpus(valid)
    import_all(kinds, valid, monkeypatch)
    for kind in kinds[1], kinds[-1]:  # else a limit that nothing passes would refuse every file
        outcome = try_file(kind, valid, (valid / kind.file).read_bytes(), tmp_path / "work")
        assert (outcome.code, outcome.faults) == (0, ()), (kind, outcome)
    faults = []
    for number in range(N_FILES):
        kind = kinds[number * 7 % len(kinds)]
        rng = random.Random(f"{SEED} {number} {kind}")
        data = mutated((valid / kind.file).read_bytes(), kind.file, rng)
        outcome = try_file(kind, valid, data, tmp_path / "work")
        if outcome.faults:
            kept = tmp_path / f"{number}-{kind}".replace(" ", "-")
            kept.write_bytes(data)
            faults.append(f"{kept}: {'; '.join(outcome.faults)}")
    assert not faults, "\n".join([f"{len(faults)} of {N_FILES}", *faults])
