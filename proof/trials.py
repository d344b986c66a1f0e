"""Detectors of a set at one layer, and which of them act: `select`, a layer at a time."""

from dataclasses import dataclass, replace
from pathlib import Path

import saescope as ss
from proof.folder import DataFolder
from saescope.jobs.evaluate import shorten
from saescope.sources.prompts import Prompt

CUT = 0.5  # share of a paragraph that is given; the model continues it
# By prompts: any feature that fires on more prompts of the target than of every other set.
_THRESHOLDS = ((0.5, 0.49), (0.8, 0.79), (1.0, 0.99))
_EVERY_FEATURE = 100_000


@dataclass(frozen=True)
class Margin:
    """A feature's rate in its set minus its largest rate elsewhere, on held-out prompts."""

    value: float
    ci: tuple[float, float]


@dataclass(frozen=True)
class Trials:
    """A model and a stored run, from which detectors are taken and tried."""

    lm: ss.LM
    run: ss.Run
    saes: Path

    @classmethod
    def load(cls, folder: DataFolder, run: str) -> "Trials":
        """Open Gemma 3 with its SAEs, and a run of it."""
        return cls(
            ss.load_lm(folder.gemma3), ss.Run.open(folder.root / run), folder.saes / "gemma3"
        )

    def margins(self, layer: int, target: str) -> dict[str, Margin]:
        """Return how well the features detect the target, best on discovery prompts first."""
        settings = ss.ContrastSettings(n_top=_EVERY_FEATURE, shuffles=0)
        result = ss.contrast(self.run, settings, layers=[layer]).layers[layer].sets[target]
        return {
            str(one.feature): Margin(one.holdout_score, one.holdout_score_ci)
            for one in result.features
        }

    def detection(self, layer: int, target: str, n: tuple[int, int]) -> ss.Detection:
        """Return the `n[0]` best detectors by tokens and the `n[1]` best ones by prompts."""
        detections = []
        for min_rate, max_other in _THRESHOLDS:
            settings = ss.DetectSettings(min_rate=min_rate, max_other=max_other, shuffles=0)
            detections.append(ss.detect(self.run, target, settings, layers=[layer]))
        detected = {str(one.feature): one for each in detections for one in each.features}
        by_tokens = [name for name in self.margins(layer, target) if name in detected]
        by_prompts = [str(one.feature) for one in detections[0].features]
        names = dict.fromkeys([*by_tokens[: n[0]], *by_prompts[: n[1]]])
        return replace(detections[0], features=[detected[name] for name in names])

    def select(
        self,
        detection: ss.Detection,
        language: str,
        settings: ss.SelectSettings,
        neutral: tuple[Prompt, ...],
    ) -> ss.Selection:
        """Try these detectors on beginnings of paragraphs, judged by the language that follows."""
        [layer] = {one.feature.layer for one in detection.features}
        return ss.select(
            self.lm,
            [ss.load_sae(self.saes, layer, decoder=True)],
            self.run,
            detection,
            ss.judges.LanguageJudge(language),
            settings,
            reference=ss.ReferenceData(neutral),
            prepare=self._beginning,
        )

    def _beginning(self, prompt: Prompt) -> Prompt:
        [beginning] = shorten(self.lm, [prompt], CUT)
        return beginning
