"""`saescope export`: edits, SAEs and runs as files that other programs load."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from saescope.control.publish import refuse_existing
from saescope.errors import EditError
from saescope.surfaces.cli.inputs import Inputs, parse_layers
from saescope.surfaces.cli.show import note, print_json, progress, stdout
from saescope.surfaces.cli.steer import fitting, refuse_other_saes, wanted_edits

if TYPE_CHECKING:
    from saescope.control.exports.exported import Exported

Format = Literal["gguf", "lora", "saelens", "neuronpedia"]


def export(
    *,
    format: Format,
    out: Path,
    edits: Path | None = None,
    edit: tuple[str, ...] = (),
    inputs: Inputs = Inputs(),  # noqa: B008 (frozen)
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write edits, SAEs or a run as files that other programs load, and say what they equal.

    gguf: add edits as a control vector for llama.cpp. saelens: SAEs (--sae, --layers) for SAELens.

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
    json
        Print one JSON document instead of text.
    """
    out = out.expanduser()
    refuse_existing(out)
    if format == "gguf":
        result = _gguf(out, edits, edit, inputs)
    else:
        _refuse_edits(format, edits, edit)
        result = _saelens(out, inputs)
    if json:
        print_json(result.to_dict())
    else:
        show_export(result)


def _gguf(out: Path, edits: Path | None, edit: Sequence[str], inputs: Inputs) -> "Exported":
    wanted = wanted_edits(edits, edit)
    chosen = fitting(wanted, inputs)
    from saescope.control.exports.gguf import export_gguf

    saes = [] if chosen.layers is None else chosen.load_saes()
    refuse_other_saes(wanted, saes)
    return export_gguf(wanted.edits, saes, out, model=chosen.model_name(), offline=inputs.offline)


def _saelens(out: Path, inputs: Inputs) -> "Exported":
    from saescope.control.exports.saelens import export_saelens

    source = inputs.open_sae()
    layers = source.layers if inputs.layers == "all" else parse_layers(inputs.layers)
    with progress("SAEs", "layers") as advance:
        return export_saelens(source, layers, out, model=inputs.model, progress=advance)


def _refuse_edits(format: Format, edits: Path | None, edit: Sequence[str]) -> None:
    if edits is not None or edit:
        raise EditError(f"--format {format} takes no edits: gguf and lora do")


def show_export(result: "Exported") -> None:
    """The files, what they equal and in what they differ from it."""
    console = stdout()
    for path in result.files:
        console.print(f"{path}  {path.stat().st_size:,} bytes", markup=False)
    console.print(f"{'exactly' if result.exact else 'approximately'} {result.equals}", markup=False)
    for limit in result.limits:
        note(f"not the same: {limit}")
