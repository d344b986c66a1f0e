"""The `demo` request: the main job on the embedded pair."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from saescope.analysis.contrast import Contrast, ContrastSettings, contrast
from saescope.analysis.profile import Profile, profile
from saescope.jobs.edits import EditInputs
from saescope.jobs.inputs import ModelInputs
from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.request import Request
from saescope.jobs.runs import Extraction, compute_run
from saescope.jobs.steer import Steering, SteerRequest
from saescope.sources.prompt_sets import DEFAULT_BUNDLE, bundled_prompts
from saescope.sources.prompts import texts
from saescope.store.runs import Run

if TYPE_CHECKING:
    from saescope.engine.scan import Scan

# Found by `saescope contrast` on English prompts; training/LOG.md has its effect on held-out ones.
DECLINING = "2/412 scale -3"
CHAT_MODEL, CHAT_SAE = "saescope-tiny-chat", "saescope-tiny-chat-sae"
_SCANNED_SETS = ("english", "code", "japanese")


@dataclass(frozen=True)
class Demo:
    """All that the demo computes."""

    run: Run
    profile: Profile
    scan: "Scan"
    contrast: Contrast
    steer_prompt: str
    steering: Steering

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of `saescope demo`, without the report's path."""
        steer = {"prompt": self.steer_prompt, "edit": DECLINING, **self.steering.to_dict()}
        return {
            "profile": self.profile.to_dict(),
            "scan": self.scan.to_dict(),
            "contrast": self.contrast.to_dict(),
            "steer": steer,
            "run": str(self.run.path),
        }


@final
@dataclass(frozen=True, kw_only=True)
class DemoRequest(Request):
    """Run the main job on the embedded pair: profile, scan, contrast, steer."""

    verb: ClassVar[str] = "demo"

    out: Path | None = None
    "Directory of the run. Default: runs/languages-HASH."

    def run(self, reporter: Reporter = SILENT) -> Demo:
        """Compute everything on the bundled prompt sets."""
        inputs, prompt_sets = ModelInputs(), bundled_prompts()
        lm, saes = inputs.load(reporter, generates=True)
        from saescope.engine.scan import scan

        extraction = Extraction(
            sets=DEFAULT_BUNDLE, inputs=inputs, out=self.out, command=self.record()
        )
        run = compute_run(lm, saes, prompt_sets, DEFAULT_BUNDLE, extraction, reporter)
        first_prompts = {group.name: group.prompts[0].display_text for group in prompt_sets}
        scanned = texts(first_prompts[name] for name in _SCANNED_SETS)[0].prompts
        prompt, steering = _steer(reporter)
        return Demo(
            run=run,
            profile=profile(run, n_samples=1),
            scan=scan(lm, saes, scanned),
            contrast=contrast(run, ContrastSettings()),
            steer_prompt=prompt,
            steering=steering,
        )


def _steer(reporter: Reporter) -> tuple[str, Steering]:
    """Ask the chat model that declines one topic, with and without the declining feature."""
    requests = {group.name: group for group in bundled_prompts("requests")}
    prompt = requests["declined_en"].prompts[0].request
    request = SteerRequest(
        prompt,
        edits=EditInputs(edit=(DECLINING,)),
        chat=True,
        thinking=False,
        inputs=ModelInputs(model=CHAT_MODEL, sae=CHAT_SAE),
    )
    return prompt, request.run(reporter)
