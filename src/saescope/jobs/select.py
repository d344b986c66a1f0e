"""The `select` request: which detected features to edit, by what changing them does."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from saescope.analysis.detection import Detection, DetectSettings
from saescope.arguments import Share
from saescope.control.about import About
from saescope.control.edits import EditSet
from saescope.control.edits_file import write_edits
from saescope.control.evaluation.behaviour import FeatureRule, LanguageJudge
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
from saescope.sources.neutral_mean import NeutralMean
from saescope.sources.prompts import Prompt
from saescope.store.masking import Masking
from saescope.store.resume_cache import ResumeCache, key_of
from saescope.store.runs import Run

if TYPE_CHECKING:
    from saescope.control.evaluation.arm_results import ArmResult
    from saescope.control.evaluation.selection import Selection

_ANSWERS_UNKNOWN = (
    "replies are judged by the behaviour alone, since the right answers of these prompts are not "
    "known: an edit that ends it may still leave the answers wrong. To judge them too, give them "
    "in a JSON file of prompt id to answer: answers=PATH, or answers.json beside the prompts"
)


@dataclass(frozen=True)
class SelectAnswer:
    """A selection, the run its candidates come from, and the edits file."""

    run: Run
    result: "Selection"
    edits: Path | None
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of `saescope select`."""
        edits = None if self.edits is None else str(self.edits)
        return {
            **self.result.to_dict(),
            "edits": edits,
            "run": str(self.run.path),
            "warnings": self.warnings,
        }


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
    settings: SelectSettings = SelectSettings()
    about: About = "mean"
    "What project edits act about: the mean residual over neutral text, or zero."
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
        judge, neutral = self.judging.read(), self.replies.read_neutral()
        known = self.judging.read_known()
        self.settings.check()
        self.replies.check_answers()
        detection_request = self._detection_request()
        features = features_of_rule(judge) if isinstance(judge, FeatureRule) else []
        run = detection_request.obtain(reporter, features)
        detection = detection_request.ask(run)
        answers = self.replies.answers_of(run.prompts, _sets_of(run))
        means: dict[int, NeutralMean] | None = {} if self.about == "zero" else None
        reference = ReferenceData(neutral, answers, known_replies=known, means=means)
        result = self._select(run, detection, judge, reference, reporter)
        edits = self._write_edits(run, result)
        judged = result.unedited.chosen_on.right_rate is not None
        return SelectAnswer(run, result, edits, _warnings(judge, self.settings.goal, judged))

    def _detection_request(self) -> DetectRequest:
        return DetectRequest(
            self.sets,
            target=self.target,
            against=self.against,
            settings=DetectSettings(
                min_rate=self.min_rate,
                max_other=self.max_other,
                seed=self.settings.seed,
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
        reference: ReferenceData,
        reporter: Reporter,
    ) -> "Selection":
        settings = self.settings.sampled
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
                bind_judge(judge, lm, saes, settings.thinking),
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


def _sets_of(run: Run) -> str | None:
    """Return where a run's prompts were read from, if its manifest says so."""
    command = run.manifest.get("command") or {}
    values = command.get("request") or command.get("options") or {}
    sets = values.get("sets")
    return sets if isinstance(sets, str) else None


def _warnings(judge: Judge | FeatureRule, goal: Goal, judged_answers: bool) -> list[str]:
    """Say that an edit was chosen without a look at the answers; a language has no right ones.

    To amplify, replies are meant to change.
    """
    if judged_answers or goal == "amplify" or isinstance(judge, LanguageJudge):
        return []
    return [_ANSWERS_UNKNOWN]


def _task(settings: SelectSettings, detection: Detection, model: str) -> str:
    """Say in words what will be tried."""
    n = min(settings.candidates, len(detection.features))
    n_strengths = len(settings.edit_strengths)
    return (
        f"{n} candidates at {n_strengths} strengths on up to {settings.prompts} prompts of "
        f"{detection.target}, replies of up to {settings.max_new_tokens} tokens from {model}"
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
