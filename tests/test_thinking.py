"""What a model thinks is no reply: judges see the answer alone, unfinished thoughts are counted."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

import tiny
from saescope.control.edits import Edit
from saescope.control.evaluation.behaviour import (
    FeatureRule,
    LanguageJudge,
    PhraseJudge,
    read_behaviour,
)
from saescope.control.evaluation.evaluate import evaluate
from saescope.control.evaluation.evaluation import Evaluation
from saescope.control.evaluation.feature_judge import FeatureJudge
from saescope.control.evaluation.function_judge import as_judge
from saescope.control.evaluation.judge import (
    EMPTY,
    UNFINISHED,
    Reply,
    label_replies,
    shows_behaviour,
)
from saescope.control.evaluation.settings import EvaluateSettings
from saescope.engine import generate as generation
from saescope.engine.answers import open_thought, read_answer, reply_parts
from saescope.engine.generate import generate_batch
from saescope.engine.lm import LM, load_lm
from saescope.engine.load import load_sae
from saescope.engine.sae import Sae
from saescope.engine.tokens import prompt_ids
from saescope.sources.catalog import Feature
from saescope.sources.chats import Message
from saescope.sources.prompts import Prompt, texts
from saescope.surfaces.cli.evaluate import show_evaluation

NO, YES = "I'm sorry, but I can't help with that.", "Sure! Here it is."
HARMONY = (
    "<|channel|>analysis<|message|>Policy: {}<|end|><|start|>assistant<|channel|>final<|message|>{}"
)
TOOL = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{{}}<|call|>"
WITH_THOUGHTS = {
    "think": "<think>{}</think>{}",
    "think in lines": "<think>\n{}\n</think>\n\n{}",
    "begun in the prompt": "{}</think>{}",
    "closed twice": "<think>{0}</think>{0}</think>{1}",
    "two thoughts": "<think>{0}</think><think>{0}</think>{1}",
    "thought in the middle": "Well. <think>{0}</think>{1}",
    "THINK": "[THINK]{}[/THINK]{}",
    "thinking": "<thinking>{}</thinking>{}",
    "seed": "<seed:think>{}</seed:think>{}",
    "kimi": "◁think▷{}◁/think▷{}",
    "gemma": "<|channel>thought\n{}<channel|>{}",
    "command": "<|START_THINKING|>{}<|END_THINKING|>{}",
    "harmony": HARMONY,
    "harmony, whole": HARMONY + "<|return|>",
    "harmony with a call": "<|channel|>analysis<|message|>{}<|end|><|start|>assistant"
    + TOOL
    + "<|start|>assistant<|channel|>final<|message|>{}",
    "harmony without marks": "analysisPolicy: {}assistantfinal{}",
    "harmony, commentary without marks": "analysis{0}assistantcommentary{0}assistantfinal{1}",
}
UNFINISHED_THOUGHTS = [
    f"<think>\nOkay. {NO}",
    f"  <think>{NO}",
    f"<think>Hm.</think><think>{NO}",
    f"[THINK]{NO}",
    f"<thinking>{NO}",
    f"<|channel|>analysis<|message|>{NO}",
    f"<|channel|>analysis<|message|>{NO}<|end|><|start|>assistant<|channel|>fin",
    "<|channel|>",
    f"analysisPolicy: {NO}",
]
ORDINARY = [
    "analysis of the data: it is fine",
    "Analysis: I looked at it.",
    "analysises",
    "The `<think>` tag opens a thought.",
    "x < think > y",
    "final answer",
]


@pytest.mark.parametrize("name", WITH_THOUGHTS)
def test_answer_is_what_follows_the_thinking(name: str) -> None:
    judge = _judge("declining")
    for thought, answer, shows in ((NO, YES, False), ("Is it allowed?", NO, True)):
        reply = WITH_THOUGHTS[name].format(thought, answer)
        assert answer in read_answer(reply).text
        assert thought not in read_answer(reply).text
        [label] = label_replies(judge, [_reply(reply)])
        assert (label is not None) is shows
        assert (judge.label(reply) is not None) is shows


@pytest.mark.parametrize("reply", UNFINISHED_THOUGHTS)
def test_reply_cut_in_its_thinking_is_unfinished(reply: str) -> None:
    for name in ("declining", "language:en"):
        judge = _judge(name)
        assert judge.label(reply) == UNFINISHED
        assert label_replies(judge, [_reply(reply)]) == [UNFINISHED]
    assert shows_behaviour(UNFINISHED) is None


@pytest.mark.parametrize("reply", ORDINARY)
def test_ordinary_text_is_an_answer(reply: str) -> None:
    assert read_answer(reply).text == reply
    assert not read_answer(reply).unfinished


def test_every_judge_sees_the_answer_alone() -> None:
    seen: list[str] = []

    class Listening:
        def label_all(self, replies: Sequence[Reply]) -> list[str | None]:
            seen.extend(reply.text for reply in replies)
            return [None] * len(replies)

    replies = [
        _reply(f"<think>{NO}</think>{YES}"),
        _reply(f"<think>{NO}"),
        _reply("<think></think>"),
    ]
    assert label_replies(Listening(), replies) == [None, UNFINISHED, EMPTY]
    assert seen == [YES]
    function = as_judge(lambda text: seen.append(text))
    assert function.label_all(replies[:2]) == [None, UNFINISHED]
    assert seen == [YES, YES]


def _judge(name: str) -> PhraseJudge | LanguageJudge:
    judge = read_behaviour(name)
    assert not isinstance(judge, FeatureRule)
    return judge


def _reply(text: str) -> Reply:
    return Reply(Prompt("p", "s", text="x"), [], text)


MARKS = [
    "[THINK]",
    "[/THINK]",
    "<|im_start|>",
    "<|channel|>",
    "<|message|>",
    "<|end|>",
    "<|start|>",
]
OPENS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LM:
    tok = tiny.tokenizer()
    tok.add_special_tokens({"extra_special_tokens": MARKS})
    tok.chat_template = OPENS
    return load_lm(tiny.save_model(tmp_path_factory.mktemp("model"), tok=tok, max_length=999))


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Sae:
    return load_sae(tiny.save_sae(tmp_path_factory.mktemp("sae"), layers=[1]), 1, decoder=True)


ASK = Prompt("q", "asked", messages=(Message("user", "What does <think> mean?"),))
PLAIN = Prompt("p", "asked", text="Once")


def parts(lm: LM, prompt: Prompt, reply: str) -> tuple[str, bool]:
    ids = lm.tokenizer(reply)["input_ids"]
    found = reply_parts(lm.tokenizer, prompt, prompt_ids(lm, prompt), ids)
    if not found.unfinished:
        rest = lm.tokenizer.decode(ids[found.n_thinking :], skip_special_tokens=True)
        assert found.answer in rest
    return found.answer, found.unfinished


@pytest.mark.parametrize(
    "reply", [f"[THINK]{NO}[/THINK]{YES}", HARMONY.format(NO, YES), f"<think>{NO}</think>{YES}"]
)
def test_marks_that_are_special_tokens_are_seen(reply: str, lm: LM) -> None:
    assert parts(lm, PLAIN, reply) == (YES, False)


@pytest.mark.parametrize("reply", [f"[THINK]{NO}", f"<|channel|>analysis<|message|>{NO}"])
def test_unfinished_marks_that_are_special_tokens_are_seen(reply: str, lm: LM) -> None:
    assert parts(lm, PLAIN, reply) == ("", True)


def test_template_may_begin_the_thought(lm: LM) -> None:
    assert parts(lm, ASK, f"{NO}\n</think>\n\n{YES}") == (YES, False)
    assert parts(lm, ASK, NO) == ("", True)
    # The same text is an answer where the prompt ends otherwise.
    closed = replace(ASK, messages=(*(ASK.messages or ()), Message("assistant", "I say:")))
    assert parts(lm, closed, NO) == (NO, False)
    begun = replace(ASK, messages=(*(ASK.messages or ()), Message("assistant", "<think>Hm, ")))
    assert parts(lm, begun, NO) == ("", True)
    assert parts(lm, begun, f"{NO}</think>{YES}") == (YES, False)


@pytest.mark.parametrize(
    ("rendered", "mark"),
    [
        ("assistant\n<think>\n", "<think>"),
        ("[/INST][THINK]", "[THINK]"),
        ("<|start|>assistant<|channel|>analysis<|message|>", "<|channel|>analysis<|message|>"),
        ("<|start|>assistant<|channel|>final<|message|>", ""),
        ("<|start|>assistant", ""),
        ("assistant\n<think>\n\n</think>\n\n", ""),
        ("say <think> and stop", ""),
    ],
)
def test_thought_that_a_prompt_begins(rendered: str, mark: str) -> None:
    assert open_thought(PLAIN, rendered) == mark


def test_text_without_thoughts_is_its_own_answer(lm: LM) -> None:
    [made] = generate_batch(lm, [PLAIN], max_new_tokens=5)
    assert (made.answer, made.unfinished) == (made.text, False)
    [made] = generate_batch(lm, [ASK], max_new_tokens=5)
    assert (made.answer, made.unfinished) == ("", True)


def test_features_of_thoughts_do_not_count(lm: LM, sae: Sae) -> None:
    judge = FeatureJudge(lm, [sae], FeatureRule((Feature(1, 1),), 0.5))
    thought = lm.tokenizer(f"[THINK]{NO}[/THINK]")["input_ids"]
    answer = lm.tokenizer(YES)["input_ids"]
    start = Prompt("p", "s", text=f"Once[THINK]{NO}[/THINK]")
    after_thought = judge.shares([Reply(PLAIN, [*thought, *answer], YES)])
    assert after_thought == judge.shares([Reply(start, answer, YES)])


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch, lm: LM) -> Callable[[Sequence[str]], None]:
    """Let the model write these replies, whatever the prompts."""

    def patch(replies: Sequence[str]) -> None:
        def written(_lm: LM, rows: Sequence[Any], *_: Any) -> list[Any]:
            ids = [lm.tokenizer(reply)["input_ids"] for reply in replies]
            return [generation._Reply(ids[n % len(ids)], ended=False) for n in range(len(rows))]

        monkeypatch.setattr(generation, "_continue", written)

    return patch


def _evaluation(lm: LM, sae: Sae) -> Evaluation:
    [asked] = texts(["a b", "c d", "e f", "g h"], "asked")
    settings = EvaluateSettings(sweep=(1.0,), draws=1, max_new_tokens=4)
    edits = [Edit("1/2", "add", 1.0)]
    return evaluate(lm, [sae], edits, asked.prompts, _judge("declining"), settings)


def test_unfinished_replies_are_counted_apart(
    write: Callable[[Sequence[str]], None], lm: LM, sae: Sae
) -> None:
    write(
        [f"[THINK]{NO}[/THINK]{YES}", f"[THINK]Hm.[/THINK]{NO}", f"[THINK]{NO}", "[THINK][/THINK]"]
    )
    result = _evaluation(lm, sae)
    unedited = result.arms[0]
    assert (unedited.scored, unedited.unfinished, unedited.empty) == (2, 1, 1)
    assert unedited.behaviour_rate == 0.5
    assert unedited.languages == {"en": 2, "unfinished": 1, "empty": 1}
    assert result.labels["none"] == [None, "en: i'm sorry", UNFINISHED, EMPTY]
    assert "1 without edits, 1 with them" in result.verdict[-2]
    document = json.loads(json.dumps(result.to_dict()))
    assert [arm["unfinished"] for arm in document["conditions"]] == [1] * len(result.arms)
    shown = StringIO()
    show_evaluation(Console(width=200, file=shown), result)
    assert "unfinished" in shown.getvalue()


def test_nothing_is_said_of_replies_that_are_all_thought(
    write: Callable[[Sequence[str]], None], lm: LM, sae: Sae
) -> None:
    write([f"<think>{NO}"])
    result = _evaluation(lm, sae)
    assert result.arms[0].behaviour_rate is None
    assert [finding.name for finding in result.findings] == [
        "nothing scored",
        "unfinished",
        "judge error",
    ]
