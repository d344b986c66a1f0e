"""What exports are measured on: neutral text, read by a streamed model in several states."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from saescope.control.baking.bake_plan import ReferenceIntervention
from saescope.control.baking.distance import RecordedOutputs, record_outputs
from saescope.control.exports.settings import ExportSettings
from saescope.control.measured_text import measured_part
from saescope.engine.anatomy import Anatomy
from saescope.engine.devices import DType
from saescope.engine.lm import LM, load_lm
from saescope.engine.logits import Logits, final_layer_residuals
from saescope.engine.shards import Shards
from saescope.engine.tokens import prompt_ids
from saescope.errors import PromptError
from saescope.sources.prompt_sets import bundled_prompts

Progress = Callable[[int, int], None]
# What is active while the model reads: an intervention, a context such as `steered`, or nothing.
State = ReferenceIntervention | AbstractContextManager[Any] | None


@final
class OutputRecorder:
    """Streams a checkpoint over neutral text and records its outputs in several states."""

    def __init__(
        self, shards: Shards, anatomy: Anatomy, settings: ExportSettings, dtype: DType = "float32"
    ) -> None:
        texts = settings.neutral
        if texts is None:
            texts = bundled_prompts("neutral")[0].prompts
        prompts = measured_part(texts, settings.measure)
        if not prompts:
            raise PromptError(
                "there is no neutral text to measure on: pass neutral=, or set measure=False"
            )
        last_layer = anatomy.n_layers - 1
        self.lm: LM = load_lm(
            shards.files.source, [last_layer], dtype=dtype, device=settings.device, streamed=True
        )
        self._shards = shards
        self._anatomy = anatomy
        self._rows = [prompt_ids(self.lm, prompt) for prompt in prompts]

    def record(
        self, states: Sequence[State], progress: Progress | None = None
    ) -> list[RecordedOutputs]:
        """Read the text once per state."""
        logits = Logits(self._shards, self._anatomy, self.lm.device)
        outputs = []
        for state in states:
            outputs.append(record_outputs(self.lm, logits, self._rows, self._anatomy, state))
            if progress:
                progress(len(outputs), len(states))
        return outputs

    def residuals(self) -> Float[Tensor, "tokens d_model"]:
        """Return the last block's output at every token, under whatever is active."""
        return final_layer_residuals(self.lm, self._rows)
