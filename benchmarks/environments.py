"""Virtual environments for peers whose pins would fight with saescope's: made when first needed, from peers/*.txt."""

import subprocess
import sys
from pathlib import Path

from benchmarks.processes import ROOT, Failed

_PINS = Path(__file__).parent / "peers"
_MADE = "made-from.txt"


def python(name: str, folder: Path) -> str:
    """The interpreter of the environment FOLDER/NAME; raises Failed if what it needs cannot be installed."""
    pins, made = _PINS / f"{name}.txt", folder / name / _MADE
    constraints = _constraints(pins.read_text())
    wanted = pins.read_text() + constraints
    interpreter = folder / name / "bin" / "python"
    if not (made.is_file() and made.read_text() == wanted):
        print(f"installing {name} (a few minutes, 1.6 to 1.9 GB)", file=sys.stderr, flush=True)
        _run([sys.executable, "-m", "venv", str(folder / name)])
        kept = folder / name / "constraints.txt"
        kept.write_text(constraints)
        pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--constraint", str(kept)]
        _run([*pip, "torch"])  # alone first, as in scripts/setup: the build for this machine
        _run([*pip, "--requirement", str(pins)])
        made.write_text(wanted)
    return str(interpreter)


def _constraints(pins: str) -> str:
    """saescope's own constraints, but for what a peer pins itself."""
    own = {line.partition("==")[0] for line in pins.splitlines()}
    lines = (ROOT / "constraints.txt").read_text().splitlines(keepends=True)
    return "".join(line for line in lines if line.partition("==")[0] not in own)


def pins(name: str) -> list[str]:
    """What an environment is made for, as `name version`."""
    lines = (_PINS / f"{name}.txt").read_text().splitlines()
    return [line.replace("==", " ") for line in lines if line and not line.startswith("#")]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [
            f"exit {done.returncode}"
        ]
        raise Failed(f"cannot be installed: {said[0]}"[:300])
