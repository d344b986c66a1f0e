"""Which edits a request applies, and the model and SAEs they belong to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from saescope.control.about import About
from saescope.control.edits import EditSet, parse_edit
from saescope.control.edits_file import read_edits
from saescope.control.evaluation.behaviour import FeatureRule
from saescope.control.evaluation.judge import Judge
from saescope.errors import EditError
from saescope.jobs.inputs import ModelInputs
from saescope.jobs.named_features import NamedFeature, features_of
from saescope.jobs.reporter import Reporter
from saescope.sources.references import plain_ref

if TYPE_CHECKING:
    from saescope.engine.lm import LM
    from saescope.engine.sae import Sae


@dataclass(frozen=True, kw_only=True)
class EditInputs:
    """Edits from a file, from texts, or from both."""

    edits: Path | None = None
    "Edits file, such as detect writes; it names its model and SAE."

    edit: tuple[str, ...] = ()
    (
        'An edit such as "17/23991 scale -1": feature, op, strength, then gate and scope. '
        'A direction file may replace the feature: "japanese.safetensors add 2"; add '
        "@LAYER to its name if the file stores no layer. Repeatable."
    )

    about: About | None = None
    (
        "What project edits, and baselines that remove a direction, act about: the mean residual "
        "over neutral text, or zero. Default: mean, but zero in weights (bake, LoRA); project "
        "edits in a file keep what it says."
    )

    def __bool__(self) -> bool:
        return self.edits is not None or bool(self.edit)

    def read(self) -> EditSet:
        """Read all of them; raises EditError if there are none."""
        parsed = tuple(parse_edit(text) for text in self.edit)
        if self.edits is not None:
            stored = read_edits(self.edits)
            return replace(stored, edits=(*stored.edits, *parsed))
        if not parsed:
            raise EditError(
                'nothing to edit: give an edits file, or an edit such as "17/23991 scale -1"'
            )
        return EditSet("", "", parsed)


def inputs_for(
    edit_set: EditSet, inputs: ModelInputs, features: Sequence[NamedFeature] = ()
) -> ModelInputs:
    """Return the inputs with the model, SAE and layers of these edits and `features`.

    Raises EditError if the edits name another model or SAE.
    """
    _check_same("model", inputs.model, edit_set.model)
    _check_same("SAE", inputs.sae, edit_set.sae)
    edited = {layer for edit in edit_set.edits for layer in edit.sae_layers}
    layers = tuple(sorted(edited | {named.feature.layer for named in features}))
    return replace(
        inputs,
        model=inputs.model or edit_set.model or None,
        sae=inputs.sae or edit_set.sae or None,
        layers=layers or None,
    )


def load_for(
    edit_set: EditSet,
    inputs: ModelInputs,
    reporter: Reporter,
    judge: Judge | FeatureRule | None = None,
) -> "tuple[LM, list[Sae]]":
    """Load the model and SAEs of these edits, with decoders; no SAE if no edit needs one.

    The SAEs that a judge reads are loaded too. A feature that does not exist is refused first.
    """
    features = features_of(edit_set, judge)
    own = inputs_for(edit_set, inputs, features)
    edited_layers = sorted({edit.layer for edit in edit_set.edits})
    if own.layers is None:
        return own.load_model(edited_layers, reporter), []
    lm, saes = own.load(
        reporter,
        decoder=True,
        model_layers=edited_layers,
        generates=True,
        features=features,
    )
    _check_sizes(edit_set, saes)
    return lm, saes


def load_saes_for(edit_set: EditSet, own_inputs: ModelInputs, reporter: Reporter) -> "list[Sae]":
    """Load only the SAEs of these edits, by inputs from `inputs_for`; none if no edit needs one."""
    if own_inputs.layers is None:
        return []
    saes = own_inputs.load_saes(reporter, features_of(edit_set))
    _check_sizes(edit_set, saes)
    return saes


def _check_same(what: str, requested: str | None, stored: str) -> None:
    if requested and stored and not _same_place(requested, plain_ref(stored)):
        raise EditError(
            f"these edits are for the {what} {stored}, not {requested}: "
            "edits belong to one model and one SAE"
        )


def _same_place(requested: str, stored: str) -> bool:
    """Whether two names, or two spellings of a path, mean the same."""
    path = Path(requested).expanduser()
    return requested == stored or (path.exists() and path.resolve() == Path(stored).resolve())


def _check_sizes(edit_set: EditSet, saes: "Sequence[Sae]") -> None:
    from saescope.engine.load import fingerprint_as

    for sae in saes:
        expected = edit_set.sae_files.get(str(sae.spec.layer), "")
        edit_set.check_sae(replace(sae.spec, fingerprint=fingerprint_as(sae, expected)))
