"""The `rerun` request: repeat the job that made a run, from its manifest alone."""

from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, final

from saescope.analysis.agreement import agreement
from saescope.errors import RunError
from saescope.jobs.questions import read_command
from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.request import Request
from saescope.store.manifest import MANIFEST
from saescope.store.runs import Run
from saescope.table import Table

_MOST_THREADS = 4096


@dataclass(frozen=True)
class Rerun:
    """Whether a repeated run is the same, what differs, and the answer to the run's question."""

    run: Path
    verb: str
    differences: list[str]
    answer: Table | None

    @property
    def same(self) -> bool:
        """Whether every table has the same bytes."""
        return not self.differences

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of `saescope rerun`: what the job printed, and `rerun`."""
        document: dict[str, Any] = {}
        if self.answer is not None:
            document = {**self.answer.to_dict(), "run": str(self.run)}
        outcome = {"same": self.same, "differences": self.differences, "verb": self.verb}
        return {**document, "rerun": outcome}


@final
@dataclass(frozen=True)
class RerunRequest(Request):
    """Repeat the job that made a run, and report whether the result is the same."""

    verb: ClassVar[str] = "rerun"

    directory: Path
    "Directory of the run."
    _: KW_ONLY
    offline: bool = False
    "Download nothing: use only local folders and the hub's cache."
    out: Path | None = None
    "Keep the repeated run here. Default: it is deleted."

    def run(self, reporter: Reporter = SILENT) -> Rerun:
        """Compute the run again and compare it; raises RunError if the manifest cannot be read."""
        first = Run.open(self.directory)
        first.check_tables()  # equal hashes in two manifests say nothing about damaged tables
        question = read_command(first.manifest["command"], first.path)
        with TemporaryDirectory(prefix="saescope-") as temporary:
            second = self._repeat(first, self.out or Path(temporary) / "run", reporter)
            return Rerun(
                run=self.out or self.directory,
                verb=first.manifest["command"]["verb"],
                differences=_differences(first, second),
                answer=None if question is None else question.ask(second),
            )

    def _repeat(self, first: Run, out: Path, reporter: Reporter) -> Run:
        from saescope.engine.extract import extract
        from saescope.engine.lm import load_lm
        from saescope.engine.load import load_sae
        from saescope.engine.numerics import threads

        job, inputs = first.manifest["job"], first.manifest["inputs"]
        numerics = job.get("numerics", {})  # earlier versions recorded only the threads
        lm = load_lm(
            inputs["model"],
            first.layers,
            dtype=job["dtype"],
            device=job["device"],
            offline=self.offline,
            streamed=first.manifest.get("streamed", False),
        )
        shares = numerics.get("shares_prefixes", lm.shares_prefixes)
        lm = replace(lm, shares_prefixes=shares and lm.shares_prefixes)
        saes = [
            load_sae(
                inputs["saes"][str(layer)],
                layer,
                k=spec.k,
                decoder=job["errors"],
                device=lm.device,
                offline=self.offline,
            )
            for layer, spec in first.saes.items()
        ]
        n_threads = _thread_count(first, numerics.get("threads") or first.manifest.get("threads"))
        with (
            reporter.progress("features", task=f"{first.path} again") as advance,
            threads(n_threads),
        ):
            return extract(
                lm,
                saes,
                first.prompt_sets,
                out,
                batch_tokens=job["batch_tokens"],
                errors=job["errors"],
                command=first.manifest["command"],
                progress=advance,
                kernels=first.manifest.get("kernels"),
            )


def _thread_count(run: Run, recorded: Any) -> int | None:
    """Return a recorded number of threads; raises RunError for one that no machine has."""
    if recorded is None or (isinstance(recorded, int) and 0 < recorded <= _MOST_THREADS):
        return recorded
    raise RunError(
        f"{run.path / MANIFEST} is damaged: it was made with {recorded!r} threads; "
        "remove the run and compute it again"
    )


def _differences(first: Run, second: Run) -> list[str]:
    """Say what differs: first what went in, then how far the features do."""
    if first.manifest["tables"] == second.manifest["tables"]:
        return []
    lines = []
    repeated_job = second.manifest["job"]
    for key, before in first.manifest["job"].items():
        if before != repeated_job.get(key):
            lines.append(f"{key}: was {before}, is {repeated_job.get(key)}")
    for name, before in first.manifest["tables"].items():
        if before != second.manifest["tables"].get(name):
            lines.append(f"{name} differs")
    try:
        agreed = agreement(first, second)
    except RunError as error:
        return [*lines, str(error)]
    for layer, figures in agreed.layers.items():
        lines.append(
            f"layer {layer}: {100 * figures.topk_jaccard:.2f} % of features are the same, "
            f"activations differ by {100 * figures.act_rel_diff:.2g} % (median)"
        )
    return lines
