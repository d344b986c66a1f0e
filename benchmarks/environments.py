"""Virtual environments for peers whose pins conflict with saescope's, made from peers/*.txt."""

import subprocess
import sys
from pathlib import Path

from benchmarks.processes import ROOT, ProcessFailed

_PINS = Path(__file__).parent / "peers"
_STAMP = "made-from.txt"


def python(name: str, folder: Path) -> str:
    """The interpreter of the environment FOLDER/NAME, made first if it is missing or outdated.

    Raises ProcessFailed if a requirement cannot be installed.
    """
    requirements = _PINS / f"{name}.txt"
    constraints = _constraints(requirements.read_text())
    contents = requirements.read_text() + constraints
    stamp = folder / name / _STAMP
    interpreter = folder / name / "bin" / "python"
    if stamp.is_file() and stamp.read_text() == contents:
        return str(interpreter)

    print(f"installing {name} (a few minutes, 1.6 to 1.9 GB)", file=sys.stderr, flush=True)
    _run([sys.executable, "-m", "venv", str(folder / name)])
    constraints_file = folder / name / "constraints.txt"
    constraints_file.write_text(constraints)
    pip = [str(interpreter), "-m", "pip", "install", "--quiet"]
    pip += ["--constraint", str(constraints_file)]
    _run([*pip, "torch"])  # first and alone, as in scripts/setup: the build for this machine
    _run([*pip, "--requirement", str(requirements)])
    stamp.write_text(contents)
    return str(interpreter)


def _constraints(requirements: str) -> str:
    """saescope's constraints, without the packages that the peer pins itself."""
    pinned = {_package(line) for line in requirements.splitlines()}
    lines = (ROOT / "constraints.txt").read_text().splitlines(keepends=True)
    return "".join(line for line in lines if _package(line) not in pinned)


def _package(line: str) -> str:
    return line.partition("==")[0]


def pins(name: str) -> list[str]:
    """The packages pinned for an environment, as `name version`."""
    lines = (_PINS / f"{name}.txt").read_text().splitlines()
    return [line.replace("==", " ") for line in lines if line and not line.startswith("#")]


def _run(command: list[str]) -> None:
    process = subprocess.run(command, capture_output=True, text=True)
    if not process.returncode:
        return
    errors = [line for line in process.stderr.splitlines() if line.startswith("ERROR")]
    reason = errors[0] if errors else f"exit {process.returncode}"
    raise ProcessFailed(f"installation failed: {reason}"[:300])
