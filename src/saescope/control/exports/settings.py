"""Settings of the exports. Imports no torch, so that a command can show them at once."""

from dataclasses import dataclass, field
from typing import Literal

from saescope.errors import RunError
from saescope.sources.prompts import Prompt
from saescope.store.masking import Masking

# The user that owns imported rows unless another is named. Neuronpedia's converter has this default.
NEURONPEDIA_USER = "clkht01d40000jv08hvalcvly"


@dataclass(frozen=True)
class ExportSettings:
    """How an export of edits opens the model, and whether it measures its result."""

    measure: bool = True
    "Measure the KL from the steered model to the exported files."

    neutral: tuple[Prompt, ...] | None = None
    "Plain text to measure on. Default: the bundled sentences."

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    "Device that runs the model."

    offline: bool = False
    "Use only files that are already on this machine."


@dataclass(frozen=True)
class NeuronpediaSettings:
    """What a Neuronpedia export is called, and how many examples it shows per feature."""

    model_id: str | None = None
    "Neuronpedia's id of the model. Default: made from the model's name."

    source_set: str | None = None
    "Neuronpedia's id of the set of SAEs. Default: made from the SAE release's name."

    creator: str = "saescope"
    "Name of the creator."

    creator_id: str = NEURONPEDIA_USER
    "Neuronpedia's id of the user that owns the imported rows."

    n_examples: int = 20
    "Number of example prompts per feature, strongest first."

    context: int = 128
    "Maximum number of tokens shown per example."

    masking: Masking = field(default_factory=Masking)
    "Which positions count."

    def check(self) -> None:
        """Raise RunError if there would be no example to show."""
        for name, value in (("n_examples", self.n_examples), ("context", self.context)):
            if value < 1:
                raise RunError(f"{name} must be at least 1, got {value}")
