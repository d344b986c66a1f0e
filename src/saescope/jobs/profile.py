"""The `profile` request: tokens, residual norms and sinks of prompt sets."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import ClassVar, final

from saescope.analysis.profile import SAMPLES, Profile, profile
from saescope.arguments import CountOrZero, Seed
from saescope.jobs.inputs import ModelInputs
from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.request import Request
from saescope.jobs.runs import Answer, Extraction, obtain_run
from saescope.sources.prompt_sets import DEFAULT_BUNDLE
from saescope.store.masking import Masking
from saescope.store.runs import Run


@final
@dataclass(frozen=True)
class ProfileRequest(Request):
    """Measure tokens per prompt, the pieces of words, residual norms and sinks of prompt sets."""

    verb: ClassVar[str] = "profile"

    sets: str = f"{DEFAULT_BUNDLE}+conlangs"
    "Prompt sets or a run made before; A+B joins two."
    _: KW_ONLY
    samples: CountOrZero = SAMPLES
    "Number of words per set to show in their pieces."
    seed: Seed = 0
    "Seed of the bootstrap intervals."
    inputs: ModelInputs = ModelInputs()
    masking: Masking = Masking()
    out: Path | None = None
    "Directory of the run. Default: runs/NAME-HASH."

    def run(self, reporter: Reporter = SILENT) -> Answer[Profile]:
        """Extract the features unless the run exists, and measure the sets."""
        self.masking.check()
        extraction = Extraction(
            sets=self.sets, inputs=self.inputs, out=self.out, command=self.record()
        )
        run = obtain_run(extraction, reporter)
        return Answer(run, self.ask(run))

    def ask(self, run: Run) -> Profile:
        """Answer from a stored run, without a model."""
        return profile(
            run,
            self.masking,
            layers=self.inputs.layer_list,
            n_samples=self.samples,
            seed=self.seed,
        )
