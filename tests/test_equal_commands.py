"""Of equal commands at one moment the second takes what the first has made; others are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beside import beside, wait_for
from saescope.control.edits import Edit, EditSet
from saescope.control.edits_file import read_edits, write_edits
from saescope.control.exports.export_result import ExportResult
from saescope.errors import ResourceError
from saescope.jobs.evaluate import EvaluateRequest
from saescope.jobs.export import ExportRequest
from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.write_once import write_once
from saescope.sources.directions import Direction
from saescope.sources.locks import one_writer
from saescope.store.atomic import atomic_file, replace_files
from saescope.store.resume_cache import ResumeCache


class Notes:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, label: str, unit: str = "tokens", task: str = "") -> Any:
        return SILENT.progress(label, unit, task)


def export(out: Path, reporter: Reporter, before_publishing: Any) -> ExportResult:
    request = ExportRequest(format="gguf", out=out)

    def write() -> ExportResult:
        with atomic_file(out) as staging:
            staging.write_text("vector")
            before_publishing()
        return ExportResult("gguf", out, (out,), True, "h + d", ("no sinks",), {"layers": [2]})

    return write_once(request, out, ExportResult, reporter, write)


def test_an_equal_command_returns_the_result_it_waited_for(tmp_path: Path) -> None:
    out, second = tmp_path / "a.gguf", Notes()

    def never() -> None:
        raise AssertionError("written twice")

    waiting: list[list[Any]] = []

    def start_the_second() -> None:
        waiting.append(beside(lambda: export(out, second, never)))
        wait_for(lambda: second.notes)

    first = export(out, SILENT, start_the_second)
    [ended] = waiting
    wait_for(lambda: ended)
    assert ended == [first]
    assert "waiting for" in second.notes[0]
    assert second.notes[1] == f"{out} was written by the command that was waited for"
    # Later, nothing is waited for: what exists is refused as ever.
    with pytest.raises(ResourceError, match="exists: choose another place"):
        export(out, SILENT, never)
    assert out.read_text() == "vector"


def test_if_the_first_fails_the_second_writes(tmp_path: Path) -> None:
    out, second = tmp_path / "a.gguf", Notes()
    waiting: list[list[Any]] = []

    def fail() -> None:
        waiting.append(beside(lambda: export(out, second, lambda: None)))
        wait_for(lambda: second.notes)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(out, SILENT, fail)
    [ended] = waiting
    wait_for(lambda: ended)
    assert ended[0].out == out
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_who_waits_for_a_cache_has_its_steps_also_after_it_is_removed(tmp_path: Path) -> None:
    path, notes = tmp_path / "cache.jsonl", []  # type: ignore[var-annotated]

    def second() -> Any:
        cache = ResumeCache(path)
        with cache.alone(notes.append):
            return [cache[key] for key in "ab"]

    cache = ResumeCache(path)
    with cache.alone():
        cache.put("a", 1)
        ended = beside(second)
        wait_for(lambda: notes)
        cache.put("b", 2)
        # Published and forgotten before the second one looks again.
        cache.forget()
    wait_for(lambda: ended)
    assert ended == [[1, 2]]


def test_another_evaluation_of_one_file_is_refused_at_its_start(tmp_path: Path) -> None:
    out = tmp_path / "e.json"
    request = EvaluateRequest(prompts="requests", out=out)

    def start(prompts: str) -> None:
        with EvaluateRequest(prompts=prompts, out=out).claimed():
            pass

    with request.claimed():
        equal, other = beside(lambda: start("requests")), beside(lambda: start("languages"))
        wait_for(lambda: equal and other)
    assert equal == [None]  # it computes, and waits when it writes
    assert isinstance(other[0], ResourceError)
    assert "e.json is being written by another thread of this process" in str(other[0])
    with one_writer(out):  # nobody holds it any more
        pass


def edits_along(values: list[float]) -> EditSet:
    edit = Edit(None, "add", 1.0, direction=Direction(0, np.array(values)))
    return EditSet("tiny", "", (edit,))


def test_edits_and_their_directions_are_replaced_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "edits.toml"
    first, second = edits_along([0.6, 0.8]), edits_along([0.8, 0.6])
    write_edits(first, path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("saescope.control.edits_file._header_lines", killed)
    with pytest.raises(KeyboardInterrupt):
        write_edits(second, path)  # after its directions, before the file itself
    monkeypatch.undo()
    assert read_edits(path).edits == first.edits
    write_edits(second, path)
    assert read_edits(path).edits == second.edits


def test_new_folder_appears_with_all_its_files_and_an_old_one_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "made"
    seen = []
    rename = Path.rename

    def record(path: Path, target: Path) -> Path:
        seen.append(sorted(child.name for child in path.iterdir()))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", record)
    replace_files(out, {"a": b"1", "b": b"2"})
    assert seen == [["a", "b"]]
    (out / "mine").write_text("keep me")
    replace_files(out, {"a": b"3", "b": b"2"})
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "a": "3",
        "b": "2",
        "mine": "keep me",
    }
