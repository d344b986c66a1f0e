"""`saescope export`: edits, SAEs and runs as files that other programs load."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from saescope.control.edits import EditSet
from saescope.errors import EditError, RunError
from saescope.sources.saes import open_sae
from saescope.store.atomic import refuse_existing
from saescope.store.runs import Run
from saescope.surfaces.cli.editing import Edits, inputs_for, saes_for
from saescope.surfaces.cli.inputs import Inputs, parse_layers, show_licence
from saescope.surfaces.cli.judging import flat_prompts
from saescope.surfaces.cli.show import print_json, progress, stdout

if TYPE_CHECKING:
    from saescope.control.exports.export_result import ExportResult

FAR = {
    "kl_hook_adapter": "from the projection by hooks to the adapter",
    "kl_steered_adapter": "from the edits as they are steered to the adapter",
    "kl_base_adapter": "from the model without edits to the adapter",
    "kl_steered_vector": "from the edits as they are steered to the control vector",
    "kl_base_vector": "from the model without edits to the control vector",
}
Format = Literal["gguf", "lora", "saelens", "neuronpedia"]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Names:
    """What a Neuronpedia export is called, and whether logits are in it."""

    name: str | None = None
    "For neuronpedia: the id of the set of sources; made of the SAE's name when left out."

    creator: str = "saescope"
    "For neuronpedia: who is named as the maker."

    logits: bool = True
    "For neuronpedia: also which tokens each feature raises and lowers; reads the run's model and SAEs again."


def export(
    *,
    format: Format,
    out: Path,
    given: Edits = Edits(),  # noqa: B008 (frozen)
    run: Path | None = None,
    called: Names = Names(),
    neutral: str = "neutral",
    measure: bool = True,
    inputs: Inputs = Inputs(),  # noqa: B008
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write edits, SAEs or a run as files that other programs load, and say what they equal.

    gguf: add edits as a control vector for llama.cpp. lora: project edits as an adapter for peft. saelens: SAEs (--sae,
    --layers) for SAELens. neuronpedia: the features of a run (--run, --layers) with their strongest prompts.

    Parameters
    ----------
    format
        What to write.
    out
        Where: a file for gguf, a folder for the others. What exists is not overwritten.
    run
        For neuronpedia: a run made before.
    neutral
        Prompt sets of plain text on which gguf and lora are measured; the bundled sentences when left out.
    measure
        Measure how far the files are from the edits as they are steered.
    json
        Print one JSON document instead of text.
    """
    out = out.expanduser()
    refuse_existing(out)
    if format not in ("gguf", "lora") and given:
        raise EditError(f"--format {format} takes no edits: gguf and lora do")
    if format != "neuronpedia" and run is not None:
        raise RunError(f"--format {format} takes no --run: neuronpedia does")
    match format:
        case "gguf" | "lora":
            result = _edits(format, out, given.wanted(), inputs, neutral if measure else None)
        case "saelens":
            result = _saelens(out, inputs)
        case _:
            result = _neuronpedia(out, run, called, inputs)
    if json:
        print_json(result.to_dict())
    else:
        show_export(result)


def _edits(
    format: Literal["gguf", "lora"], out: Path, wanted: EditSet, inputs: Inputs, neutral: str | None
) -> "ExportResult":
    chosen = inputs_for(wanted, inputs)
    text = tuple(flat_prompts(neutral)) if neutral else None
    from saescope.control.exports.gguf import export_gguf
    from saescope.control.exports.lora import export_lora
    from saescope.control.exports.settings import ExportSettings

    saes = saes_for(wanted, chosen)
    write = export_gguf if format == "gguf" else export_lora
    with progress("measuring", "ways") as advance:
        return write(
            chosen.model_name(),
            saes,
            wanted.edits,
            out,
            ExportSettings(text is not None, text, inputs.device, inputs.offline),
            progress=advance,
        )


def _saelens(out: Path, inputs: Inputs) -> "ExportResult":
    from saescope.control.exports.saelens import export_saelens

    source = open_sae(inputs.sae or inputs.names()[1], k=inputs.k, offline=inputs.offline)
    show_licence(source)
    layers = source.layers if inputs.layers == "all" else parse_layers(inputs.layers)
    with progress("SAEs", "layers") as advance:
        return export_saelens(source, out, layers=layers, model_name=inputs.model, progress=advance)


def _neuronpedia(out: Path, path: Path | None, called: Names, inputs: Inputs) -> "ExportResult":
    if path is None:
        raise RunError("nothing to export: give a run made before with --run RUN")
    from saescope.control.exports import lens, neuronpedia
    from saescope.control.exports.settings import NeuronpediaSettings

    run = Run.open(path.expanduser())
    layers = None if inputs.layers in (None, "all") else parse_layers(inputs.layers)
    with progress("features", "done") as advance:
        return neuronpedia.export_neuronpedia(
            run,
            out,
            layers=layers,
            lens=lens.LogitLens(run, offline=inputs.offline) if called.logits else None,
            settings=NeuronpediaSettings(source_set=called.name, creator=called.creator),
            progress=advance,
        )


def show_export(result: "ExportResult") -> None:
    """The files, what they do, and in what that differs from what was asked for."""
    console = stdout()
    for path in result.files:
        console.print(f"{path}  {path.stat().st_size:,} bytes", markup=False)
    console.print(f"does: {result.equals}", markup=False)
    console.print("exact" if result.exact else "not exact:", markup=False)
    for limit in result.limits:
        console.print(f"- {limit}", markup=False)
    for name, far in result.measured.items():
        if name in FAR:
            console.print(
                f"KL {FAR[name]}: {far['mean']:.2g} nats a token, p99 {far['p99']:.2g}",
                markup=False,
            )
    for dtype, left in result.measured.get("component_left", {}).items():
        console.print(
            f"left of the component in the last residual, in {dtype}: {100 * left:.2g} %",
            markup=False,
        )
