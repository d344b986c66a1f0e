"""On the embedded pair, editing the Japanese feature changes the language of replies."""

import pytest

from saescope.control.edits import parse_edit
from saescope.control.evaluation.behaviour import LanguageJudge
from saescope.control.evaluation.evaluate import evaluate
from saescope.control.evaluation.evaluation import Evaluation
from saescope.control.evaluation.languages import detect_language
from saescope.control.evaluation.settings import EvaluateSettings, ReferenceData
from saescope.engine.lm import load_lm
from saescope.engine.load import load_sae
from saescope.engine.tokens import beginning
from saescope.errors import PromptError
from saescope.sources.chats import Message
from saescope.sources.prompt_sets import bundled_prompts
from saescope.sources.prompts import Prompt, texts


def steer_japanese(language: str, *edits: str) -> Evaluation:
    lm, sae = load_lm("saescope-tiny", [1]), load_sae("saescope-tiny-sae", 1, decoder=True)
    sets = {group.name: group.prompts for group in bundled_prompts()}
    beginnings = [beginning(lm, prompt, 0.5) for prompt in sets["japanese"]]
    neutral = [prompt for name, group in sets.items() if name != "japanese" for prompt in group[:4]]
    chosen = [parse_edit(edit) for edit in edits]
    settings = EvaluateSettings(draws=1, max_new_tokens=14)
    reference = ReferenceData(neutral)
    return evaluate(
        lm, [sae], chosen, beginnings, LanguageJudge(language), settings, reference=reference
    )


@pytest.mark.slow
def test_suppressing_japanese_changes_the_language() -> None:
    rows = {c.name: c for c in steer_japanese("ja", "1/1 scale -2").arms}
    assert rows["none"].behaviour_rate == 1
    edited = rows["edits"]
    assert (edited.behaviour_rate or 0) < 0.4
    assert (edited.language_flip or 0) > 0.6
    assert edited.damage is not None
    assert edited.damage.kl_mean < 0.01
    for control in ("zero", "minus", "random feature", "random direction"):
        assert (rows[control].behaviour_rate or 0) > 0.8


@pytest.mark.slow
def test_japanese_is_steered_to_chinese() -> None:
    rows = {c.name: c for c in steer_japanese("zh", "1/1 scale -2", "1/0 add 30").arms}
    assert rows["none"].behaviour_rate == 0
    assert (rows["edits"].behaviour_rate or 0) > 0.4
    for control in ("zero", "minus", "random feature", "random direction"):
        assert (rows[control].behaviour_rate or 0) < 0.1


def test_beginnings_end_where_words_do() -> None:
    lm = load_lm("saescope-tiny", [0])
    for group in bundled_prompts():
        for prompt in group.prompts[:12]:
            head = beginning(lm, prompt, 0.5)
            whole, text = prompt.text or "", head.text or ""
            assert whole.startswith(text)
            assert 0.2 * len(whole) < len(text) < 0.75 * len(whole)
            assert "\ufffd" not in text
            if group.name in ("english", "basque", "esperanto", "hindi"):
                assert not (text[-1].isalnum() and whole[len(text)].isalnum())
            if group.name == "japanese":
                assert detect_language(text) in ("ja", None)
    for prompt, share, message in (
        (texts(["a"])[0].prompts[0], 0.5, "no word boundary"),
        (texts(["a b c"])[0].prompts[0], 1.0, "between 0 and 1"),
        (Prompt("p", "s", messages=(Message("user", "hello there"),)), 0.5, "only texts"),
    ):
        with pytest.raises(PromptError, match=message):
            beginning(lm, prompt, share)
