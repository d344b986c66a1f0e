"""The steps of the proof: kept when finished, run again when code or inputs change, resumed."""

from pathlib import Path

import pytest

from proof import steps as steps_module
from proof.__main__ import main, run
from proof.folder import DataFolder
from proof.registry import STEPS
from proof.steps import Progress, Step, code_digest, digest


class Recipe:
    """Two steps whose contents a test can change; the second copies the first."""

    def __init__(self, folder: Path) -> None:
        self.text, self.ran = "one", list[str]()
        first = Step("first", self.first, (), ("first.txt",), 1, "writes")
        second = Step("second", self.second, ("first",), ("second.txt",), 1, "copies")
        self.progress = Progress({"first": first, "second": second}, DataFolder(folder))

    def first(self, folder: DataFolder) -> None:
        self.ran.append("first")
        (folder.root / "first.txt").write_text(self.text, encoding="utf-8")

    def second(self, folder: DataFolder) -> None:
        self.ran.append("second")
        (folder.root / "second.txt").write_text(
            (folder.root / "first.txt").read_text(encoding="utf-8"), encoding="utf-8"
        )

    def states(self) -> list[str]:
        return [self.progress.state(step) for step in self.progress.steps.values()]

    def run(self, again: str | None = None) -> list[str]:
        self.ran.clear()
        run(self.progress, list(self.progress.steps.values()), again)
        return self.ran


def test_finished_steps_are_kept_and_a_step_follows_what_it_needs(tmp_path: Path) -> None:
    recipe = Recipe(tmp_path)
    assert recipe.states() == ["missing", "missing"]
    assert recipe.run() == ["first", "second"]
    assert recipe.run() == []
    assert recipe.run("first") == ["first"]  # the same bytes again: nothing to do for the second
    recipe.text = "two"
    assert recipe.run("first") == ["first", "second"]
    assert (tmp_path / "second.txt").read_text(encoding="utf-8") == "two"


def test_a_step_that_fails_is_not_done_and_those_before_it_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(tmp_path)
    recipe.run()
    recipe.text = "two"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        recipe.progress.run(recipe.progress.steps["second"])
    monkeypatch.undo()
    assert recipe.states() == ["done", "missing"]
    assert recipe.run() == ["second"]


def test_a_change_of_code_makes_a_step_and_its_followers_outdated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(tmp_path)
    recipe.run()
    monkeypatch.setattr(steps_module, "code_digest", lambda module: "changed")
    assert recipe.states() == ["outdated", "outdated"]


def test_a_deleted_product_is_made_again(tmp_path: Path) -> None:
    recipe = Recipe(tmp_path)
    recipe.run()
    (tmp_path / "first.txt").unlink()
    assert recipe.run() == ["first"]


def test_code_counts_without_comments_and_docstrings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "code.py"
    monkeypatch.setattr(steps_module, "_file_of", lambda name: file if name == "proof.x" else None)
    digests = []
    for text in ("def f():\n    'a'\n    return 1", "def f():\n    # b\n    return 1", "f = 2"):
        file.write_text(text, encoding="utf-8")
        code_digest.cache_clear()
        digests.append(code_digest("proof.x"))
    code_digest.cache_clear()
    assert digests[0] == digests[1] != digests[2]


def test_a_folder_is_published_whole(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    place = tmp_path / "sets"
    with folder.publish(place) as staging:
        (staging / "a.txt").write_text("a", encoding="utf-8")
    before = digest(place)

    def stop() -> None:
        with folder.publish(place) as staging:
            (staging / "b.txt").write_text("b", encoding="utf-8")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stop()
    assert digest(place) == before


def test_registered_steps_need_only_earlier_ones() -> None:
    names = list(STEPS)
    for place, step in enumerate(STEPS.values()):
        assert set(step.needs) <= set(names[:place]), step.name


def test_steps_are_listed_and_unknown_ones_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAESCOPE_REAL", str(tmp_path / "real"))
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in STEPS)
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "nonsense"])
    assert "there is no step 'nonsense'" in capsys.readouterr().err
