"""`saescope` in a process of its own, forked from one that has imported torch already.

A test that needs another environment (a hub's address, a home) or a clean exit would otherwise pay
seconds of imports per command.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FORKSERVER = get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    [
        "saescope.engine.load",
        "saescope.engine.scan",
        "saescope.jobs.registry",
        "saescope.surfaces.cli",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.qwen3.modeling_qwen3",
    ]
)


def run_forked(
    *arguments: str,
    env: Mapping[str, str],
    cwd: Path,
    timeout: float = 120,
    stdout: str = "file",
    encoding: str = "utf-8",
    number: int = 0,
    when: Callable[[], bool] = lambda: False,
    prepare: Callable[[], object] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command line with these environment variables, and return how it ended.

    `stdout` may be "closed", "full" (a disk without space) or "unread" (a pipe without a reader);
    `encoding` is the terminal's. The signal `number` is sent `when` a condition holds. `prepare` is
    called in the new process first.
    """
    with TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        for path in (out, err):
            path.touch()  # a process may be killed before it opens them
        streams = _Streams(out, err, stdout, encoding)
        process = FORKSERVER.Process(
            target=_main, args=(arguments, dict(env), cwd, streams, prepare)
        )
        process.start()
        if number:
            _send(number, process, when, timeout)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"saescope {' '.join(arguments)} ran longer than {timeout} s")
        return subprocess.CompletedProcess(
            arguments, process.exitcode, out.read_text(encoding), err.read_text(encoding)
        )


@dataclass(frozen=True)
class _Streams:
    out: Path
    err: Path
    stdout: str
    encoding: str

    def open(self) -> None:
        """Make them the standard streams of this process."""
        for path, descriptor in ((self.out, 1), (self.err, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
        if self.stdout == "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        if self.stdout == "unread":
            reader, writer = os.pipe()
            os.dup2(writer, 1)
            os.close(reader)
        sys.stdout = open(1, "w", encoding=self.encoding, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding=self.encoding, closefd=False)  # noqa: SIM115
        if self.stdout == "closed":
            os.close(1)
            sys.stdout = None


def _send(number: int, process: Any, when: Callable[[], bool], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while process.exitcode is None and time.monotonic() < deadline:
        if when():
            os.kill(process.pid, number)
            return
        time.sleep(0.005)


def _main(
    arguments: list[str],
    env: dict[str, str],
    cwd: Path,
    streams: _Streams,
    prepare: Callable[[], object] | None,
) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if prepare is not None:
        prepare()
    # Its constants come from the environment when it is imported: import it anew.
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]
    from saescope.surfaces.cli import main

    sys.argv = ["saescope", *arguments]
    streams.open()
    main()
