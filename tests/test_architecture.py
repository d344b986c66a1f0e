"""The house keeps its rules: import order, torch-free rooms, one place for hooks."""

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator, Set
from pathlib import Path

import pytest

import saescope
from unsafe_calls import unsafe_calls

ROOT = Path(saescope.__file__).parent
# Each room may import from those listed with it, and from itself.
ALLOWED = {
    "lazy": set[str](),
    "exports": {"lazy", "control"},
    "judges": {"lazy", "control"},
    "errors": set[str](),
    "arguments": {"errors"},
    "strict_json": set[str](),
    "__main__": {"surfaces"},
    "table": {"errors"},
    "version": set[str](),
    "sources": {"arguments", "demo", "errors", "strict_json"},
    "store": {"arguments", "errors", "sources"},
    "engine": {"arguments", "errors", "sources", "store", "table", "version"},
    "analysis": {"arguments", "errors", "sources", "store", "table"},
    "control": {
        "arguments",
        "errors",
        "version",
        "strict_json",
        "sources",
        "store",
        "table",
        "engine",
        "analysis",
    },
    "demo": set[str](),
    "jobs": {
        "arguments",
        "strict_json",
        "errors",
        "version",
        "table",
        "sources",
        "store",
        "engine",
        "analysis",
        "control",
    },
    "surfaces": {
        "arguments",
        "jobs",
        "errors",
        "version",
        "strict_json",
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
REPOSITORY = Path(__file__).parents[1]
BENCHMARKS = REPOSITORY / "benchmarks"
PROOF = REPOSITORY / "proof"
# The test that first shows what a trap does where a file's code does run.
SHOWS_A_TRAP = REPOSITORY / "tests" / "test_formats.py"
# What runs text as code, asks on the terminal, or unpickles.
UNSAFE = {
    ("pickle", "load"),
    ("pickle", "loads"),
    ("pickle", "Unpickler"),
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
    ("jinja2", "Template"),
    ("dill", "load"),
    ("joblib", "load"),
    ("builtins", "exec"),
    ("builtins", "eval"),
    ("builtins", "input"),
    ("builtins", "__import__"),
}


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
    weights = [
        keyword
        for keyword in ast.walk(tree)
        if isinstance(keyword, ast.keyword) and keyword.arg in ("W_enc", "W_dec")
    ]
    transposes_weights = any(
        isinstance(node, ast.Attribute) and node.attr == "T"
        for weight in weights
        for node in ast.walk(weight.value)
    )
    assert file.parent.name == "formats" or not transposes_weights


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "saescope",
        "saescope.analysis.contrast",
        "saescope.jobs.registry",
        "saescope.store.runs",
        "saescope.surfaces.cli",
        "saescope.surfaces.cli.contrast",
        "saescope.surfaces.cli.fetch",
        "saescope.surfaces.cli.plan",
        "saescope.surfaces.cli.report",
    ],
)
def test_starts_without_torch(module: str) -> None:
    code = (
        f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_starts_without_plotting() -> None:
    code = (
        "import sys, saescope.surfaces.cli.report; "
        "sys.exit(bool({'matplotlib', 'jinja2'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["saescope", "saescope.judges", "saescope.exports"])
def test_public_names_are_sorted_and_exist(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__all__ == sorted(module.__all__)
    assert set(module.__all__) <= set(dir(module))
    for public in module.__all__:
        assert getattr(module, public) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = module.nonsense


@pytest.mark.slow
def test_no_circular_imports() -> None:
    for folder in (ROOT, BENCHMARKS, PROOF):
        assert list(import_circles(import_graph(folder))) == []


def import_graph(folder: Path) -> dict[str, set[str]]:
    """Which modules of a package each of its modules imports, also inside functions."""
    files = {module_name(folder, file): file for file in folder.rglob("*.py")}
    graph = {}
    for name, file in files.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        graph[name] = set(imported_modules(tree, files.keys())) - {name}
    return graph


def module_name(folder: Path, file: Path) -> str:
    relative = file.relative_to(folder.parent).with_suffix("")
    return ".".join(relative.parts).removesuffix(".__init__")


def imported_modules(tree: ast.AST, modules: Set[str]) -> Iterator[str]:
    """Those of `modules` that the code imports when it runs."""
    for node in running_nodes(tree):
        if isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & modules
        elif isinstance(node, ast.ImportFrom):
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            yield from submodules or {node.module or ""} & modules


def running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`."""
    yield tree
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from running_nodes(node)


def import_circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """Chains of modules that each import the next; the last imports the first."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> Iterator[list[str]]:
        if module in path:
            yield [*path[path.index(module) :], module]
            return
        if module in done:
            return
        for imported in sorted(graph[module]):
            yield from visit(imported, [*path, module])
        done.add(module)

    for module in graph:
        yield from visit(module, [])


def test_circles_are_found_inside_functions_and_not_under_type_checking() -> None:
    code = "if TYPE_CHECKING:\n    import a\ndef f():\n    from b import c"
    assert list(imported_modules(ast.parse(code), {"a", "b"})) == ["b"]
    assert list(import_circles({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == [["b", "c", "b"]]


@pytest.mark.slow
def test_class_names_mean_one_thing() -> None:
    files_of: dict[str, set[str]] = {}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                files_of.setdefault(node.name, set()).add(str(file.relative_to(ROOT)))
    ambiguous = {name: sorted(files) for name, files in files_of.items() if len(files) > 1}
    assert ambiguous == {}


def test_names_are_defined() -> None:
    """Neither ruff nor mypy looks for them here: jaxtyping's shapes would read as names."""
    pytest.importorskip("ruff")
    command = [sys.executable, "-m", "ruff", "check", "--select=F821", "--config=lint.ignore=[]"]
    folders = ["src", "tests", "training", "benchmarks", "proof"]
    ruff = subprocess.run(
        [*command, "--output-format=json", "--exit-zero", *folders],
        cwd=ROOT.parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    undefined = []
    for problem in json.loads(ruff.stdout):
        row, column = problem["location"]["row"], problem["location"]["column"]
        line = Path(problem["filename"]).read_text(encoding="utf-8").splitlines()[row - 1]
        inside_quotes = line[: column - 1].count('"') % 2 == 1
        if not inside_quotes:
            undefined.append(f"{problem['filename']}:{row}: {problem['message']}")
    assert not undefined


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_files_and_functions_are_short_and_conditional_expressions_not_nested(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 350
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 50, f"{node.name} is over 50 lines"
        if isinstance(node, ast.IfExp):
            children = [child for part in ast.iter_child_nodes(node) for child in ast.walk(part)]
            assert not any(isinstance(child, ast.IfExp) for child in children), node.lineno


def test_statements_are_not_dense() -> None:
    """At most 14 syntax nodes per statement and 15 conditional expressions per 1,000 lines."""
    sizes: list[int] = []
    lines = conditionals = 0
    for file in FILES:
        source = file.read_text(encoding="utf-8")
        rows = [row.strip() for row in source.splitlines()]
        lines += sum(bool(row) and not row.startswith("#") for row in rows)
        nodes = list(ast.walk(ast.parse(source)))
        conditionals += sum(isinstance(node, ast.IfExp) for node in nodes)
        sizes += [own_nodes(node) for node in nodes if is_counted_statement(node)]
    assert sum(sizes) / len(sizes) <= 14
    assert 1000 * conditionals / lines <= 15


def own_nodes(node: ast.AST) -> int:
    """The nodes of a statement, without those of statements inside it."""
    children = (c for c in ast.iter_child_nodes(node) if not isinstance(c, ast.stmt))
    return 1 + sum(map(own_nodes, children))


def is_counted_statement(node: ast.AST) -> bool:
    """Imports and docstrings do not count."""
    if not isinstance(node, ast.stmt) or isinstance(node, ast.Import | ast.ImportFrom):
        return False
    return not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


@pytest.mark.slow
def test_every_opened_file_is_data() -> None:
    sources = [
        path
        for folder in ("src", "benchmarks", "training", "proof", "tests")
        for path in (REPOSITORY / folder).rglob("*.py")
    ]
    found = {path: list(unsafe_calls(path.read_text(encoding="utf-8"))) for path in sources}
    assert len(found.pop(SHOWS_A_TRAP)) == 1
    assert {path: calls for path, calls in found.items() if calls} == {}


def test_package_runs_no_text_and_asks_nothing() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id=name)):
                    called = ("builtins", name)
                case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=name)):
                    called = (owner, name)
                case _:
                    continue
            assert called not in UNSAFE, f"{path}, line {node.lineno}: {'.'.join(called)}"
