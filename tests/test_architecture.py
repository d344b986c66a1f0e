"""The house keeps its rules: import order, torch-free rooms, one place for hooks and for transposing weights."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import saescope

ROOT = Path(saescope.__file__).parent
# Each room may import from those listed with it, and from itself.
ALLOWED = {
    "errors": set[str](),
    "table": {"errors"},
    "version": set[str](),
    "sources": {"demo", "errors"},
    "store": {"errors", "sources"},
    "engine": {"errors", "sources", "store", "table", "version"},
    "analysis": {"errors", "sources", "store", "table"},
    "control": {"errors", "version", "sources", "store", "table", "engine", "analysis"},
    "demo": set[str](),
    "surfaces": {
        "errors",
        "version",
        "table",
        "sources",
        "store",
        "engine",
        "analysis",
        "control",
        "demo",
    },
}
FILES = sorted(ROOT.rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_file_keeps_to_its_room(file: Path) -> None:
    room = file.relative_to(ROOT).parts[0].removesuffix(".py")
    source = file.read_text(encoding="utf-8")
    tree = ast.parse(source)
    if room != "__init__":
        rooms = {name.split(".")[1] for name in imports(tree) if name.startswith("saescope.")}
        assert rooms - {room} <= ALLOWED[room]
    if room in ("store", "analysis"):
        assert not any(name.split(".")[0] in ("torch", "transformers") for name in imports(tree))
    calls = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert file.name == "residual.py" or not any(
        "register" in name and "hook" in name for name in calls
    )
    given = [
        k for k in ast.walk(tree) if isinstance(k, ast.keyword) and k.arg in ("W_enc", "W_dec")
    ]
    turned = any(
        isinstance(node, ast.Attribute) and node.attr == "T"
        for k in given
        for node in ast.walk(k.value)
    )
    assert file.parent.name == "formats" or not turned


@pytest.mark.parametrize("module", ["saescope", "saescope.store.runs", "saescope.analysis.contrast",
                                    "saescope.surfaces.cli", "saescope.surfaces.cli.contrast",
                                    "saescope.surfaces.cli.plan", "saescope.surfaces.cli.fetch"])  # fmt: skip
def test_starts_without_torch(module: str) -> None:
    code = (
        f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_starts_without_plotting() -> None:
    code = "import sys, saescope.surfaces.cli.report; sys.exit(bool({'matplotlib', 'jinja2'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_are_sorted_and_exist() -> None:
    assert saescope.__all__ == sorted(saescope.__all__)
    assert set(saescope.__all__) == set(saescope._MODULE) | {"__version__"}
    for name in saescope.__all__:
        assert getattr(saescope, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = saescope.nonsense
