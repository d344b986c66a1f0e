"""Whatever is raised, a command ends with one line and an exit code that is not 0."""

import errno
import json
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saescope.surfaces.cli import endings, run
from saescope.surfaces.cli.show import print_json

HINT = "SAESCOPE_DEBUG=1 shows the traceback"
RAISED: list[tuple[BaseException, int, str]] = [
    (MemoryError(), 2, "out of memory: use fewer layers"),
    (torch.OutOfMemoryError("Tried to allocate 9 GiB.\nmore"), 2, "(Tried to allocate 9 GiB.)"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "out of memory"),
    (RecursionError("maximum depth"), 2, "nested too deeply"),
    (OSError(errno.ENOSPC, "No space left on device", "a.json"), 2, "cannot write a.json: No sp"),
    (PermissionError(errno.EACCES, "Permission denied", "a.json"), 2, "check its permissions"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "sets"), 2, "sets: Is a directory"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 2, "not readable as UTF-8"),
    (ValueError("a\nb"), 2, f"unexpected ValueError: a; {HINT}"),
    (ZeroDivisionError(), 2, "unexpected ZeroDivisionError"),
    (SystemExit(0), 2, "ended by exit(0)"),
    (BaseException("odd"), 2, "unexpected BaseException: odd"),
    (KeyboardInterrupt(), 130, "interrupted; nothing was written"),
    (BrokenPipeError(), 141, ""),
]


def raising(error: BaseException) -> Callable[..., Any]:
    def raise_it(*_: Any, **__: Any) -> None:
        raise error

    return raise_it


@pytest.mark.parametrize(("error", "code", "line"), RAISED, ids=lambda value: type(value).__name__)
def test_every_exception_is_one_line(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("saescope.jobs.scan.ScanRequest.run", raising(error))
    monkeypatch.setattr(endings, "drop_output", lambda: None)  # the test's own stdout stays
    assert run(["scan", "hello"]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert line in err
    assert len(err.splitlines()) == bool(line)


def test_traceback_on_request(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAESCOPE_DEBUG", "1")
    monkeypatch.setattr("saescope.jobs.scan.ScanRequest.run", raising(ValueError("odd")))
    assert run(["scan", "hello"]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == f"saescope: unexpected ValueError: odd; {HINT}"


def test_line_names_the_file_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    monkeypatch.setattr("saescope.sources.prompt_sets.read_rows", raising(ValueError("odd")))
    assert run(["profile", str(tmp_path)]) == 2
    assert f"unexpected ValueError in {tmp_path}" in capfd.readouterr().err


def test_error_of_a_thread_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def start_thread() -> None:
        thread = threading.Thread(target=raising(ValueError("lost")))
        thread.start()
        thread.join()

    assert endings.finish(start_thread, keeps_work=False) == 2
    assert capfd.readouterr().err == f"saescope: unexpected ValueError: lost; {HINT}\n"


def test_warning_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    def warn_twice() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            for _ in range(2):
                warnings.warn("two\nlines \x1b[31m", UserWarning, stacklevel=1)

    assert endings.finish(warn_twice, keeps_work=False) == 0
    assert capfd.readouterr().err == "saescope: warning: UserWarning: two lines \\x1b[31m\n"


def test_json_has_no_nan(capfd: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("nan"), "b": [{"c": float("-inf")}, (1.5, float("inf"))]})
    assert json.loads(capfd.readouterr().out) == {"a": None, "b": [{"c": None}, [1.5, None]]}
