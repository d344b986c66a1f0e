"""A chat's ids are those of transformers' apply_chat_template; hostile templates are refused."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import tiny
from conftest import Pair
from saescope.control.evaluation.arms import with_instruction
from saescope.engine import chat_template
from saescope.engine.generate import generate
from saescope.engine.lm import LM, load_lm
from saescope.engine.tokens import prompt_ids
from saescope.errors import PromptError
from saescope.sources.chats import Message, parse_messages
from saescope.sources.prompts import Prompt

IM = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ BODY }}<|im_end|>\n{% endfor %}"
GENERATION = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PLAIN = IM.replace("{{ BODY }}", "{{ m.content }}") + GENERATION
EITHER = (
    IM.replace(
        "{{ BODY }}",
        "{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}",
    )
    + GENERATION
)
PARTS_ONLY = (
    IM.replace(
        "{{ BODY }}",
        "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}"
        "{% endfor %}",
    )
    + GENERATION
)
TRIMMED = IM.replace("{{ BODY }}", "{{ m.content | trim }}") + GENERATION
WITH_BOS = "{{ bos_token }}" + PLAIN
TOOLS = (
    IM.replace(
        "{{ BODY }}",
        "{{ m.name }}{% if m.content %}{{ m.content }}{% endif %}"
        "{% for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}",
    )
    + GENERATION
)
THINKING = (
    IM.replace(
        "{{ BODY }}",
        "{% set text = m.content.split('</think>')[-1].lstrip('\n') %}"
        "{% if '</think>' in m.content %}<think>\n"
        "{{ m.content.split('</think>')[0].split('<think>')[-1].strip('\n') }}\n</think>\n\n"
        "{% endif %}{{ text }}",
    )
    + GENERATION
)


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LM:
    tok = tiny.tokenizer()
    marks = ["<|im_start|>", "<|im_end|>"]
    tok.add_special_tokens({"bos_token": "<s>", "extra_special_tokens": marks})
    return load_lm(tiny.save_model(tmp_path_factory.mktemp("chat"), tok=tok, max_length=4096))


def with_template(lm: LM, template: Any) -> LM:
    tokenizer: Any = type(lm.tokenizer).from_pretrained(lm.source, trust_remote_code=False)
    tokenizer.chat_template = template
    return replace(lm, tokenizer=tokenizer)


def ids_of(lm: LM, messages: list[dict[str, Any]], thinking: bool | None = None) -> list[int]:
    prompt = Prompt("p", "chats", messages=parse_messages(messages))
    return prompt_ids(lm, prompt, thinking=thinking)


def right_ids(lm: LM, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    """What transformers makes of the same messages."""
    how = {"add_generation_prompt": True}
    if messages[-1]["role"] == "assistant":
        how = {"continue_final_message": True}
    ids = lm.tokenizer.apply_chat_template(messages, return_dict=False, **how, **options)
    return list(ids)


HI = {"role": "user", "content": "hi \n there"}
BEGUN = {"role": "assistant", "content": "Sure, here "}
SAID = [{"type": "text", "text": "hi"}, {"type": "text", "text": "!"}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CHATS: dict[str, list[dict[str, Any]]] = {
    "question": [HI],
    "system": [{"role": "system", "content": "be brief"}, HI],
    "null keys": [{**HI, "name": None, "tool_calls": None}],
    "answered": [HI, {"role": "assistant", "content": "yes"}, HI],
    "begun": [HI, BEGUN],
    "begun with nothing": [HI, {"role": "assistant", "content": ""}],
}


@pytest.mark.parametrize("template", [PLAIN, EITHER, TRIMMED, WITH_BOS, THINKING])
def test_ids_are_those_of_transformers(template: str, lm: LM) -> None:
    lm = with_template(lm, template)
    for messages in CHATS.values():
        assert ids_of(lm, messages) == right_ids(lm, messages)


@pytest.mark.parametrize("last", [SAID, [SAID[0]]])
def test_content_in_parts(last: Any, lm: LM) -> None:
    lm = with_template(lm, EITHER)
    for role in ("user", "assistant"):
        messages = [HI, {"role": role, "content": last}]
        assert ids_of(lm, messages) == right_ids(lm, messages)


def test_parts_and_texts_reach_a_template_that_knows_one_of_the_two(lm: LM) -> None:
    plain, parts = with_template(lm, PLAIN), with_template(lm, PARTS_ONLY)
    in_parts = [{"role": "user", "content": SAID}]
    in_text = [{"role": "user", "content": "hi!"}]
    expected = right_ids(plain, in_text)
    for messages in (in_parts, in_text):
        assert ids_of(plain, messages) == expected
        assert ids_of(parts, messages) == expected


def test_other_keys_reach_the_template(lm: LM) -> None:
    lm = with_template(lm, TOOLS)
    messages = [
        {**HI, "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "3", "name": "add"},
    ]
    assert ids_of(lm, messages) == right_ids(lm, messages)
    # A chat that ends in a call has nothing to continue.
    closed = list(lm.tokenizer.apply_chat_template(messages[:2], return_dict=False))
    assert ids_of(lm, messages[:2]) == closed


def test_lost_tool_calls_are_refused(lm: LM) -> None:
    call = {"role": "assistant", "content": "wait", "tool_calls": [CALL]}
    with pytest.raises(PromptError, match="leaves out the call of the tool 'add'"):
        ids_of(with_template(lm, PLAIN), [HI, call, HI])
    dropping = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(PromptError, match="leaves out a message of the role 'tool'"):
        ids_of(with_template(lm, dropping), [HI, {"role": "tool", "content": "3"}])


def test_last_message_that_the_template_rewrites_is_continued(lm: LM) -> None:
    lm = with_template(lm, THINKING)
    messages = [HI, {"role": "assistant", "content": "<think>Hm.</think>Sure, "}]
    shown = lm.tokenizer.decode(ids_of(lm, messages))
    assert shown.endswith("<|im_start|>assistant\n<think>\nHm.\n</think>\n\nSure, ")


@pytest.mark.parametrize("template", [PLAIN, TRIMMED, EITHER])
def test_assistant_turn_is_continued(template: str, lm: LM) -> None:
    lm = with_template(lm, template)
    ids = torch.tensor([right_ids(lm, CHATS["begun"])])
    judge = AutoModelForCausalLM.from_pretrained(
        lm.source, dtype=torch.float32, trust_remote_code=False
    )
    new = judge.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False
    )
    expected = lm.tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)
    assert generate(lm, CHATS["begun"], max_new_tokens=6) == expected


@pytest.mark.parametrize("chat", [[], [{"role": "user"}], [{"content": "hi"}]])
def test_generation_refuses_what_is_no_chat(chat: Any, lm: LM) -> None:
    with pytest.raises(PromptError, match="the chat"):
        generate(lm, chat)


def test_thinking_reaches_the_template(lm: LM) -> None:
    shown = "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}"
    lm = with_template(lm, PLAIN + shown)
    for thinking in (True, False):
        expected = right_ids(lm, [HI], enable_thinking=thinking)
        assert ids_of(lm, [HI], thinking) == expected
    assert ids_of(lm, [HI]) == right_ids(lm, [HI])


def test_named_templates(lm: LM) -> None:
    named = with_template(lm, {"default": PLAIN, "tool_use": "TOOLS" + PLAIN})
    assert ids_of(named, [HI]) == right_ids(with_template(lm, PLAIN), [HI])
    with pytest.raises(PromptError, match="multiple chat templates with no default"):
        ids_of(with_template(lm, {"rag": PLAIN, "tool_use": PLAIN}), [HI])


def test_refusal_of_a_template_is_one_line(lm: LM) -> None:
    refusing = with_template(lm, "{{ raise_exception('System role\nnot supported') }}")
    with pytest.raises(PromptError, match=r"does not fit the chat template: System role$"):
        ids_of(refusing, [HI])
    with pytest.raises(PromptError, match="does not fit the chat template"):
        ids_of(with_template(lm, "{% for %}"), [HI])


def test_tokenizer_with_chats_in_its_own_code(lm: LM) -> None:
    class OwnCode(PreTrainedTokenizerFast):
        def apply_chat_template(self, conversation: Any, **options: Any) -> list[int]:  # type: ignore[override]
            if options["continue_final_message"]:
                raise ValueError("not here")
            return [len(conversation), int(options["add_generation_prompt"])]

    own = replace(lm, tokenizer=OwnCode.from_pretrained(lm.source, trust_remote_code=False))
    assert ids_of(own, [HI]) == [1, 1]
    with pytest.raises(PromptError, match="not here"):
        ids_of(own, CHATS["begun"])


HOSTILE = {
    "nested loops": "{% for a in range(99999) %}" * 5 + "{% endfor %}" * 5,
    "loops over text": "{% set t = 'a' * 9999 %}" + "{% for a in t %}" * 5 + "{% endfor %}" * 5,
    "long text": "{{ 'a' * 10**10 }}",
    "long text by a filter": "{{ 'a' | center(10**10) }}",
    "long list": "{{ range(10**9) | list }}",
    "large number": "{{ 10 ** (10 ** 10) }}",
    "doubled text": (
        "{% set ns = namespace(t='a') %}{% for a in range(99) %}{% set ns.t = ns.t ~ ns.t %}"
        "{% endfor %}{{ ns.t }}"
    ),
    "long output": "{% for a in range(99999) %}{{ 'a' * 999 }}{% endfor %}",
    "recursion": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.slow
def test_hostile_template_is_refused_in_time(name: str, lm: LM) -> None:
    begun = time.monotonic()
    with pytest.raises(PromptError, match="does not fit the chat template") as caught:
        ids_of(with_template(lm, HOSTILE[name]), [HI])
    assert time.monotonic() - begun < 10
    assert "\n" not in str(caught.value)
    # The next chat is rendered as before.
    well = with_template(lm, PLAIN)
    assert ids_of(well, [HI]) == right_ids(well, [HI])


def test_template_that_needs_too_much_memory_is_refused(lm: LM) -> None:
    with pytest.raises(PromptError, match=r"it takes more than 2 s, 512 MiB or"):
        ids_of(with_template(lm, HOSTILE["long text"]), [HI])


@pytest.mark.slow
def test_template_worker_ends_with_its_program(lm: LM) -> None:
    program = (
        "from saescope.engine.chat_template import _answer, _worker\n"
        "request = dict(template='x', messages=[{'role': 'user', 'content': 'x'}], variables={},"
        " continues=False, answers=True)\n"
        "assert _answer(request) == {'text': 'x'}\n"
        "print(_worker._process.pid)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stderr == ""
    assert not Path(f"/proc/{ended.stdout.strip()}").exists()


def test_chats_are_rendered_once_unless_they_show_the_date(
    lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ask = chat_template._worker.ask

    def counting(line: str) -> dict[str, Any] | None:
        asked.append(line)
        return ask(line)

    monkeypatch.setattr(chat_template._worker, "ask", counting)
    once = with_template(lm, PLAIN + "{# once #}")
    assert ids_of(once, [HI]) == ids_of(once, [HI])
    assert len(asked) == 1
    dated = with_template(lm, PLAIN + "{{ strftime_now('%Y') }}")
    assert ids_of(dated, [HI]) == ids_of(dated, [HI])
    assert len(asked) == 3


def test_instruction_before_content_in_parts(pair: Pair) -> None:
    lm, _ = pair.load(0)
    prompt = Prompt("p", "chats", messages=(Message("user", ("hi", "!")),))
    [instructed] = with_instruction(lm, [prompt], "be brief")
    [first] = instructed.messages or ()
    assert first.text == "be brief\n\nhi!"
