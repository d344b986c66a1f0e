"""`saescope` in a process of its own, forked from one that has imported torch already.

A test that needs another environment (a hub's address, a home) or a clean exit would otherwise pay
seconds of imports per command.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

_FORKSERVER = get_context("forkserver")
_FORKSERVER.set_forkserver_preload(
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
    *arguments: str, env: Mapping[str, str], cwd: Path, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run the command line with these environment variables, and return how it ended."""
    with TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = _FORKSERVER.Process(target=_main, args=(arguments, dict(env), cwd, out, err))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"saescope {' '.join(arguments)} ran longer than {timeout} s")
        return subprocess.CompletedProcess(
            arguments, process.exitcode, out.read_text("utf-8"), err.read_text("utf-8")
        )


def _main(arguments: list[str], env: dict[str, str], cwd: Path, out: Path, err: Path) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    # Its constants come from the environment when it is imported: import it anew.
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]
    from saescope.surfaces.cli import main

    sys.argv = ["saescope", *arguments]
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    main()
