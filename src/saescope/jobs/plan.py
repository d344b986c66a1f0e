"""The `plan` and `fetch` requests: what a job needs, and getting just that."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, final

from saescope.errors import PromptError
from saescope.jobs.inputs import ModelInputs
from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.request import Request
from saescope.jobs.runs import is_run
from saescope.sources.catalog import QWEN_SCOPE_NOTICE, find_release
from saescope.sources.fetch import fetch
from saescope.sources.job_plan import JobPlan
from saescope.sources.machine import parse_rate
from saescope.sources.prompt_sets import read_prompts
from saescope.sources.prompts import Prompt
from saescope.sources.references import name_in_catalog


@dataclass(frozen=True)
class Estimate:
    """A plan and the estimated seconds of its download and computation."""

    plan: JobPlan
    bandwidth: str
    flop_per_s: float | None = None

    @property
    def download_seconds(self) -> float:
        """Seconds to download what is missing, at the stated bandwidth."""
        return self.plan.download_bytes / parse_rate(self.bandwidth)

    @property
    def compute_seconds(self) -> float | None:
        """Seconds to compute, at the measured rate; None without a rate or without prompts."""
        if not self.flop_per_s or self.plan.gflop is None:
            return None
        return self.plan.gflop * 1e9 / self.flop_per_s

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of `saescope plan`."""
        return {
            **self.plan.to_dict(),
            "bandwidth_bytes_per_s": parse_rate(self.bandwidth),
            "download_seconds": self.download_seconds,
            "compute_seconds": self.compute_seconds,
        }


@final
@dataclass(frozen=True)
class PlanRequest(Request):
    """Report what a job would download, keep on disk and hold in memory, and whether it fits.

    No weights are downloaded.
    """

    verb: ClassVar[str] = "plan"

    sets: str | None = None
    "Prompt sets, to estimate the work; one token is taken as four bytes."
    _: KW_ONLY
    measure: bool = False
    "Measure this machine's matmul rate and estimate the seconds of computing."
    bandwidth: str = "100Mbit/s"
    "Download speed, such as 100Mbit/s or 12MB/s."
    inputs: ModelInputs = ModelInputs()

    def run(self, reporter: Reporter = SILENT) -> Estimate:
        """Look up the sizes of all files and compute what the job needs."""
        plan = _plan(self.sets, self.bandwidth, self.inputs)
        if not self.measure:
            return Estimate(plan, self.bandwidth)
        from saescope.engine.matmul_kernels import matmul_rate

        rate = matmul_rate(plan.dtype, plan.options.device)
        return Estimate(plan, self.bandwidth, rate)


@final
@dataclass(frozen=True)
class FetchRequest(Request):
    """Download just the files a job needs, and check them. The same command resumes."""

    verb: ClassVar[str] = "fetch"

    sets: str | None = None
    "Prompt sets, as for plan; the files do not depend on them."
    _: KW_ONLY
    check: bool = False
    "Also hash the files that are already here."
    bandwidth: str = "100Mbit/s"
    "Download speed, such as 100Mbit/s or 12MB/s."
    inputs: ModelInputs = ModelInputs()

    def run(self, reporter: Reporter = SILENT) -> "Fetched":
        """Download what is missing; raises ResourceError if the disk cannot hold it."""
        plan = _plan(self.sets, self.bandwidth, self.inputs)
        if not plan.fits_memory:
            reporter.note(
                f"this machine cannot run it as asked: {plan.why[-1]}; saescope plan with the "
                "same options says what would fit"
            )
        complete = fetch(plan, check=self.check, report=reporter.note)
        if find_release(name_in_catalog(plan.options.sae)):
            reporter.note(QWEN_SCOPE_NOTICE)
        downloaded = plan.download_bytes if plan.missing else 0
        return Fetched(Estimate(complete, self.bandwidth), downloaded)


@dataclass(frozen=True)
class Fetched:
    """The plan after its files were fetched, and how many bytes were downloaded."""

    estimate: Estimate
    downloaded_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of `saescope fetch`."""
        return self.estimate.to_dict()


def _plan(sets: str | None, bandwidth: str, inputs: ModelInputs) -> JobPlan:
    """Make the plan; amounts that cannot be read are refused before anything is looked up."""
    parse_rate(bandwidth)
    prompts = [] if sets is None else _read(sets)
    from saescope.engine.plan import plan_job

    return plan_job(inputs.job_options(prompts))


def _read(sets: str) -> list[Prompt]:
    if is_run(sets):
        raise PromptError(f"{sets} is a run: a question to it needs no model, nothing to plan")
    return [prompt for prompt_set in read_prompts(sets) for prompt in prompt_set.prompts]
