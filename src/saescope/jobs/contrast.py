"""The `contrast` request: features that distinguish prompt sets."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import ClassVar, final

from saescope.analysis.contrast import Contrast, ContrastSettings, contrast
from saescope.jobs.inputs import ModelInputs
from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.request import Request
from saescope.jobs.runs import Answer, Extraction, obtain_run
from saescope.sources.prompt_sets import DEFAULT_BUNDLE
from saescope.store.runs import Run


@final
@dataclass(frozen=True)
class ContrastRequest(Request):
    """Find features that distinguish prompt sets, and confirm them on held-out prompts."""

    verb: ClassVar[str] = "contrast"

    sets: str = DEFAULT_BUNDLE
    "Prompt sets: a folder, a file, a bundle, or the directory of a run, which needs no model."
    _: KW_ONLY
    inputs: ModelInputs = ModelInputs()
    settings: ContrastSettings = ContrastSettings()
    out: Path | None = None
    "Directory of the run. Default: runs/NAME-HASH."

    def run(self, reporter: Reporter = SILENT) -> Answer[Contrast]:
        """Extract the features unless the run exists, and compare the sets."""
        self.settings.check()
        extraction = Extraction(
            sets=self.sets,
            inputs=self.inputs,
            out=self.out,
            command=self.record(),
            compare_under=self.settings.masking,
        )
        run = obtain_run(extraction, reporter)
        return Answer(run, self.ask(run))

    def ask(self, run: Run) -> Contrast:
        """Answer from a stored run, without a model."""
        return contrast(run, self.settings, layers=self.inputs.layer_list)
