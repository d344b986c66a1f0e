"""The `scan` request: each token's strongest features."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from saescope.arguments import Count
from saescope.errors import PromptError
from saescope.jobs.inputs import ModelInputs
from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.request import Request
from saescope.sources.prompt_sets import read_lines
from saescope.sources.prompts import texts
from saescope.store.masking import Masking

if TYPE_CHECKING:
    from saescope.engine.scan import Scan


@final
@dataclass(frozen=True)
class ScanRequest(Request):
    """Show each token's strongest features."""

    verb: ClassVar[str] = "scan"

    text: tuple[str, ...] = ()
    "Prompts."
    _: KW_ONLY
    file: Path | None = None
    "Text file with one prompt per line, instead of or after the prompts given."
    n_top: Count = 5
    "Number of features to show per token."
    inputs: ModelInputs = ModelInputs()
    masking: Masking = Masking()

    def run(self, reporter: Reporter = SILENT) -> "Scan":
        """Run the model over the prompts and encode every position."""
        prompts = texts(self._lines())[0].prompts
        self.masking.check()
        lm, saes = self.inputs.load(reporter, prompts=prompts)
        from saescope.engine.scan import scan

        return scan(
            lm,
            saes,
            prompts,
            n_top=self.n_top,
            masking=self.masking,
            batch_tokens=self.inputs.batch_tokens,
        )

    def _lines(self) -> list[str]:
        lines = list(self.text)
        if self.file is not None:
            lines.extend(read_lines(self.file))
        if not lines:
            raise PromptError("nothing to scan: give prompts, or a file with one prompt per line")
        if any(not line.strip() for line in lines):
            raise PromptError("a prompt to scan is empty: give some text")
        return lines
