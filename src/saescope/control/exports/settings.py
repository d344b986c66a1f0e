"""Settings of the exports. Imports no torch, so that `saescope export --help` starts at once."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from saescope.arguments import Count, check_arguments
from saescope.control.measured_text import Measure, extent
from saescope.errors import EditError
from saescope.sources.prompts import Prompt
from saescope.store.masking import Masking

# Neuronpedia's converter names this user as the owner of imported rows.
DEFAULT_CREATOR_ID = "clkht01d40000jv08hvalcvly"


ModelClass = Literal["causal", "multimodal"]


@dataclass(frozen=True)
class ExportSettings:
    """How `export_gguf` and `export_lora` open the model, and whether they measure the result.

    >>> import saescope as ss
    >>> [texts] = ss.texts(["The red dog sleeps.", "Every bird sings."])
    >>> settings = ss.exports.ExportSettings(neutral=texts.prompts)
    >>> settings.measure
    'sample'
    """

    measure: Measure | bool = "sample"
    (
        "How much text to measure the KL from the steered model to the exported files on, once "
        "they are written: all (full, or True), a sample of 32 texts, or none (or False)."
    )

    neutral: tuple[Prompt, ...] | None = None
    "Plain text to measure on. Default: the bundled sentences."

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    "Device that runs the model; auto takes the best one available."

    offline: bool = False
    "Download nothing: use only local folders and the hub's cache."

    model_class: ModelClass | None = None
    (
        "Class whose names a LoRA has. causal: what AutoModelForCausalLM opens. multimodal: what "
        "AutoModelForImageTextToText opens. Default: causal if there is such a class."
    )

    embedding: bool = True
    "Whether a LoRA also adapts the embedding, which some servers (vLLM) do not load."

    def check(self) -> None:
        """Raise EditError or ArgumentError for a value that is not among the choices."""
        extent(self.measure)
        if self.model_class not in (None, *get_args(ModelClass)):
            choices = ", ".join(get_args(ModelClass))
            raise EditError(f"model_class must be one of {choices}, got {self.model_class!r}")


@dataclass(frozen=True)
class NeuronpediaSettings:
    """What a Neuronpedia export is called, and how many examples it shows per feature.

    >>> import saescope as ss
    >>> ss.exports.NeuronpediaSettings(source_set="res-16k", n_examples=5).context
    128
    """

    model_id: str | None = None
    "Neuronpedia's id of the model. Default: made from the model's name."

    source_set: str | None = None
    "Neuronpedia's id of the set of SAEs. Default: made from the SAE release's name."

    creator: str = "saescope"
    "Name of the creator."

    creator_id: str = DEFAULT_CREATOR_ID
    "Neuronpedia's id of the user that owns the imported rows."

    n_examples: Count = 20
    "Maximum number of example prompts per feature, strongest first."

    context: Count = 128
    "Maximum number of tokens shown per example."

    masking: Masking = field(default_factory=Masking)
    "Which positions count."

    def check(self) -> None:
        """Raises ArgumentError if there would be no example to show."""
        check_arguments(self)
