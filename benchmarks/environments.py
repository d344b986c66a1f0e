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
    wanted = pins.read_text() + (ROOT / "constraints.txt").read_text()
    interpreter = folder / name / "bin" / "python"
    if not (made.is_file() and made.read_text() == wanted):
        print(f"installing {name} (a few minutes, 1.6 to 1.9 GB)", file=sys.stderr, flush=True)
        _run([sys.executable, "-m", "venv", str(folder / name)])
        pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
        _run([*pip, "torch"])  # alone first, as in scripts/setup: the build for this machine
        _run([*pip, "--requirement", str(pins)])
        made.write_text(wanted)
    return str(interpreter)


def pins(name: str) -> list[str]:
    """What an environment is made for, as `name version`."""
    lines = (_PINS / f"{name}.txt").read_text().splitlines()
    return [line.replace("==", " ") for line in lines if line and not line.startswith("#")]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [f"exit {done.returncode}"]
        raise Failed(f"cannot be installed: {said[0]}"[:300])
