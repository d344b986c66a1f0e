"""The `detect` request: features that detect a behaviour, and a detector made of them."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from saescope.analysis.detect import detect
from saescope.analysis.detection import Detection, DetectSettings
from saescope.analysis.directions import Position, difference_of_means
from saescope.analysis.sets import check_sets
from saescope.control.edits import Edit, EditSet
from saescope.control.edits_file import write_edits
from saescope.errors import ArgumentError
from saescope.jobs.inputs import ModelInputs
from saescope.jobs.named_features import NamedFeature
from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.request import Request
from saescope.jobs.runs import Extraction, beside_run, obtain_run
from saescope.sources.file_names import file_name_part
from saescope.store.directions import write_directions
from saescope.store.runs import Run


@dataclass(frozen=True)
class DetectAnswer:
    """A detection, the run it was computed from, and the files it was written to."""

    run: Run
    result: Detection
    edits: Path | None
    direction: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of `saescope detect`."""
        return {
            **self.result.to_dict(),
            "edits": str(self.edits) if self.edits else None,
            "direction": str(self.direction) if self.direction else None,
        }


@final
@dataclass(frozen=True)
class DetectRequest(Request):
    """Find features that fire on one set's prompts but not on others'; test them as a detector."""

    verb: ClassVar[str] = "detect"

    sets: str
    "Prompt sets or a run made before."
    _: KW_ONLY
    target: str
    "The set that shows the behaviour."
    against: tuple[str, ...] | None = None
    "Sets that do not show it, separated by commas. Default: all others."
    transfer: tuple[str, ...] = ()
    "Try the detector on another set: NAME, or NAME:OTHER with the set it is told from. Repeatable."
    settings: DetectSettings = DetectSettings()
    inputs: ModelInputs = ModelInputs()
    edits: Path | None = None
    "Edits file to write the detector's features to. Default: beside the run."
    direction: Path | None = None
    "Also write the difference of means of discovery prompts, per layer, to this .safetensors file."
    position: Position = "mean"
    "Which residual represents a prompt: the mean over its scored positions, or the last one."
    out: Path | None = None
    "Directory of the run. Default: runs/NAME-HASH."

    def run(self, reporter: Reporter = SILENT) -> DetectAnswer:
        """Extract the features unless the run exists, detect, and write the files."""
        run = self.obtain(reporter)
        result = self.ask(run)
        edits = self._write_edits(run, result)
        if self.direction is not None:
            self._write_directions(run, result, self.direction)
        return DetectAnswer(run, result, edits, self.direction)

    def obtain(self, reporter: Reporter, features: Sequence[NamedFeature] = ()) -> Run:
        """Open or compute the run.

        Refuses sets that cannot be compared, and `features` that do not exist, before computing.
        """
        self.settings.check()
        transfer = self._transfer_pairs()

        def check(names: Sequence[str]) -> None:
            check_sets(names, self.target, self.against, transfer)

        extraction = Extraction(
            sets=self.sets,
            inputs=self.inputs,
            out=self.out,
            command=self.record(),
            compare_under=self.settings.masking,
            check_sets=check,
            features=features,
        )
        return obtain_run(extraction, reporter)

    def ask(self, run: Run) -> Detection:
        """Answer from a stored run, without a model."""
        return detect(
            run,
            self.target,
            self.settings,
            against=self.against,
            transfer=self._transfer(run),
            layers=self.inputs.layer_list,
        )

    def _transfer(self, run: Run) -> dict[str, Sequence[str]] | None:
        """Return the sets to try the detector on, each with the sets it is told from."""
        pairs = self._transfer_pairs()
        if pairs is None:
            return None
        others = self.against or [name for name in run.sets if name != self.target]
        resolved: dict[str, Sequence[str]] = {}
        for name, negatives in pairs.items():
            resolved[name] = negatives or [other for other in others if other != name]
        return resolved

    def _transfer_pairs(self) -> dict[str, list[str]] | None:
        """Parse NAME or NAME:OTHER+OTHER; without a partner the list is empty."""
        pairs: dict[str, list[str]] = {}
        for text in self.transfer:
            name, _, negatives = text.partition(":")
            if not name:
                raise ArgumentError("transfer", f"{text!r} names no set: give NAME or NAME:OTHER")
            pairs[name] = negatives.split("+") if negatives else []
        return pairs or None

    def _write_edits(self, run: Run, result: Detection) -> Path | None:
        if not result.classifier.features:
            return None
        path = self.edits or beside_run(run.path, f"{file_name_part(self.target)}.toml")
        write_edits(_edit_set(run, result), path, _comments(result))
        return path

    def _write_directions(self, run: Run, result: Detection, path: Path) -> None:
        layers = self.inputs.layer_list or run.layers
        directions = [
            difference_of_means(
                run,
                self.target,
                layer,
                against=result.against,
                position=self.position,
                seed=self.settings.seed,
            )
            for layer in layers
        ]
        write_directions(directions, path)


def _edit_set(run: Run, result: Detection) -> EditSet:
    spec = run.saes[result.classifier.layer]
    inputs = run.manifest["inputs"]
    return EditSet(
        model=inputs["model"],
        sae=inputs["saes"].get(str(spec.layer), spec.release),
        edits=tuple(Edit(feature) for feature in result.classifier.features),
        d_model=spec.d_model,
        d_sae=spec.d_sae,
        k=spec.k,
        sae_files={str(spec.layer): spec.fingerprint},
    )


def _comments(result: Detection) -> list[str]:
    detector = result.classifier
    count = len(detector.features)
    noun = "feature" if count == 1 else "features"
    f1 = "-" if detector.holdout.f1 is None else f"{detector.holdout.f1:.2f}"
    return [
        f"The detector of {result.target} against {', '.join(result.against)}: {count} {noun}, "
        f"F1 {f1} on held-out prompts.",
        "Detection is not control: measure these edits with saescope evaluate before using them.",
    ]
