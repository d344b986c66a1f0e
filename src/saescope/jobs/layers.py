"""The `layers` request: where sets separate best, and which feature a concept is at each layer."""

from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import ClassVar, final

from saescope.analysis.contrast import ContrastSettings
from saescope.analysis.headline import Headline
from saescope.analysis.layers import Layers, layers
from saescope.arguments import Seed
from saescope.errors import SourceError
from saescope.jobs.inputs import ModelInputs
from saescope.jobs.named_features import NamedFeature
from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.request import Request
from saescope.jobs.runs import Answer, Extraction, is_run, obtain_run
from saescope.sources.catalog import Feature
from saescope.sources.prompt_sets import DEFAULT_BUNDLE
from saescope.store.masking import Masking
from saescope.store.runs import Run


@final
@dataclass(frozen=True)
class LayersRequest(Request):
    """Report how well sets separate at each layer, and follow features from layer to layer."""

    verb: ClassVar[str] = "layers"

    sets: str = DEFAULT_BUNDLE
    "Prompt sets or a run made before. Default layers: all."
    _: KW_ONLY
    feature: str | None = None
    (
        "Follow this feature, such as 17/23991, and show its id's rate at every layer. "
        "Default: the best feature of each set."
    )
    seed: Seed = 0
    "Seed of the held-out split and of the bootstrap."
    headline: Headline = Headline()
    inputs: ModelInputs = ModelInputs()
    masking: Masking = Masking()
    out: Path | None = None
    "Directory of the run. Default: runs/NAME-HASH."

    def run(self, reporter: Reporter = SILENT) -> Answer[Layers]:
        """Extract the features unless the run exists, and compare the layers."""
        self.masking.check()
        features = []
        if self.feature is not None:  # refused before anything is computed
            features.append(NamedFeature(Feature.parse(self.feature), f"feature {self.feature}"))
        inputs = self.inputs
        if inputs.layers is None and not is_run(self.sets):
            inputs = replace(inputs, layers="all")
        extraction = Extraction(
            sets=self.sets,
            inputs=inputs,
            out=self.out,
            command=self.record(),
            compare_under=self.masking,
            features=features,
        )
        run = obtain_run(extraction, reporter)
        return Answer(run, self.ask(run, reporter))

    def ask(self, run: Run, reporter: Reporter = SILENT) -> Layers:
        """Answer from a stored run; without cosines if its SAEs cannot be opened."""
        from saescope.engine.decoders import decoder_cosines

        settings = ContrastSettings(seed=self.seed, headline=self.headline, masking=self.masking)
        feature = Feature.parse(self.feature) if self.feature else None
        requested = self.inputs.layer_list
        cosines = decoder_cosines(run, offline=self.inputs.offline)
        try:
            return layers(run, settings, feature=feature, cosines=cosines, layers=requested)
        except SourceError as error:
            reporter.note(f"matched by co-firing alone: {error}")
            return layers(run, settings, feature=feature, layers=requested)
