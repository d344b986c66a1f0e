"""The `bake` request: edits put into weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from saescope.control.baking.settings import BakeSettings
from saescope.control.measured_text import extent
from saescope.errors import PromptError
from saescope.jobs.edits import EditInputs, inputs_for, load_saes_for
from saescope.jobs.inputs import ModelInputs
from saescope.jobs.judging import read_all_prompts
from saescope.jobs.neutral import with_means_for_weights
from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.request import Request
from saescope.jobs.write_once import write_once
from saescope.sources.prompts import Prompt

if TYPE_CHECKING:
    from saescope.control.baking.bake_result import BakeResult

# Percent at which each stage starts, and its share of the whole.
_STAGES = {"writing": (0, 40), "measuring": (40, 30), "comparing": (70, 30)}


@final
@dataclass(frozen=True)
class BakeRequest(Request):
    """Write a checkpoint with edits in its weights, which stock transformers loads.

    The result is labelled exact or approximate, and its distance from the edits is measured.
    """

    verb: ClassVar[str] = "bake"

    _: KW_ONLY
    edits: EditInputs = EditInputs()
    settings: BakeSettings = BakeSettings()
    neutral: str = "neutral"
    (
        "Prompt sets of plain text to measure distances and the mean residual on. Default: the "
        "bundled sentences."
    )
    inputs: ModelInputs = ModelInputs()
    out: Path
    "Folder to write; it must not exist."

    def run(self, reporter: Reporter = SILENT) -> "BakeResult":
        """Write the checkpoint atomically."""
        from saescope.control.baking.bake_result import BakeResult

        out = self.out.expanduser()
        return write_once(self, out, BakeResult, reporter, lambda: self._bake(out, reporter))

    def _bake(self, out: Path, reporter: Reporter) -> "BakeResult":
        edit_set = self.edits.read()
        inputs = inputs_for(edit_set, self.inputs)
        neutral = self._neutral_texts()
        edit_set = with_means_for_weights(self.edits, edit_set, inputs, self.neutral, reporter)
        saes = load_saes_for(edit_set, inputs, reporter)
        from saescope.control.baking.bake import bake

        with _stages(reporter) as advance:
            return bake(
                inputs.model_name(),
                saes,
                edit_set.edits,
                out,
                self.settings,
                neutral=neutral,
                device=inputs.device,
                offline=inputs.offline,
                progress=advance,
            )

    def _neutral_texts(self) -> list[Prompt]:
        if extent(self.settings.measure) == "none":
            return []
        texts = read_all_prompts(self.neutral)
        if not texts:
            raise PromptError(f"{self.neutral} has no prompt")
        return texts


@contextmanager
def _stages(reporter: Reporter) -> Iterator[Callable[[str, int, int], None]]:
    """Report the progress of all stages as one, in percent."""
    with reporter.progress("bake", "%") as advance:

        def stage(name: str, done: int, total: int) -> None:
            start, share = _STAGES[name]
            advance(start + share * done // max(1, total), 100)

        yield stage
