"""The `diff` request: what changed between two checkpoints."""

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from saescope.arguments import Count
from saescope.jobs.edits import EditInputs, inputs_for, load_saes_for
from saescope.jobs.inputs import ModelInputs
from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.request import Request

if TYPE_CHECKING:
    from saescope.control.diff_result import Diff


@final
@dataclass(frozen=True)
class DiffRequest(Request):
    """Compare two checkpoints tensor by tensor.

    With edits, also report how much of each change lies along their directions.
    """

    verb: ClassVar[str] = "diff"

    a: str
    "A folder or a hub id."
    b: str
    "Another folder or hub id."
    _: KW_ONLY
    edits: EditInputs = EditInputs()
    n_top: Count = 20
    "Number of tensors to show, the most changed first; JSON has all."
    inputs: ModelInputs = ModelInputs()

    def run(self, reporter: Reporter = SILENT) -> "Diff":
        """Read both checkpoints, one tensor at a time."""
        directions = self._directions(reporter) if self.edits else []
        from saescope.control.diff import diff

        with reporter.progress("diff", "tensors", f"{self.a} and {self.b}") as advance:
            return diff(self.a, self.b, directions, offline=self.inputs.offline, progress=advance)

    def _directions(self, reporter: Reporter) -> list[Any]:
        """Return the decoder direction of every edit."""
        edit_set = self.edits.read()
        saes = load_saes_for(edit_set, inputs_for(edit_set, self.inputs), reporter)
        from saescope.control.formulae import bind_edits

        sae_of = {sae.spec.layer: sae for sae in saes}
        directions = []
        for edit in edit_set.edits:
            sae = None if edit.feature is None else sae_of.get(edit.layer)
            directions.append(bind_edits([edit], sae).write_directions[0])
        return directions
