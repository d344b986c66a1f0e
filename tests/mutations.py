"""Break central lines of the package, one at a time, and see that a test fails for each.

`python -m tests.mutations` runs all of them on a copy of the package and prints a table;
`python -m tests.mutations publish` runs those whose name contains a word. Exit code 1 if a mutation
survives. `test_mutations.py` checks that each one still applies.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch  # noqa: F401
import transformers  # noqa: F401

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "saescope"
SECONDS = 60


@dataclass(frozen=True)
class Mutation:
    """One replacement in a file of the package, and the tests of which at least one must fail."""

    name: str
    file: str
    before: str
    after: str
    tests: str
    only: str

    def apply(self, package: Path) -> str:
        """Change the file and return its old text; raises ValueError if the text is not there."""
        path = package / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.before) != 1:
            raise ValueError(
                f"{self.name}: {self.file} has the text {text.count(self.before)} times"
            )
        path.write_text(text.replace(self.before, self.after), encoding="utf-8")
        return text


MUTATIONS = [
    Mutation(
        "publish: copy instead of rename",
        "store/atomic.py",
        "    staging.rename(out)\n    with suppress(OSError):  # it is",
        "    shutil.copytree(staging, out)\n    with suppress(OSError):  # it is",
        "test_atomic.py",
        "whole or flushed",
    ),
    Mutation(
        "publish: overwrite",
        "store/atomic.py",
        "    if out.exists() or out.is_symlink():",
        "    if False:",
        "test_atomic.py",
        "overwritten",
    ),
    Mutation(
        "lock: do not wait",
        "sources/locks.py",
        "    if lock is not None:\n        turn = _wait(",
        "    if False:\n        turn = _wait(",
        "test_one_writer.py",
        "another_request_is_refused",
    ),
    Mutation(
        "mask: score position 0",
        "store/masking.py",
        "np.asarray(pos > 0)",
        "np.asarray(pos >= 0)",
        "test_masking.py",
        "",
    ),
    Mutation(
        "mask: score sinks",
        "store/masking.py",
        "in_scope if self.keep_sinks else in_scope & ~sinks",
        "in_scope",
        "test_masking.py",
        "",
    ),
    Mutation(
        "top-k: one group too few",
        "engine/topk.py",
        "grouped.amax(1).topk(k,",
        "grouped.amax(1).topk(k - 1,",
        "test_topk.py",
        "",
    ),
    Mutation(
        "ReLU: negative activations",
        "engine/sae.py",
        "top.values[:, :k].relu()",
        "top.values[:, :k]",
        "test_sae.py",
        "encode or fewer_than_k",
    ),
    Mutation(
        "b_dec: left out",
        "engine/sae.py",
        "(out + self.b_dec)",
        "out",
        "test_sae.py",
        "decode",
    ),
    Mutation(
        "hooks: not removed",
        "control/steer.py",
        "                    handle.remove()\n",
        "                    pass\n",
        "test_steer_contexts.py",
        "closed",
    ),
    Mutation(
        "blocks: closed edits stay",
        "engine/contexts.py",
        "        self.value = None\n",
        "        pass\n",
        "test_steer_contexts.py",
        "closed",
    ),
    Mutation(
        "blocks: a suspended generator steers",
        "engine/contexts.py",
        "(holder is None or not _is_suspended(holder))",
        "True",
        "test_steer_contexts.py",
        "suspended",
    ),
    Mutation(
        "false discovery: no correction",
        "analysis/stats.py",
        "p[order] * len(p) / np.arange(len(p), 0, -1)",
        "p[order] * 1.0",
        "test_stats.py",
        "benjamini",
    ),
    Mutation(
        "split: pairs are separated",
        "sources/splits.py",
        "    if prompt.pair is not None:\n",
        "    if False:\n",
        "test_prompts.py",
        "pairs_stay or share",
    ),
    Mutation(
        "fingerprint: contents are not read",
        "sources/fingerprints.py",
        "                digest.update(file.read(length))\n",
        "                file.read(length)\n",
        "test_fingerprints.py",
        "changed_tensor or rewritten",
    ),
    Mutation(
        "edits: written at half their size",
        "control/edited_pass.py",
        "total[self.mask] += coefficients @ write_directions",
        "total[self.mask] += coefficients @ write_directions / 2",
        "test_steer.py",
        "formula or cached or nested",
    ),
]


def killed(mutation: Mutation, source: Path) -> bool:
    """Whether a test fails on the mutated package; raises RuntimeError if no test ran."""
    old = mutation.apply(source / "saescope")
    try:
        code = _run_tests(mutation, source)
    finally:
        (source / "saescope" / mutation.file).write_text(old, encoding="utf-8")
    if code not in (0, 1):
        raise RuntimeError(f"{mutation.name}: pytest ended with exit code {code}")
    return code == 1


def _run_tests(mutation: Mutation, source: Path) -> int:
    options = ["-q", "-x", "--no-header", "-p", "no:cacheprovider", "-p", "no:randomly"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    chosen = ["-m", "not slow", *(["-k", mutation.only] if mutation.only else [])]
    tests = str(ROOT / "tests" / mutation.tests)
    child = os.fork()  # torch is imported already, the package is not
    if not child:
        signal.alarm(SECONDS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.path[:0] = [str(source), str(ROOT / "tests")]
        sys.dont_write_bytecode = True
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
        code = 70
        try:
            code = pytest.main([*options, *chosen, tests])
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(words: list[str]) -> int:
    """Run the mutations whose names contain one of the words, or all; return how many survive."""
    chosen = [m for m in MUTATIONS if not words or any(word in m.name for word in words)]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        shutil.copytree(PACKAGE, source / "saescope", ignore=shutil.ignore_patterns("__pycache__"))
        for mutation in chosen:
            start = time.perf_counter()
            is_killed = killed(mutation, source)
            survivors += not is_killed
            outcome = "a test fails" if is_killed else "SURVIVES"
            seconds = time.perf_counter() - start
            print(
                f"{mutation.name:40} {mutation.tests:26} {outcome:12} {seconds:5.1f} s", flush=True
            )
    print(f"{len(chosen) - survivors} of {len(chosen)} mutations break a test")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
