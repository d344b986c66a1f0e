"""`saescope export`: edits, SAEs and runs as files that other programs load."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from saescope.control.publish import refuse_existing
from saescope.errors import EditError, RunError
from saescope.sources.saes import open_sae
from saescope.store.runs import Run
from saescope.surfaces.cli.inputs import Inputs, parse_layers, show_licence
from saescope.surfaces.cli.show import print_json, progress, stdout
from saescope.surfaces.cli.steer import check_sizes, inputs_for, wanted_edits

if TYPE_CHECKING:
    from saescope.control.exports.exported import Exported

Format = Literal["gguf", "lora", "saelens", "neuronpedia"]


def export(
    *,
    format: Format,
    out: Path,
    edits: Path | None = None,
    edit: tuple[str, ...] = (),
    run: Path | None = None,
    name: str | None = None,
    creator: str = "saescope",
    inputs: Inputs = Inputs(),  # noqa: B008 (frozen)
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write edits, SAEs or a run as files that other programs load, and say what they equal.

    gguf: add edits as a control vector for llama.cpp. saelens: SAEs (--sae, --layers) for SAELens. neuronpedia: the
    features of a run (--run, --layers) with their strongest prompts.

    Parameters
    ----------
    format
        What to write.
    out
        Where: a file for gguf, a folder for the others. What exists is not overwritten.
    edits
        An edits file, such as detect writes; its model and SAE are taken where --model and --sae do not say.
    edit
        An edit such as "17/23991 add 20". May be given again.
    run
        For neuronpedia: a run made before.
    name
        For neuronpedia: the id of the set of sources; made of the SAE's name when left out.
    creator
        For neuronpedia: who is named as the maker.
    json
        Print one JSON document instead of text.
    """
    out = out.expanduser()
    refuse_existing(out)
    if format not in ("gguf", "lora") and (edits is not None or edit):
        raise EditError(f"--format {format} takes no edits: gguf and lora do")
    if format != "neuronpedia" and run is not None:
        raise RunError(f"--format {format} takes no --run: neuronpedia does")
    match format:
        case "gguf":
            result = _gguf(out, edits, edit, inputs)
        case "saelens":
            result = _saelens(out, inputs)
        case _:
            result = _neuronpedia(out, run, name, creator, inputs)
    if json:
        print_json(result.to_dict())
    else:
        show_export(result)


def _gguf(out: Path, edits: Path | None, edit: Sequence[str], inputs: Inputs) -> "Exported":
    wanted = wanted_edits(edits, edit)
    chosen = inputs_for(wanted, inputs)
    from saescope.control.exports.gguf import export_gguf

    saes = [] if chosen.layers is None else chosen.load_saes()
    check_sizes(wanted, saes)
    return export_gguf(wanted.edits, saes, out, model=chosen.model_name(), offline=inputs.offline)


def _saelens(out: Path, inputs: Inputs) -> "Exported":
    from saescope.control.exports.saelens import export_saelens

    source = open_sae(inputs.sae or inputs.names()[1], k=inputs.k, offline=inputs.offline)
    show_licence(source)
    layers = source.layers if inputs.layers == "all" else parse_layers(inputs.layers)
    with progress("SAEs", "layers") as advance:
        return export_saelens(source, layers, out, model=inputs.model, progress=advance)


def _neuronpedia(out: Path, path: Path | None, name: str | None, creator: str, inputs: Inputs) -> "Exported":
    if path is None:
        raise RunError("nothing to export: give a run made before with --run RUN")
    from saescope.control.exports.neuronpedia import Names, export_neuronpedia

    run = Run.open(path.expanduser())
    layers = None if inputs.layers in (None, "all") else parse_layers(inputs.layers)
    names = Names.of(run, source_set=name, creator=creator)
    with progress("features", "done") as advance:
        return export_neuronpedia(run, out, layers=layers, names=names, progress=advance)


def show_export(result: "Exported") -> None:
    """The files, what they do, and in what that differs from what was asked for."""
    console = stdout()
    for path in result.files:
        console.print(f"{path}  {path.stat().st_size:,} bytes", markup=False)
    console.print(f"does: {result.equals}", markup=False)
    console.print("exact" if result.exact else "not exact:", markup=False)
    for limit in result.limits:
        console.print(f"- {limit}", markup=False)
