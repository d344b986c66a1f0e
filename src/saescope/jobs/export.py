"""The `export` request: edits, SAEs and runs as files that other programs load."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, final

from saescope.control.exports.settings import ExportSettings, NeuronpediaSettings
from saescope.control.measured_text import Measure, extent
from saescope.errors import EditError, RunError
from saescope.jobs.edits import EditInputs, inputs_for, load_saes_for
from saescope.jobs.inputs import ModelInputs, show_licence
from saescope.jobs.judging import read_all_prompts
from saescope.jobs.neutral import with_means_for_weights
from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.request import Request
from saescope.jobs.write_once import write_once
from saescope.sources.saes import open_sae
from saescope.store.runs import Run

if TYPE_CHECKING:
    from saescope.control.exports.export_result import ExportResult


@dataclass(frozen=True, kw_only=True)
class NeuronpediaInputs:
    """What an export for Neuronpedia is called, and what it holds."""

    source_run: Path | None = None
    "Run to export."

    name: str | None = None
    "Id of the set of sources. Default: from the SAE's name."

    creator: str = "saescope"
    "Name of the maker."

    logits: bool = True
    "Also export the tokens each feature promotes and suppresses; this loads the model and SAEs."


@dataclass(frozen=True, kw_only=True)
class LoraInputs:
    """Which names a LoRA has, and what it leaves out."""

    model_class: Literal["causal", "multimodal"] | None = None
    (
        "Class whose names a LoRA has. causal: what AutoModelForCausalLM opens. multimodal: what "
        "AutoModelForImageTextToText opens. Default: causal if there is such a class."
    )

    embedding: bool = True
    "Whether a LoRA also adapts the embedding, which some servers (vLLM) do not load."


@final
@dataclass(frozen=True)
class ExportRequest(Request):
    """Write edits, SAEs or a run as files that other programs load, and report what they equal.

    gguf: add edits as a control vector for llama.cpp. lora: project edits as an adapter for peft.
    saelens: SAEs (--sae, --layers) for SAELens. neuronpedia: the features of a run (--run,
    --layers) with their strongest prompts.
    """

    verb: ClassVar[str] = "export"

    _: KW_ONLY
    format: Literal["gguf", "lora", "saelens", "neuronpedia"]
    "What to write."
    edits: EditInputs = EditInputs()
    neuronpedia: NeuronpediaInputs = NeuronpediaInputs()
    lora: LoraInputs = LoraInputs()
    neutral: str = "neutral"
    "Prompt sets of plain text to measure gguf and lora on. Default: the bundled sentences."
    measure: Measure | bool = "sample"
    (
        "How much text to measure on how far the files are from the edits as steered, once they "
        "are written: full (all of it), sample (32 texts) or none."
    )
    inputs: ModelInputs = ModelInputs()
    out: Path
    "A file for gguf, a folder for the others. Nothing is overwritten."

    def run(self, reporter: Reporter = SILENT) -> "ExportResult":
        """Write the files atomically."""
        from saescope.control.exports.export_result import ExportResult

        out = self.out.expanduser()
        return write_once(self, out, ExportResult, reporter, lambda: self._export(out, reporter))

    def _export(self, out: Path, reporter: Reporter) -> "ExportResult":
        takes_edits = self.format in ("gguf", "lora")
        if self.edits and not takes_edits:
            raise EditError(f"format {self.format} takes no edits: gguf and lora do")
        if self.neuronpedia.source_run is not None and self.format != "neuronpedia":
            raise RunError(f"format {self.format} takes no run: neuronpedia does")
        if self.lora != LoraInputs() and self.format != "lora":
            raise EditError(f"format {self.format} has no model class and no embedding: lora has")
        if takes_edits:
            return self._export_edits(out, reporter)
        if self.format == "saelens":
            return self._export_saes(out, reporter)
        return self._export_run(out, reporter)

    def _export_edits(self, out: Path, reporter: Reporter) -> "ExportResult":
        edit_set = self.edits.read()
        inputs = inputs_for(edit_set, self.inputs)
        settings = self._settings(inputs)
        if self.format == "lora":
            edit_set = with_means_for_weights(self.edits, edit_set, inputs, self.neutral, reporter)
        saes = load_saes_for(edit_set, inputs, reporter)
        from saescope.control.exports.gguf import export_gguf
        from saescope.control.exports.lora import export_lora

        export = export_gguf if self.format == "gguf" else export_lora
        with reporter.progress("measuring", "arms") as advance:
            return export(
                inputs.model_name(),
                saes,
                edit_set.edits,
                out,
                settings,
                progress=advance,
            )

    def _settings(self, inputs: ModelInputs) -> ExportSettings:
        neutral = tuple(read_all_prompts(self.neutral)) if extent(self.measure) != "none" else None
        return ExportSettings(
            measure=self.measure,
            neutral=neutral,
            device=inputs.device,
            offline=inputs.offline,
            model_class=self.lora.model_class,
            embedding=self.lora.embedding,
        )

    def _export_saes(self, out: Path, reporter: Reporter) -> "ExportResult":
        from saescope.control.exports.saelens import export_saelens

        inputs = self.inputs
        source = open_sae(inputs.sae or inputs.names()[1], k=inputs.k, offline=inputs.offline)
        show_licence(source, reporter)
        layers = source.layers if inputs.layers == "all" else inputs.layer_list
        with reporter.progress("SAEs", "layers") as advance:
            return export_saelens(
                source, out, layers=layers, model_name=inputs.model, progress=advance
            )

    def _export_run(self, out: Path, reporter: Reporter) -> "ExportResult":
        settings = self.neuronpedia
        if settings.source_run is None:
            raise RunError("nothing to export: give a run made before with source_run=RUN")
        from saescope.control.exports import lens, neuronpedia

        run = Run.open(settings.source_run.expanduser())
        names = NeuronpediaSettings(source_set=settings.name, creator=settings.creator)
        logit_lens = lens.LogitLens(run, offline=self.inputs.offline) if settings.logits else None
        with reporter.progress("features", "done") as advance:
            return neuronpedia.export_neuronpedia(
                run,
                out,
                layers=self.inputs.layer_list,
                lens=logit_lens,
                settings=names,
                progress=advance,
            )
