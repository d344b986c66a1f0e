"""One writer per result: the second waits, is refused, or takes over when the first has died."""

import errno
import json
import os
import shutil
import signal
import time
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from beside import beside, wait_for
from conftest import Pair
from forked import FORKSERVER
from saescope.engine.extract import extract
from saescope.errors import ResourceError
from saescope.sources import locks, whole_files
from saescope.sources.file_cache import cache_folder
from saescope.sources.locks import one_writer
from saescope.sources.prompts import texts
from saescope.sources.whole_files import write_whole
from saescope.store.atomic import atomic_file, atomic_folder, replace_file
from saescope.store.resume_cache import ResumeCache
from saescope.store.runs import Run

PROMPTS = texts(["The red dog sleeps.", "A green bird sings."])


def lock_files() -> list[Path]:
    return list((cache_folder() / "locks").glob("*"))


def hold(target: Path, request: str, ready: Path) -> None:
    """Hold a lock until this process is killed."""
    os.environ["SAESCOPE_CACHE"] = str(ready.parent / "cache")
    with one_writer(target, request):
        ready.touch()
        time.sleep(60)


def test_a_second_thread_waits_and_says_so(tmp_path: Path) -> None:
    notes: list[str] = []
    order: list[str] = []

    def second() -> None:
        with one_writer(tmp_path / "run", "same", notes.append):
            order.append("second")

    with one_writer(tmp_path / "run", "same"):
        ended = beside(second)
        wait_for(lambda: notes)
        order.append("first")
    wait_for(lambda: ended)
    assert order == ["first", "second"]
    place = f"{tmp_path / 'run'}"
    assert notes == [
        f"waiting for another thread of this process ({os.getpid()}), which is writing {place}"
    ]
    assert lock_files() == []


def test_another_request_is_refused_with_the_process(tmp_path: Path) -> None:
    def second() -> None:
        with one_writer(tmp_path / "run", "mine"):
            raise AssertionError

    with one_writer(tmp_path / "run", "theirs"):
        ended = beside(second)
        wait_for(lambda: ended)
    [error] = ended
    assert isinstance(error, ResourceError)
    assert f"({os.getpid()}), for another request: choose another place" in str(error)


def test_links_lead_to_one_lock_and_blocks_of_a_thread_nest(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with one_writer(tmp_path / "run", "a") as turn, one_writer(tmp_path / "link/run", "b") as same:
        assert turn is same
        assert len(lock_files()) == 1
    assert lock_files() == []


@pytest.mark.slow
def test_a_killed_holder_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAESCOPE_CACHE", str(tmp_path / "cache"))
    target, ready = tmp_path / "run", tmp_path / "ready"
    holder = FORKSERVER.Process(target=hold, args=(target, "theirs", ready))
    holder.start()
    wait_for(ready.exists)
    with pytest.raises(ResourceError, match=f"process {holder.pid}, for another"):  # noqa: SIM117
        with one_writer(target, "mine"):
            pass
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    [left] = lock_files()
    assert json.loads(left.read_text())["pid"] == holder.pid
    notes: list[str] = []

    def write() -> None:
        with one_writer(target, "mine", notes.append):
            pass

    # Somebody has the lock and has not yet put a name over the dead one's.
    unnamed = locks.FileLock(left, thread_local=False)
    unnamed.acquire(blocking=False)
    ended = beside(write)
    time.sleep(0.2)
    assert ended == []
    unnamed.release()
    wait_for(lambda: ended)
    assert ended == [None]
    with one_writer(target, "mine", notes.append) as turn:
        assert turn.waited_for == frozenset()
    assert (notes, lock_files()) == ([], [])


def test_without_a_cache_folder_the_temporary_one_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAESCOPE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    notes: list[str] = []
    with one_writer(tmp_path / "run", "", notes.append):
        [lock] = tmp_path.glob("saescope-locks-*/*.lock")
    assert (notes, lock.exists()) == ([], False)


def test_where_nothing_can_be_locked_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(locks.FileLock, "acquire", no_locks)
    notes: list[str] = []
    with one_writer(tmp_path / "run", "", notes.append):
        pass
    assert notes == [
        f"cannot lock {tmp_path / 'run'} (Function not implemented): "
        "run no other command that writes there meanwhile"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("write", [atomic_file, atomic_folder, replace_file])
def test_everything_published_waits_for_the_writer_before(tmp_path: Path, write: Any) -> None:
    out = tmp_path / "out"

    def second() -> None:
        if write is replace_file:
            replace_file(out, "second")
            return
        with write(out) as staging:
            (staging / "file" if staging.is_dir() else staging).write_text("second")

    with one_writer(out):
        ended = beside(second)
        time.sleep(0.2)
        assert (ended, out.exists()) == ([], False)
    wait_for(lambda: ended)
    assert ended == [None]
    assert (out / "file" if out.is_dir() else out).read_text() == "second"


# --- runs


def extract_to(pair: Pair, out: Path, notes: list[str] | None = None, **options: Any) -> Run:
    lm, saes = pair.load(0, 1)
    note = None if notes is None else notes.append
    return extract(lm, saes, PROMPTS, out, batch_tokens=1, note=note, **options)


def test_of_two_equal_jobs_the_second_gets_the_run_of_the_first(pair: Pair, tmp_path: Path) -> None:
    notes: list[str] = []
    computed = []
    out = tmp_path / "run"

    def second() -> Run:
        return extract_to(pair, out, notes, progress=lambda *_: computed.append("second"))

    waiting: list[list[Any]] = []

    def start_the_second(_done: int, _total: int) -> None:
        computed.append("first")
        if not waiting:
            waiting.append(beside(second))
        wait_for(lambda: notes)

    first = extract_to(pair, out, progress=start_the_second)
    [ended] = waiting
    wait_for(lambda: ended)
    assert [run.path for run in (first, *ended)] == [out, out]
    assert set(computed) == {"first"}
    assert len(notes) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_another_job_is_refused_while_a_run_is_written(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "run"
    refused: list[str] = []

    def try_another(_done: int, _total: int) -> None:
        def other() -> None:
            lm, saes = pair.load(0)
            extract(lm, saes, PROMPTS, out)

        ended = beside(other)
        wait_for(lambda: ended)
        refused.append(str(ended[0]))

    run = extract_to(pair, out, progress=try_another)
    assert all("for another request" in text for text in refused)
    assert run.layers == (0, 1)


def test_what_a_kill_after_publishing_left_goes_with_the_next_call(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saescope.store.writer.clear", lambda _path: None)
    extract_to(pair, tmp_path / "run")
    monkeypatch.undo()
    assert (tmp_path / ".run.partial").is_dir()
    extract_to(pair, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_batch_with_a_bad_byte_is_computed_again(pair: Pair, tmp_path: Path) -> None:
    def stop(done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_to(pair, tmp_path / "run", progress=stop)
    [batch] = (tmp_path / ".run.partial").glob("*.npz")
    with zipfile.ZipFile(batch) as archive:
        member = max(archive.infolist(), key=lambda member: member.file_size)
    content = bytearray(batch.read_bytes())
    end = content.find(b"PK", member.header_offset + 2)
    content[end - 1 if end > 0 else -1] ^= 1  # the last byte of its values
    batch.write_bytes(content)
    with zipfile.ZipFile(batch) as archive:
        assert archive.testzip() == member.filename
    resumed = extract_to(pair, tmp_path / "run")
    whole = extract_to(pair, tmp_path / "whole")
    assert resumed.manifest["tables"] == whole.manifest["tables"]


def test_finished_batches_are_not_computed_again(pair: Pair, tmp_path: Path) -> None:
    finished = []

    def stop_at_the_second(done: int, _total: int) -> None:
        finished.append(done)
        if len(finished) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_to(pair, tmp_path / "run", progress=stop_at_the_second)
    calls: list[tuple[int, int]] = []
    extract_to(pair, tmp_path / "run", progress=lambda *count: calls.append(count))
    _, total = calls[0]
    assert [done for done, _ in calls][-1] == total
    assert len(calls) == 2  # of two batches at two layers
    assert calls[0][0] > finished[-1]


@pytest.mark.parametrize("kind", ["file", "link", "torn mark"])
def test_whatever_lies_where_a_run_is_collected_is_no_obstacle(
    pair: Pair, tmp_path: Path, kind: str
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes").write_text("keep me")
    partial = tmp_path / ".run.partial"
    if kind == "file":
        partial.write_text("torn")
    elif kind == "link":
        partial.symlink_to(mine)
    else:
        partial.mkdir()
        (partial / "job").write_text("sha")
    run = extract_to(pair, tmp_path / "run")
    assert run.path.is_dir()
    assert (mine / "notes").read_text() == "keep me"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "run"]


# --- caches


def test_a_torn_cache_is_read_up_to_its_tear_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    ResumeCache(path).put("a", 1)
    whole = path.read_bytes()
    ResumeCache(path).put("b", "ü" * 5)
    both = path.read_bytes()
    for end in range(len(whole), len(both) + 1):
        path.write_bytes(both[:end])
        assert dict(items(ResumeCache(path))) == {"a": 1} | (
            {"b": "ü" * 5} if end > len(both) - 2 else {}
        )
        ResumeCache(path).put("c", [2])
        assert items(ResumeCache(path))["c"] == [2]
    path.write_bytes(whole + bytes(100))  # a power cut: the length, and not the text
    ResumeCache(path).put("c", 3)
    assert items(ResumeCache(path)) == {"a": 1, "c": 3}


def items(cache: ResumeCache) -> dict[str, Any]:
    return {key: cache[key] for key in "abc" if key in cache}


def test_lines_of_several_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"

    def write(name: str) -> None:
        cache = ResumeCache(path)
        for n in range(20):
            cache.put(f"{name}{n}", name * 30_000)

    ended = [beside(partial(write, name)) for name in "xyz"]
    wait_for(lambda: all(ended))
    assert ended == [[None]] * 3
    assert len(ResumeCache(path)) == 60


def test_small_files_of_a_cache_are_seen_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"")
    host, pid = whole_files._this_host(), 2**22 + 1  # no process has this id
    for name in (f".file.{host}-{pid}-0badc0de.partial", ".file.old-1-0badc0de.partial"):
        (tmp_path / name).write_bytes(b"torn")
    os.utime(tmp_path / ".file.old-1-0badc0de.partial", (0, 0))
    others = [".file.elsewhere-1-0badc0de.partial", f".other.{host}-{pid}-0badc0de.partial"]
    for name in others:
        (tmp_path / name).touch()
    seen = set()

    def write(letter: bytes) -> None:
        for _ in range(100):
            write_whole(path, letter * 100_000)

    ended = [beside(partial(write, letter)) for letter in (b"x", b"y")]
    wait_for(path.read_bytes)
    while not all(ended):
        seen.add(path.read_bytes())
    assert ended == [[None]] * 2
    assert seen <= {b"x" * 100_000, b"y" * 100_000}
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "file"])


# --- published by rename


@pytest.fixture
def no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("copied")

    for name in ("copy", "copy2", "copyfile", "copyfileobj", "copytree", "move"):
        monkeypatch.setattr(shutil, name, refuse)


@pytest.mark.usefixtures("no_copies")
def test_publishing_renames(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with atomic_folder(tmp_path / "folder") as staging:
        (staging / "file").write_text("text")
        inodes = staging.stat().st_ino, (staging / "file").stat().st_ino
    folder = tmp_path / "folder"
    assert (folder.stat().st_ino, (folder / "file").stat().st_ino) == inodes
    with atomic_file(tmp_path / "file") as staging:
        staging.write_text("text")
        inode = staging.stat().st_ino
    assert (tmp_path / "file").stat().st_ino == inode

    written = []
    flush = os.fsync

    def record(handle: int) -> None:
        written.append(os.fstat(handle).st_ino)
        flush(handle)

    monkeypatch.setattr(os, "fsync", record)
    before = (tmp_path / "file").stat().st_ino
    replace_file(tmp_path / "file", "new")
    assert written == [(tmp_path / "file").stat().st_ino] != [before]
    written.clear()
    run = extract_to(pair, tmp_path / "run")
    inodes_of_run = {path.stat().st_ino for path in (run.path, *run.path.iterdir())}
    assert inodes_of_run <= set(written)
