"""The `fitness` request: whether an SAE fits a model it was not trained on."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, final

from saescope.analysis.fitness import Fitness, fitness
from saescope.errors import SourceError
from saescope.jobs.inputs import ModelInputs
from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.request import Request
from saescope.jobs.runs import EXTRACT, Answer, Extraction, is_run, obtain_run
from saescope.sources.prompt_sets import DEFAULT_BUNDLE
from saescope.store.runs import Run


@final
@dataclass(frozen=True)
class FitnessRequest(Request):
    """Report how well an SAE fits a model: variance explained, features per token, agreement."""

    verb: ClassVar[str] = "fitness"

    sets: str = DEFAULT_BUNDLE
    "Prompt sets, or a run that this command made before."
    _: KW_ONLY
    base: str | None = None
    "Model the SAE was trained on, to compare with: a folder, a hub id, or a run of this command."
    inputs: ModelInputs = ModelInputs()
    out: Path | None = None
    "Directory for the runs. Default: runs/NAME-HASH each."

    def run(self, reporter: Reporter = SILENT) -> Answer[Fitness]:
        """Extract the runs unless they exist, and compare them."""
        question = replace(self, base=self._base_run(reporter))
        run = self._extract(self.inputs, "model", question.record(), reporter)
        return Answer(run, question.ask(run))

    def ask(self, run: Run) -> Fitness:
        """Answer from a stored run; `base` must be None or the directory of a run."""
        return fitness(run, None if self.base is None else Run.open(self.base))

    def _base_run(self, reporter: Reporter) -> str | None:
        if self.base is None:
            return None
        if is_run(self.base):
            return str(Path(self.base).resolve())
        if self.inputs.sae is None:
            missing = "sae= too" if self.inputs.model else "sae= and model= too"
            raise SourceError(f"base= is the model that the SAE was trained on: pass {missing}")
        run = self._extract(replace(self.inputs, model=self.base), "base", EXTRACT, reporter)
        return str(run.path.resolve())

    def _extract(
        self, inputs: ModelInputs, name: str, command: Mapping[str, Any], reporter: Reporter
    ) -> Run:
        extraction = Extraction(
            sets=self.sets,
            inputs=inputs,
            out=self.out / name if self.out else None,
            command=command,
            keep_errors=True,
        )
        return obtain_run(extraction, reporter)
