"""The `precision` request: the same job in two dtypes or on two devices, compared."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, final

from saescope.analysis.agreement import Agreement, agreement
from saescope.errors import ArgumentError
from saescope.jobs.inputs import ModelInputs
from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.request import Request
from saescope.jobs.runs import EXTRACT, Answer, Extraction, is_run, obtain_run
from saescope.sources.prompt_sets import DEFAULT_BUNDLE
from saescope.store.masking import Masking
from saescope.store.runs import Run


@final
@dataclass(frozen=True)
class PrecisionRequest(Request):
    """Do the same job in two dtypes or on two devices, and report what they agree on."""

    verb: ClassVar[str] = "precision"

    sets: str = DEFAULT_BUNDLE
    "Prompt sets or a run made before."
    reference: Path | None = None
    "If the first is a run: another run of the same prompts to judge it by."
    _: KW_ONLY
    against: Literal["float32", "bfloat16"] = "float32"
    "Dtype to judge by. The dtype being judged is bfloat16 by default here."
    against_device: Literal["auto", "cpu", "cuda", "mps"] | None = None
    "Device to judge by. Default: the same device."
    inputs: ModelInputs = ModelInputs()
    masking: Masking = Masking()
    out: Path | None = None
    "Directory for the two runs. Default: runs/NAME-HASH each."

    def run(self, reporter: Reporter = SILENT) -> Answer[Agreement]:
        """Extract both runs unless they exist, and compare them."""
        self.masking.check()
        if self.reference is not None and not is_run(self.sets):
            raise ArgumentError(
                "reference",
                f"is a second run to judge a first one by, and {self.sets} is no run: give two "
                "runs, or prompt sets alone",
            )
        if self.reference is not None:
            run = Run.open(self.sets)
            return Answer(run, self.ask(run))
        judged = replace(self.inputs, dtype=self._judged_dtype())
        judging = replace(self.inputs, dtype=self.against, device=self._judging_device())
        reference = self._extract(judging, "a", EXTRACT, reporter)
        # The judged run's manifest names its reference, so that the question can be asked again.
        question = replace(self, reference=reference.path.resolve())
        run = self._extract(judged, "b", question.record(), reporter)
        return Answer(run, question.ask(run))

    def ask(self, run: Run) -> Agreement:
        """Compare a run with its reference, or with itself if it has none."""
        reference = run if self.reference is None else Run.open(self.reference)
        return agreement(reference, run, self.masking)

    def _judged_dtype(self) -> Literal["float32", "bfloat16"]:
        return "bfloat16" if self.inputs.dtype == "auto" else self.inputs.dtype

    def _judging_device(self) -> Literal["auto", "cpu", "cuda", "mps"]:
        return self.against_device or self.inputs.device

    def _extract(
        self, inputs: ModelInputs, name: str, command: Mapping[str, Any], reporter: Reporter
    ) -> Run:
        out = self.out / name if self.out else None
        extraction = Extraction(sets=self.sets, inputs=inputs, out=out, command=command)
        return obtain_run(extraction, reporter)
