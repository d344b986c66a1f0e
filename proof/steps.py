"""Steps that are kept when they are finished, and run again when what they depend on changes.

A step's key is made of its own code and of the contents of what it needs. The code is the module of
its function and all modules of `proof` and `training` that this imports, without comments and
docstrings. So a step that is made again with the same bytes does not run those that need it.
"""

import ast
import hashlib
import importlib.util
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from proof.folder import DataFolder, read_json, write_json

_PACKAGES = ("proof", "training")
_FRAME = ("proof.folder", "proof.steps")  # says where things are, not what they are


@dataclass(frozen=True)
class Step:
    """A named part of the proof: what it needs, what it makes, and about how long it takes."""

    name: str
    run: Callable[[DataFolder], None]
    needs: tuple[str, ...]
    makes: tuple[str, ...]  # paths below the data folder
    minutes: float  # on two cores
    about: str


@dataclass(frozen=True)
class Progress:
    """The steps in order, and which of them are done in a data folder."""

    steps: Mapping[str, Step]
    folder: DataFolder

    def needed(self, names: Sequence[str]) -> list[Step]:
        """These steps and all that they need, in order."""
        wanted: set[str] = set()
        queue = list(names)
        while queue:
            name = queue.pop()
            if name not in wanted:
                wanted.add(name)
                queue += self.steps[name].needs
        return [step for name, step in self.steps.items() if name in wanted]

    def state(self, step: Step) -> str:
        """`done`, `outdated` (its code or inputs changed since) or `missing`."""
        stamp = self.folder.stamps / f"{step.name}.json"
        if not stamp.exists() or not all((self.folder.root / path).exists() for path in step.makes):
            return "missing"
        current = all(self.state(self.steps[need]) == "done" for need in step.needs)
        return "done" if current and read_json(stamp)["key"] == self._key(step) else "outdated"

    def run(self, step: Step) -> float:
        """Run a step and record that it is finished; returns the seconds it took."""
        stamp = self.folder.stamps / f"{step.name}.json"
        stamp.unlink(missing_ok=True)
        key, start = self._key(step), time.monotonic()
        step.run(self.folder)
        seconds = time.monotonic() - start
        made = {path: digest(self.folder.root / path) for path in step.makes}
        write_json(stamp, {"key": key, "made": made, "seconds": round(seconds, 1)})
        return seconds

    def _key(self, step: Step) -> str:
        inputs = {}
        for need in step.needs:
            stamp = self.folder.stamps / f"{need}.json"
            inputs[need] = read_json(stamp)["made"] if stamp.exists() else None
        parts = [code_digest(step.run.__module__), inputs, list(step.makes)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files of a folder."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    total = hashlib.sha256()
    for file in files:
        total.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()


@cache
def code_digest(module: str) -> str:
    """SHA-256 of a module's code and of what it imports from this repository's own packages."""
    total = hashlib.sha256()
    for name, path in sorted(_with_imports(module).items()):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        total.update(f"{name} {ast.dump(_without_docstrings(tree))}\n".encode())
    return total.hexdigest()


def _with_imports(module: str) -> dict[str, Path]:
    files: dict[str, Path] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        path = None if name in files or name in _FRAME else _file_of(name)
        if path is None:
            continue
        files[name] = path
        queue += _imported(ast.parse(path.read_text(encoding="utf-8")))
    return files


def _file_of(module: str) -> Path | None:
    """The file of a module of ours; None if it is a name within one."""
    if module.partition(".")[0] not in _PACKAGES:
        return None
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.origin else None


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree
