"""Every public name explains itself by an example that runs on the embedded pair."""

import contextlib
import doctest
import inspect
import io
from pathlib import Path

import pytest

import saescope
import saescope.exports
import saescope.judges
from saescope.table import Table

# Shown in the example of the function that returns them, as tables are.
RETURNED = {"LM", "OutputScore", "Receipt", "SparseActs"}


def _public() -> dict[str, object]:
    """Public functions and classes by their name as users write it: `contrast`, `exports.gguf`."""
    public = {}
    for namespace in (saescope, saescope.judges, saescope.exports):
        prefix = namespace.__name__.removeprefix("saescope").lstrip(".")
        for name in namespace.__all__:
            value = getattr(namespace, name)
            if callable(value):
                public[f"{prefix}.{name}" if prefix else name] = value
    return public


PUBLIC = _public()


def _needs_no_example(name: str, value: object) -> bool:
    if name in RETURNED:
        return True
    return inspect.isclass(value) and issubclass(value, (Exception, Table))


def _examples(name: str, value: object) -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder()
    tests = finder.find(value, name, module=False, globs={"__name__": "__main__"})
    return [test for test in tests if test.examples]


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_name_has_an_example(name: str) -> None:
    value = PUBLIC[name]
    assert inspect.getdoc(value), f"{name} has no docstring"
    if not _needs_no_example(name, value):
        assert _examples(name, value), f"{name}: write an example"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(n for n in PUBLIC if _examples(n, PUBLIC[n])))
def test_example_prints_what_it_shows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    report = io.StringIO()
    for test in _examples(name, PUBLIC[name]):
        with contextlib.redirect_stdout(io.StringIO()):
            runner.run(test, out=report.write)
    assert not runner.failures, report.getvalue()
    assert not list(tmp_path.iterdir()), "write into a tempfile.TemporaryDirectory()"
