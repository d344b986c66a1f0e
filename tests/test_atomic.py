"""Files and folders appear whole or not at all, and a failure leaves nothing behind."""

import os
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from saescope.errors import ResourceError
from saescope.store.atomic import (
    atomic_file,
    atomic_folder,
    disk_errors,
    refuse_full_disk,
    replace_file,
)


def full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_folder_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with atomic_folder(out) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("text")
        assert not out.exists()
    assert (out / "inner" / "file").read_text() == "text"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def fail_in(block: AbstractContextManager[Path], error: BaseException) -> None:
    with block as path:
        target = path / "file" if path.is_dir() else path
        target.write_text("text")
        raise error


def test_failing_block_leaves_neither_folder_nor_parents(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fail_in(atomic_folder(tmp_path / "new" / "out"), KeyboardInterrupt())
    with pytest.raises(ValueError, match="mine"):
        fail_in(atomic_file(tmp_path / "new" / "out"), ValueError("mine"))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "old").touch()
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "new").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ResourceError, match="out exists"), atomic_folder(tmp_path / "out"):
        pass
    with pytest.raises(ResourceError, match="out exists"), atomic_file(tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_text() == "mine"


def write_while_another_appears(out: Path) -> None:
    with atomic_file(out) as path:
        path.write_text("late")
        out.write_text("first")


def test_what_came_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="out exists"):
        write_while_another_appears(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file"
    replace_file(path, "first")
    replace_file(path, b"second")
    assert path.read_text() == "second"
    monkeypatch.setattr(os, "fsync", full_disk)
    message = "cannot write .*file: No space left on device; nothing was left behind"
    with pytest.raises(ResourceError, match=message):
        replace_file(path, "third")
    assert path.read_text() == "second"
    assert [path.name for path in path.parent.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_every_file_of_a_folder_is_flushed_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []
    fsync = os.fsync

    def record(handle: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("text")
    names = [Path(path).name for path in flushed]
    assert names == ["file", "inner", ".out.partial", tmp_path.name]


def test_disk_errors_are_one_clear_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceError, match="cannot write the run r: No such file"),
        disk_errors("the run r", "try again"),
    ):
        (tmp_path / "missing" / "file").write_text("text")


def test_full_disk_is_refused_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saescope.store.atomic.free_disk", lambda _: 40 * 2**20)
    refuse_full_disk(tmp_path / "out", 1)
    with pytest.raises(ResourceError, match=r"41\.9 MB are free"):
        refuse_full_disk(tmp_path / "out", 2**30)
