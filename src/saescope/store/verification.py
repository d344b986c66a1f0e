"""All that is wrong with a run: its manifest, its files, and what its tables hold."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from saescope.sources.catalog import SaeSpec
from saescope.store import columns
from saescope.store.arrays import Ints
from saescope.store.manifest import (
    MANIFEST,
    SIZES,
    manifest_problems,
    read_manifest,
    specs_problems,
)
from saescope.store.runs import Run
from saescope.store.table_checks import table_problems
from saescope.store.table_files import TableDamage, TableRecord, check_bytes, read_table
from saescope.store.tables import PROMPTS_NAME, prompts_of


def verify(path: str | Path) -> list[str]:
    """List problems with a run's files, one line each; empty if it is intact.

    Checks the manifest, missing and unexpected files, hashes, then what every table holds. Raises
    RunError if the manifest cannot be read.

    >>> import tempfile
    >>> import saescope as ss
    >>> lm = ss.load_lm("saescope-tiny", [2])
    >>> saes = [ss.load_sae("saescope-tiny-sae", 2)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = ss.extract(lm, saes, ss.bundled_prompts()[:1], f"{folder}/run")
    ...     (run.path / "tokens.parquet").unlink()
    ...     ss.verify(run.path)
    ['tokens.parquet is missing']
    """
    path = Path(path)
    manifest = read_manifest(path)
    problems = [f"{MANIFEST} {problem}" for problem in manifest_problems(manifest)]
    hashes = manifest.get("tables")
    if not isinstance(hashes, dict):
        return problems
    present = {file.name for file in path.iterdir()} - {MANIFEST}
    problems += [f"{name} is missing" for name in sorted(hashes.keys() - present)]
    problems += [
        f"{name} is unexpected: it is not listed in {MANIFEST}"
        for name in sorted(present - hashes.keys())
    ]
    contents = _Contents(path, manifest)
    # Prompts come first: their lengths say how long the other tables are.
    for name in sorted(hashes.keys() & present, key=lambda name: (name != PROMPTS_NAME, name)):
        problems += [f"{name} {problem}" for problem in contents.problems(name)]
    return problems


class _Contents:
    """The tables of a run whose manifest may be damaged."""

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self._path = path
        self._manifest = manifest
        self._prompt_lengths: Ints | None = None
        self._saes: Mapping[int, SaeSpec] | None = None
        if not any(specs_problems(manifest)):
            self._saes = Run(path, manifest).saes

    def problems(self, name: str) -> Iterator[str]:
        """Yield what is wrong with one table: its bytes, and as far as it can be read, the rest."""
        path, is_as_published = self._path / name, True
        try:
            check_bytes(path, self._record(name))
        except TableDamage as damage:
            is_as_published = False
            yield str(damage)
        try:
            table = read_table(path, None).table
        except TableDamage as damage:
            if is_as_published:
                yield str(damage)
            return
        if self._saes is not None:
            yield from self._content_problems(name, table, self._saes)

    def _record(self, name: str) -> TableRecord:
        sizes = self._manifest.get(SIZES)
        size = sizes.get(name) if isinstance(sizes, dict) else None
        return TableRecord(
            str(self._manifest["tables"][name]), size if isinstance(size, int) else None
        )

    def _content_problems(
        self, name: str, table: pa.Table, saes: Mapping[int, SaeSpec]
    ) -> Iterator[str]:
        problems = list(table_problems(name, table, saes, self._prompt_lengths))
        if name == PROMPTS_NAME and not problems:
            self._prompt_lengths = columns.values(table["n_tokens"])
            try:
                prompts_of(table)
            except ValueError:
                problems.append("has messages that are no chat")
        yield from problems
