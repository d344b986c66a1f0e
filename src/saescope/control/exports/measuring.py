"""Neutral text read by a model in several ways, one after another: what exports are measured on."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from saescope.control.baking.distance import RecordedOutputs, record_outputs
from saescope.control.baking.methods import ResidualHook
from saescope.control.exports.settings import ExportSettings
from saescope.engine.anatomy import Anatomy
from saescope.engine.devices import DType
from saescope.engine.lm import LM, load_lm
from saescope.engine.logits import Logits, last_residuals
from saescope.engine.shards import Shards
from saescope.engine.tokens import prompt_ids
from saescope.errors import PromptError
from saescope.sources.prompts import bundled_prompts

Progress = Callable[[int, int], None]


@final
class Reader:
    """A checkpoint, streamed, and the text it reads: the settings' neutral text or the bundled sentences."""

    def __init__(
        self, shards: Shards, anatomy: Anatomy, settings: ExportSettings,
        progress: Progress | None, dtype: DType = "float32",
    ) -> None:  # fmt: skip
        self.lm: LM = load_lm(
            shards.files.source,
            [anatomy.n_layers - 1],
            dtype=dtype,
            device=settings.device,
            streamed=True,
        )
        self._shards, self._anatomy = shards, anatomy
        text = (
            bundled_prompts("neutral")[0].prompts if settings.neutral is None else settings.neutral
        )
        if not text:
            raise PromptError(
                "there is no neutral text to measure on: give some, or measure nothing"
            )
        self._rows = [prompt_ids(self.lm, prompt) for prompt in text]
        self._progress = progress

    def read(
        self, ways: Sequence[ResidualHook | AbstractContextManager[Any] | None]
    ) -> list[RecordedOutputs]:
        """The text under each hook or within each block."""
        logits = Logits(self._shards, self._anatomy, self.lm.device)
        found = []
        for way in ways:
            found.append(record_outputs(self.lm, logits, self._rows, self._anatomy, way))
            if self._progress:
                self._progress(len(found), len(ways))
        return found

    def residuals(self) -> Float[Tensor, "tokens d_model"]:
        """The last block's output at every token, under whatever is active."""
        return last_residuals(self.lm, self._rows)
