"""The edits a command is given, and the model and SAEs they belong to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import Parameter

from saescope.control.edits import EditSet, parse_edit
from saescope.control.edits_file import read_edits
from saescope.errors import EditError
from saescope.surfaces.cli.inputs import Inputs

if TYPE_CHECKING:
    from saescope.engine.lm import LM
    from saescope.engine.sae import Sae


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Edits:
    """Edits of a file, of the command line, or of both."""

    edits: Path | None = None
    "An edits file, such as detect writes; its model and SAE are taken where --model and --sae do not say."

    edit: tuple[str, ...] = ()
    (
        'An edit such as "17/23991 scale -1": feature, op, strength, then gate and scope. Instead of a feature, a file '
        'with a direction: "japanese.safetensors add 2", or japanese.safetensors@17 where it does not say its layer. '
        "May be given again."
    )

    def __bool__(self) -> bool:
        return self.edits is not None or bool(self.edit)

    def wanted(self) -> EditSet:
        """All of them; raises EditError where there is none."""
        extra = tuple(parse_edit(text) for text in self.edit)
        if self.edits is None and not extra:
            raise EditError('nothing to edit: give --edits FILE or --edit "LAYER/ID scale -1"')
        if self.edits is None:
            return EditSet("", "", extra)
        read = read_edits(self.edits)
        return replace(read, edits=(*read.edits, *extra))


def load_for(wanted: EditSet, inputs: Inputs, read: Sequence[int] = ()) -> "tuple[LM, list[Sae]]":
    """The model and SAEs of these edits, and of layers that are only `read`.

    Raises EditError where the edits are another's, naming what differs.
    """
    chosen = inputs_for(wanted, inputs, read)
    alone = sorted({edit.layer for edit in wanted.edits})
    if chosen.layers is None:
        return chosen.load_model(alone), []
    lm, saes = chosen.load(decoder=True, alone=alone)
    check_sizes(wanted, saes)
    return lm, saes


def inputs_for(wanted: EditSet, inputs: Inputs, read: Sequence[int] = ()) -> Inputs:
    """The inputs with model, SAE and layers of these edits; raises EditError where they are another's."""
    for name, given, own in (
        ("--model", inputs.model, wanted.model),
        ("--sae", inputs.sae, wanted.sae),
    ):
        if given and own and given != own:
            raise EditError(
                f"these edits are of {own}, {name} is {given}: edits belong to one model and one SAE"
            )
    return replace(
        inputs,
        model=inputs.model or wanted.model or None,
        sae=inputs.sae or wanted.sae or None,
        layers=",".join(
            map(str, sorted({*read, *(layer for e in wanted.edits for layer in e.sae_layers)}))
        )
        or None,
    )


def saes_for(wanted: EditSet, chosen: Inputs) -> "list[Sae]":
    """The SAEs of these edits alone, with decoders, by inputs that `inputs_for` made; none where edits need none."""
    saes = chosen.load_saes() if chosen.layers is not None else []
    check_sizes(wanted, saes)
    return saes


def check_sizes(wanted: EditSet, saes: "Sequence[Sae]") -> None:
    """Raises EditError where these SAEs are of other sizes than those that the edits are of."""
    for sae in saes:
        wanted.check_sae(sae.spec)
