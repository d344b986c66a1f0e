"""Each mutation of `mutations.py` still applies to the package, and names tests that exist."""

import ast
from pathlib import Path

import pytest

import mutations
from mutations import MUTATIONS, PACKAGE, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_applies(mutation: Mutation, tmp_path: Path) -> None:
    path = tmp_path / mutation.file
    path.parent.mkdir(parents=True)
    path.write_text((PACKAGE / mutation.file).read_text(encoding="utf-8"), encoding="utf-8")
    old = mutation.apply(tmp_path)
    mutated = path.read_text(encoding="utf-8")
    assert mutated != old
    ast.parse(mutated)
    tests = (ROOT / "tests" / mutation.tests).read_text(encoding="utf-8")
    names = [n.name for n in ast.parse(tests).body if isinstance(n, ast.FunctionDef)]
    for word in mutation.only.split(" or "):
        assert any(word in name for name in names if name.startswith("test_")), word


def test_stale_mutation_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has the text 0 times"):
        Mutation("stale", "a.py", "y = 1", "y = 2", "test_a.py", "").apply(tmp_path)


def test_survivors_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = iter([True, False])
    monkeypatch.setattr(mutations, "killed", lambda *_: next(outcomes))
    assert mutations.main(["mask"]) == 1
    assert "1 of 2 mutations break a test" in capsys.readouterr().out
