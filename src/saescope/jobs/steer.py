"""The `steer` request: what a model writes with and without edits."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from saescope.arguments import Count, Seed, Temperature
from saescope.control.edits import EditSet
from saescope.errors import PromptError
from saescope.jobs.edits import EditInputs, load_for
from saescope.jobs.inputs import ModelInputs
from saescope.jobs.judging import read_all_prompts
from saescope.jobs.neutral import measured_means, with_means
from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.request import Request
from saescope.sources.chats import Message
from saescope.sources.prompts import Prompt

if TYPE_CHECKING:
    from saescope.control.receipts import Receipt
    from saescope.engine.lm import LM

# Called with the text written so far, without or with edits.
OnText = Callable[[Literal["base", "steered"], str], None]


@dataclass(frozen=True)
class Steering:
    """What a model wrote without and with edits, and what the edits did."""

    base: str
    steered: str
    receipt: "Receipt"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of `saescope steer`."""
        return {"base": self.base, "steered": self.steered, "receipt": self.receipt.to_dict()}


@final
@dataclass(frozen=True)
class SteerRequest(Request):
    """Let a model continue a prompt without edits and with them, and report what the edits did."""

    verb: ClassVar[str] = "steer"

    prompt: str
    "Text to continue, or with `chat` a message to answer."
    _: KW_ONLY
    edits: EditInputs = EditInputs()
    chat: bool = False
    "Put the prompt through the model's chat template."
    system: str | None = None
    "System message before the prompt."
    thinking: bool | None = None
    "Turn thinking on or off in the chat template."
    max_new_tokens: Count = 64
    "Maximum number of tokens to write."
    temperature: Temperature = 0.0
    "0 takes the most likely token each time; above, tokens are sampled."
    seed: Seed = 0
    "Sampling seed."
    neutral: str = "neutral"
    "Prompt sets of plain text to measure the mean residual on. Default: the bundled sentences."
    inputs: ModelInputs = ModelInputs()

    def run(self, reporter: Reporter = SILENT, on_text: OnText | None = None) -> Steering:
        """Generate twice; `on_text` receives both texts while they grow."""
        prompt, edit_set = self._prompt(), self.edits.read()
        neutral = read_all_prompts(self.neutral)
        lm, saes = load_for(edit_set, self.inputs, reporter)
        _note_mismatches(lm, prompt, edit_set, self.thinking, reporter)
        measure = partial(measured_means, lm, texts=neutral, reporter=reporter)
        edit_set = with_means(self.edits, edit_set, measure, reporter)
        from saescope.control.steer import steered

        with steered(lm, saes, edit_set.edits):
            pass  # edits that do not fit are refused before anything is written
        base = self._write(lm, prompt, "base", on_text)
        with steered(lm, saes, edit_set.edits) as receipt:
            changed = self._write(lm, prompt, "steered", on_text)
        return Steering(base, changed, receipt)

    def _prompt(self) -> Prompt:
        """Return the prompt as text, or as a chat if any chat option is set."""
        if not self.prompt.strip():
            raise PromptError("the prompt is empty: give some text")
        if not self.chat and self.system is None and self.thinking is None:
            return Prompt("prompt", "prompts", text=self.prompt)
        messages = [Message("user", self.prompt)]
        if self.system:
            messages.insert(0, Message("system", self.system))
        return Prompt("prompt", "prompts", messages=tuple(messages))

    def _write(
        self,
        lm: "LM",
        prompt: Prompt,
        column: Literal["base", "steered"],
        on_text: OnText | None,
    ) -> str:
        from saescope.engine.generate import generate_batch

        written: list[int] = []

        def on_token(_row: int, token: int) -> None:
            written.append(token)
            if on_text:
                on_text(column, lm.tokenizer.decode(written, skip_special_tokens=True))

        [generation] = generate_batch(
            lm,
            [prompt],
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            thinking=self.thinking,
            on_token=on_token,
        )
        text: str = generation.text
        return text


def _note_mismatches(
    lm: "LM", prompt: Prompt, edit_set: EditSet, thinking: bool | None, reporter: Reporter
) -> None:
    """Note options that have no effect, and directions that come from another model."""
    from saescope.engine.tokens import prompt_ids

    if thinking is not None:
        with_thinking = prompt_ids(lm, prompt, thinking=True)
        if with_thinking == prompt_ids(lm, prompt, thinking=False):
            reporter.note(f"the chat template of {lm.spec.repo} ignores thinking")
    directions = {edit.direction for edit in edit_set.edits if edit.direction is not None}
    for direction in directions:
        if direction.model not in ("", lm.spec.repo):
            reporter.note(
                f"direction {direction} was found in {direction.model}, this is {lm.spec.repo}"
            )
