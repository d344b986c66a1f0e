"""The `evaluate` request: what edits do to a behaviour and to everything else, beside controls."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from saescope.control.about import about_name
from saescope.control.edits import EditSet
from saescope.control.evaluation.settings import EvaluateSettings, ReferenceData
from saescope.control.means_file import means_of
from saescope.errors import ArgumentError, PromptError
from saescope.jobs.edits import EditInputs, load_for
from saescope.jobs.inputs import ModelInputs
from saescope.jobs.judging import (
    JudgeInputs,
    ReplyInputs,
    bind_judge,
    keeping_arms,
    read_all_prompts,
)
from saescope.jobs.neutral import measured_means, with_means
from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.request import Request
from saescope.jobs.write_once import request_key
from saescope.sources.locks import claimed
from saescope.sources.neutral_mean import NeutralMean
from saescope.sources.prompts import Prompt
from saescope.sources.splits import split_prompts
from saescope.store.resume_cache import ResumeCache, key_of

if TYPE_CHECKING:
    from saescope.control.evaluation.evaluation import Evaluation
    from saescope.engine.lm import LM
    from saescope.engine.sae import Sae

PLOT_FORMATS = (".svg", ".png", ".html")


@dataclass(frozen=True)
class EvaluateAnswer:
    """An evaluation, and what it was asked with."""

    result: "Evaluation"
    question: dict[str, Any]
    cache: ResumeCache

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of `saescope evaluate`."""
        return {**self.result.to_dict(), **self.question}


@dataclass(frozen=True)
class _PromptParts:
    """Prompts that define the difference of means, and prompts that are measured."""

    discovery: list[Prompt]
    measured: list[Prompt]


@final
@dataclass(frozen=True)
class EvaluateRequest(Request):
    """Measure how often a behaviour shows with and without edits, and what else changes.

    Controls are measured on the same prompts.
    """

    verb: ClassVar[str] = "evaluate"

    _: KW_ONLY
    prompts: str
    (
        "Prompt sets. Held-out prompts of all sets get replies: those of the target show the "
        "behaviour, the others what else changes."
    )
    edits: EditInputs = EditInputs()
    found_on: tuple[str, ...] | None = None
    (
        "Sets whose discovery prompts define the difference-of-means control, separated by commas. "
        "Default: all sets."
    )
    every_prompt: bool = False
    "Also use the prompts that features were found on."
    settings: EvaluateSettings = EvaluateSettings()
    judging: JudgeInputs = JudgeInputs()
    replies: ReplyInputs = ReplyInputs()
    inputs: ModelInputs = ModelInputs()
    plot: Path | None = None
    "File for the plot of behaviour against damage: .svg, .png or .html."
    out: Path | None = None
    "A .json file for everything, replies included; or a folder for that and a page with the plot."

    def run(self, reporter: Reporter = SILENT) -> EvaluateAnswer:
        """Measure every arm. Finished arms are cached, so an interrupted evaluation resumes."""
        self._check()
        judge, edit_set = self.judging.read(), self.edits.read()
        neutral, prompts = self.replies.read_neutral(), read_all_prompts(self.prompts)
        known = self.judging.read_known()
        answers = self.replies.answers_of(prompts, self.prompts)
        lm, saes = load_for(edit_set, self.inputs, reporter, judge)
        edit_set, means = self._with_means(lm, edit_set, neutral, reporter)
        from saescope.control.evaluation.evaluate import evaluate, quick_prompts

        prompts = shorten(lm, prompts, self.replies.cut)
        parts = self._split(prompts)
        cache = self._cache(lm, saes, edit_set, prompts)
        measured = parts.measured
        if self.settings.quick:
            target = self.settings.target or {prompt.set for prompt in measured}
            measured = quick_prompts(measured, list(target))
        task = self._task(measured, lm.spec.repo)
        with keeping_arms(reporter, "evaluate", task, cache) as advance:
            result = evaluate(
                lm,
                saes,
                edit_set.edits,
                measured,
                bind_judge(judge, lm, saes, self.settings.thinking),
                self.settings,
                reference=ReferenceData(neutral, answers, parts.discovery, known, means),
                cache=cache,
                progress=advance,
            )
        return EvaluateAnswer(result, self._question(lm, saes, edit_set, means), cache)

    def _with_means(
        self, lm: "LM", edit_set: EditSet, neutral: Sequence[Prompt], reporter: Reporter
    ) -> tuple[EditSet, dict[int, NeutralMean]]:
        """Return the edits with what they act about, and what baselines act about, by layer."""
        if self.edits.about == "zero":
            return with_means(self.edits, edit_set, lambda _layers: {}, reporter), {}
        measure = partial(measured_means, lm, texts=neutral, reporter=reporter)
        edit_set = with_means(self.edits, edit_set, measure, reporter)
        means = means_of(edit_set.edits)
        missing = {edit.layer for edit in edit_set.edits} - means.keys()
        return edit_set, means | measure(sorted(missing))

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other requests from writing `out` and `plot` during the block."""
        key = request_key(self)
        with ExitStack() as stack:
            for path in filter(None, (self.out, self.plot)):
                stack.enter_context(claimed(path.expanduser(), key))
            yield

    def _check(self) -> None:
        self.settings.check()
        if self.plot is not None and self.plot.suffix not in PLOT_FORMATS:
            raise ArgumentError("plot", f"must end in .svg, .png or .html, got {self.plot}")

    def _split(self, prompts: Sequence[Prompt]) -> _PromptParts:
        """Divide prompts as `detect` does.

        Raises PromptError for an unknown set, or if no prompt is held out.
        """
        names = dict.fromkeys(prompt.set for prompt in prompts)
        for name in self.found_on or ():
            if name not in names:
                known = ", ".join(names)
                raise ArgumentError("found_on", f"names no set {name!r}: the sets are {known}")
        discovery, holdout = [], []
        split = split_prompts(prompts, seed=self.settings.seed)
        for prompt, part in zip(prompts, split, strict=True):
            if part == "holdout":
                holdout.append(prompt)
            elif self.found_on is None or prompt.set in self.found_on:
                discovery.append(prompt)
        if not holdout:
            raise PromptError(
                "no prompt is held out: give more prompts, or set every_prompt=True to use those "
                "that features were found on too"
            )
        return _PromptParts(discovery, list(prompts) if self.every_prompt else holdout)

    def _task(self, prompts: Sequence[Prompt], model: str) -> str:
        """Say in words what will be measured."""
        settings = self.settings.sampled
        n_strengths, n_sets = len(settings.strengths), len({prompt.set for prompt in prompts})
        conditions = f"without edits, at {n_strengths} strength{'s'[: n_strengths != 1]}"
        return (
            f"{len(prompts)} prompts of {n_sets} sets under each condition ({conditions}, controls "
            f"with {settings.draws} draws), replies of up to {settings.max_new_tokens} tokens from "
            f"{model}"
        )

    def _cache(
        self, lm: "LM", saes: "Sequence[Sae]", edit_set: EditSet, prompts: Sequence[Prompt]
    ) -> ResumeCache:
        """Open the cache of finished arms; what decides their results decides its name."""
        key = key_of(
            lm.whole_fingerprint,
            [sae.spec.fingerprint for sae in saes],
            repr(edit_set.edits),
            [asdict(prompt) for prompt in prompts],
            self.settings.seed,
        )
        return ResumeCache(Path("runs") / f".evaluate-{key[:12]}.jsonl")

    def _question(
        self,
        lm: "LM",
        saes: "Sequence[Sae]",
        edit_set: EditSet,
        means: Mapping[int, NeutralMean],
    ) -> dict[str, Any]:
        """Return what the JSON says was asked."""
        edits = [
            {
                "feature": edit.name,
                "op": edit.op,
                "strength": edit.amount,
                "gate": edit.gate,
                "scope": edit.scope,
                "when": None if edit.when is None else str(edit.when),
                "about": about_name(edit),
            }
            for edit in edit_set.edits
        ]
        return {
            "model": lm.spec.repo,
            "sae": saes[0].spec.release if saes else None,
            "edits": edits,
            "means": {str(layer): mean.to_dict() for layer, mean in means.items()},
            "part": "all" if self.every_prompt else "holdout",
            "cut": self.replies.cut,
            "seed": self.settings.seed,
            "instruction": self.settings.instruction,
        }


def shorten(lm: "LM", prompts: Sequence[Prompt], share: float | None) -> list[Prompt]:
    """Keep only the beginning of each prompt, up to a whole word."""
    if share is None:
        return list(prompts)
    from saescope.engine.tokens import beginning

    return [beginning(lm, prompt, share) for prompt in prompts]
