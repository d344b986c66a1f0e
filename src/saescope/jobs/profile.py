"""The `profile` request: tokens, residual norms and sinks of prompt sets."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from saescope.analysis.profile import SAMPLES, Profile, profile
from saescope.arguments import CountOrZero, Seed
from saescope.errors import ArgumentError
from saescope.jobs.inputs import ModelInputs
from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.request import Request
from saescope.jobs.runs import Answer, Extraction, describe_extraction, is_run, obtain_run
from saescope.sources.prompt_sets import DEFAULT_BUNDLE, read_prompts
from saescope.store.masking import Masking
from saescope.store.token_norms import TokenNorms


@final
@dataclass(frozen=True)
class ProfileRequest(Request):
    """Measure tokens per prompt, the pieces of words, residual norms and sinks of prompt sets."""

    verb: ClassVar[str] = "profile"

    sets: str = f"{DEFAULT_BUNDLE}+conlangs"
    (
        "Prompt sets or a run made before; A+B joins two. With a model and no SAE, only tokens "
        "and norms are measured, and no run is stored."
    )
    _: KW_ONLY
    samples: CountOrZero = SAMPLES
    "Number of words per set to show in their pieces."
    seed: Seed = 0
    "Seed of the bootstrap intervals."
    inputs: ModelInputs = ModelInputs()
    masking: Masking = Masking()
    out: Path | None = None
    "Directory of the run. Default: runs/NAME-HASH."

    def run(self, reporter: Reporter = SILENT) -> "Answer[Profile] | NormsAnswer":
        """Extract the features unless the run exists, and measure the sets.

        With a model and no SAE, nothing but tokens and norms is computed.
        """
        self.masking.check()
        if self.inputs.model is not None and self.inputs.sae is None and not is_run(self.sets):
            return self._without_sae(reporter)
        extraction = Extraction(
            sets=self.sets, inputs=self.inputs, out=self.out, command=self.record()
        )
        run = obtain_run(extraction, reporter)
        return Answer(run, self.ask(run))

    def ask(self, run: TokenNorms) -> Profile:
        """Answer from a stored run, or from measured norms, without a model."""
        return profile(
            run,
            self.masking,
            layers=self.inputs.layer_list,
            n_samples=self.samples,
            seed=self.seed,
        )

    def _without_sae(self, reporter: Reporter) -> "NormsAnswer":
        if self.out is not None:
            raise ArgumentError("out", "needs an SAE: without one, no run is stored")
        sets = read_prompts(self.sets)
        layers = self.inputs.model_layers()
        lm = self.inputs.load_model(layers, reporter, streamed=self.inputs.memory is not None)
        from saescope.engine.norms import measure_norms

        task = describe_extraction(sets, lm.spec.repo, layers)
        with reporter.progress("norms", "tokens × layers", task) as advance:
            norms = measure_norms(
                lm, layers, sets, batch_tokens=self.inputs.batch_tokens, progress=advance
            )
        return NormsAnswer(self.ask(norms))


@dataclass(frozen=True)
class NormsAnswer:
    """A profile that was measured without an SAE: no run holds it."""

    result: Profile

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return self.result.to_dict()
