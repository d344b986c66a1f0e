"""The `verify` request: whether a run is still what was published, and its inputs are unchanged."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, final

from saescope.errors import SourceError
from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.request import Request
from saescope.sources.files import open_files
from saescope.sources.stored_files import changed_files, without_hash
from saescope.store.manifest import DIGEST, MANIFEST, read_manifest
from saescope.store.verification import verify

_NOTHING_RECORDED = "model and SAEs: an earlier version made this run and recorded no hashes"
_NO_DIGEST = (
    f"{MANIFEST} has no {DIGEST}: an earlier version made this run, and an edit of its manifest "
    "outside `job` cannot be noticed"
)


@dataclass(frozen=True)
class Verification:
    """The problems found in a run; none if it is whole.

    `unproven` lists input files of which only the fingerprint could be compared, None if the
    inputs were not checked. `notes` says what this run's version could not protect.
    """

    run: Path
    problems: list[str]
    unproven: list[str] | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of `saescope verify`."""
        document = {"ok": not self.problems, "problems": self.problems, "run": str(self.run)}
        if self.notes:
            document["notes"] = self.notes
        return document if self.unproven is None else {**document, "unproven": self.unproven}


@final
@dataclass(frozen=True)
class VerifyRequest(Request):
    """Check a run's hashes and schema, and on request the files it was made from."""

    verb: ClassVar[str] = "verify"

    directory: Path
    "Directory of the run."
    _: KW_ONLY
    full: bool = False
    "Also hash the model's and SAEs' files: are they those that the run was made from?"
    offline: bool = False
    "Download nothing: use only local folders and the hub's cache."

    def run(self, reporter: Reporter = SILENT) -> Verification:
        """Check the manifest, every table, and if `full`, every input file."""
        problems = verify(self.directory)
        manifest = read_manifest(self.directory)
        notes = [] if DIGEST in manifest else [_NO_DIGEST]
        if not self.full:
            return Verification(self.directory, problems, notes=notes)
        recorded = manifest.get("files")
        if recorded is None:
            return Verification(self.directory, problems, [_NOTHING_RECORDED], notes)
        try:
            input_problems, unproven = self._check_inputs(recorded, reporter)
        except (KeyError, TypeError, AttributeError, ValueError):  # of another form
            problems.append(f"{MANIFEST} is damaged: its files cannot be read")
            return Verification(self.directory, problems, [], notes)
        return Verification(self.directory, problems + input_problems, unproven, notes)

    def _check_inputs(
        self, recorded: Mapping[str, Any], reporter: Reporter
    ) -> tuple[list[str], list[str]]:
        """Return what is wrong with the input files, and those that are not proven."""
        problems, unproven = [], []
        inputs = [recorded["model"], *recorded["saes"].values()]
        with reporter.progress("verify", "inputs") as advance:
            advance(0, len(inputs))
            for number, one in enumerate(inputs, 1):
                problems += _problems(one["source"], one["files"], self.offline)
                unproven += [f"{one['source']}: {name}" for name in without_hash(one["files"])]
                advance(number, len(inputs))
        return problems, unproven


def _problems(source: str, records: Mapping[str, Mapping[str, Any]], offline: bool) -> list[str]:
    try:
        return changed_files(open_files(source, offline=offline), records)
    except SourceError as error:
        return [f"cannot be checked: {error}"]
