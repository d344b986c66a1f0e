"""The `select` request: which detected features to edit, by what changing them does."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from saescope.analysis.detection import Detection, DetectSettings
from saescope.arguments import Count, Seed, Share, Strength
from saescope.control.edits import EditSet, Op
from saescope.control.edits_file import write_edits
from saescope.control.evaluation.behaviour import FeatureRule
from saescope.control.evaluation.judge import Judge
from saescope.control.evaluation.settings import Goal, ReferenceData, SelectSettings
from saescope.jobs.detect import DetectRequest
from saescope.jobs.evaluate import shorten
from saescope.jobs.inputs import ModelInputs
from saescope.jobs.judging import JudgeInputs, ReplyInputs, bind_judge, keeping_arms
from saescope.jobs.named_features import features_of_rule
from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.request import Request
from saescope.jobs.runs import beside_run
from saescope.sources.file_names import file_name_part
from saescope.sources.prompts import Prompt
from saescope.store.masking import Masking
from saescope.store.resume_cache import ResumeCache, key_of
from saescope.store.runs import Run

if TYPE_CHECKING:
    from saescope.control.evaluation.arm_results import ArmResult
    from saescope.control.evaluation.selection import Selection

_OP: dict[Goal, Op] = {"suppress": "scale", "amplify": "add"}
_STRENGTHS: dict[Goal, tuple[float, ...]] = {
    "suppress": (-1.0, -2.0, -3.0),
    "amplify": (0.5, 1.0, 2.0),
}


@dataclass(frozen=True)
class SelectAnswer:
    """A selection, the run its candidates come from, and the edits file."""

    run: Run
    result: "Selection"
    edits: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of `saescope select`."""
        edits = None if self.edits is None else str(self.edits)
        return {**self.result.to_dict(), "edits": edits, "run": str(self.run.path)}


@final
@dataclass(frozen=True)
class SelectRequest(Request):
    """Among the features that detect a behaviour, find the fewest that control it."""

    verb: ClassVar[str] = "select"

    sets: str
    "Prompt sets or a run made before."
    _: KW_ONLY
    target: str
    "The set that shows the behaviour."
    against: tuple[str, ...] | None = None
    "Sets that do not show it, separated by commas. Default: all others."
    min_rate: Share = 0.8
    "Candidates fire on at least this share of the target's discovery prompts."
    max_other: Share = 0.2
    "Candidates fire on at most this share of any other set's discovery prompts."
    goal: Goal = "suppress"
    "Suppress the behaviour on target prompts, or amplify it on the others."
    op: Op | None = None
    "How features are edited. Default: scale to suppress, add to amplify."
    strengths: tuple[Strength, ...] | None = None
    (
        "Strengths to try; for add, multiples of the feature's largest activation. "
        "Default: -1,-2,-3 to suppress, 0.5,1,2 to amplify."
    )
    max_features: Count = 5
    "Maximum number of features."
    candidates: Count = 12
    "Number of detected features to try, best detectors first."
    prompts: Count = 16
    "Number of prompts to choose on, of prompts to judge on, and of neutral texts."
    max_new_tokens: Count = 32
    "Maximum number of tokens per reply."
    thinking: bool | None = None
    "Turn thinking on or off in the chat template."
    seed: Seed = 0
    "Seed of the held-out split, and of which prompts are chosen on."
    judging: JudgeInputs = JudgeInputs()
    replies: ReplyInputs = ReplyInputs()
    masking: Masking = Masking()
    inputs: ModelInputs = ModelInputs()
    edits: Path | None = None
    "Edits file to write the chosen features to. Default: beside the run."
    out: Path | None = None
    "Directory of the run. Default: runs/NAME-HASH."

    def run(self, reporter: Reporter = SILENT) -> SelectAnswer:
        """Detect, then try the candidates' edits. Finished trials are cached, so this resumes."""
        judge, settings = self.judging.read(), self._settings()
        settings.check()
        neutral, answers = self.replies.read_neutral(), self.replies.read_answers()
        detection_request = self._detection_request()
        features = features_of_rule(judge) if isinstance(judge, FeatureRule) else []
        run = detection_request.obtain(reporter, features)
        detection = detection_request.ask(run)
        reference = ReferenceData(neutral, answers)
        result = self._select(run, detection, judge, settings, reference, reporter)
        return SelectAnswer(run, result, self._write_edits(run, result))

    def _settings(self) -> SelectSettings:
        return SelectSettings(
            max_features=self.max_features,
            candidates=self.candidates,
            strengths=self.strengths or _STRENGTHS[self.goal],
            op=self.op or _OP[self.goal],
            goal=self.goal,
            prompts=self.prompts,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            thinking=self.thinking,
        )

    def _detection_request(self) -> DetectRequest:
        return DetectRequest(
            self.sets,
            target=self.target,
            against=self.against,
            settings=DetectSettings(
                min_rate=self.min_rate,
                max_other=self.max_other,
                seed=self.seed,
                shuffles=0,
                masking=self.masking,
            ),
            inputs=self.inputs,
            out=self.out,
        )

    def _select(
        self,
        run: Run,
        detection: Detection,
        judge: Judge | FeatureRule,
        settings: SelectSettings,
        reference: ReferenceData,
        reporter: Reporter,
    ) -> "Selection":
        lm, saes = self._inputs_of(run).load(reporter, decoder=True, generates=True)
        from saescope.control.evaluation.select import select

        cut = self.replies.cut

        def prepare(prompt: Prompt) -> Prompt:
            [shortened] = shorten(lm, [prompt], cut)
            return shortened

        run_fingerprint = run.manifest["fingerprint"]
        key = key_of(lm.whole_fingerprint, run_fingerprint, str(settings), repr(judge), cut)
        cache = ResumeCache(Path("runs") / f".select-{key[:12]}.jsonl")
        task = _task(settings, detection, lm.spec.repo)
        with keeping_arms(reporter, "select", task, cache) as advance:
            result = select(
                lm,
                saes,
                run,
                detection,
                bind_judge(judge, lm, saes, self.thinking),
                settings,
                reference=reference,
                prepare=prepare,
                cache=cache,
                progress=advance,
            )
        cache.forget()
        return result

    def _inputs_of(self, run: Run) -> ModelInputs:
        """Return inputs that open the run's model, and the SAEs of its layers, again."""
        stored = run.manifest["inputs"]
        return replace(
            self.inputs,
            model=self.inputs.model or stored["model"],
            sae=self.inputs.sae or next(iter(stored["saes"].values())),
            layers=tuple(run.layers),
        )

    def _write_edits(self, run: Run, result: "Selection") -> Path | None:
        if not result.edits:
            return None
        name = f"{file_name_part(self.target)}.selected.toml"
        path = self.edits or beside_run(run.path, name)
        spec = run.saes[result.edits[0].layer]
        inputs = run.manifest["inputs"]
        sae = inputs["saes"].get(str(spec.layer), spec.release)
        edit_set = EditSet(inputs["model"], sae, result.edits, spec.d_model, spec.d_sae)
        write_edits(edit_set, path, _comments(result))
        return path


def _task(settings: SelectSettings, detection: Detection, model: str) -> str:
    """Say in words what will be tried."""
    n = min(settings.candidates, len(detection.features))
    return (
        f"{n} candidates at {len(settings.strengths)} strengths on up to {settings.prompts} prompts"
        f" of {detection.target}, replies of up to {settings.max_new_tokens} tokens from {model}"
    )


def _comments(result: "Selection") -> Sequence[str]:
    before = _rate(result.unedited.judged_on)
    after = _rate(result.steps[-1].judged_on)
    return [
        f"Selected from {len(result.candidates)} candidates for {result.target}: the behaviour "
        f"goes from {before} to {after} on {result.n_judged_on} discovery prompts not chosen on.",
        "Held-out prompts were not used: measure these edits on them with saescope evaluate.",
    ]


def _rate(arm: "ArmResult") -> str:
    if arm.behaviour_rate is None:
        return "-"
    return f"{100 * arm.behaviour_rate:.1f} %"
