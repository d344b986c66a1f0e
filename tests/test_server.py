"""The server answers as OpenAI's API, and steers as the engine does."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from saescope.control.edits import Edit, parse_edit
from saescope.control.steer import steered
from saescope.engine.generate import generate_batch
from saescope.engine.neutral_means import neutral_means
from saescope.sources.chats import Message
from saescope.sources.prompts import Prompt
from served import Served, serving, tiny_chat

MODEL = "saescope-tiny-chat"
QUESTIONS = [
    "Where are the lighthouses?",
    "Who has the red boats?",
    "Name the color of the lighthouses.",
    "Where do the dogs sleep?",
]
EDITS = [
    "2/412 scale -3",
    "2/412 scale -1",
    "2/412 add 4",
    "2/406 scale -3",
    "2/30 add 6 relu decode",
    "2/412 clamp 0 topk",
    "2/412 project 0.5",
    "2/5 add 3 relu prefill",
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tiny_chat(tmp_path_factory.mktemp("server"))) as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def body_of(edit: Edit) -> dict[str, Any]:
    """An edit as the API takes it."""
    about = {"about": "zero"} if edit.op == "project" else {}
    shown = {
        **about,
        "op": edit.op,
        "strength": edit.strength,
        "gate": edit.gate,
        "scope": edit.scope,
    }
    return {"feature": edit.name, **shown}


def steering(*texts: str, **options: Any) -> dict[str, Any]:
    return {"steering": {"edits": [body_of(parse_edit(text)) for text in texts], **options}}


def alone(served: Served, question: str, *edits: str, tokens: int = 24) -> str:
    """The reply of the engine, generated alone."""
    service = served.service
    prompt = Prompt("p", "s", messages=(Message("user", question),))
    with steered(service.lm, service.saes, [parse_edit(text) for text in edits]):
        [reply] = generate_batch(service.lm, [prompt], max_new_tokens=tokens)
    return reply.text


def ask(client: openai.OpenAI, question: str, tokens: int = 24, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": question}]
    return client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=tokens, **options
    )


def test_a_chat_is_answered_as_the_engine_answers_it(served: Served, client: openai.OpenAI) -> None:
    reply = ask(client, QUESTIONS[0])
    [choice] = reply.choices
    assert choice.message.content == alone(served, QUESTIONS[0])
    assert choice.finish_reason in ("stop", "length")
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert "steering_receipt" not in reply.model_extra


def test_edits_of_a_request_steer_its_reply_and_say_what_they_did(
    served: Served, client: openai.OpenAI
) -> None:
    reply = ask(client, QUESTIONS[0], extra_body=steering(EDITS[0]))
    text = reply.choices[0].message.content
    assert text == alone(served, QUESTIONS[0], EDITS[0])
    assert text != alone(served, QUESTIONS[0])
    receipt = reply.model_extra["steering_receipt"]
    assert receipt["measured"]["applied"]
    assert receipt["edits"][0]["feature"] == "2/412"
    assert receipt["edits"][0]["gate"] == "relu"


def test_a_stream_holds_the_same_text_and_ends_with_the_receipt(
    served: Served, client: openai.OpenAI
) -> None:
    stream = ask(
        client,
        QUESTIONS[0],
        stream=True,
        stream_options={"include_usage": True},
        extra_body=steering(EDITS[0]),
    )
    chunks = list(stream)
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == alone(served, QUESTIONS[0], EDITS[0])
    assert sum(bool(piece) for piece in pieces) > 5
    assert chunks[-1].usage.completion_tokens > 0
    assert chunks[-1].model_extra["steering_receipt"]["measured"]["applied"]


def test_steering_that_is_off_changes_no_byte(served: Served, client: openai.OpenAI) -> None:
    plain = ask(client, QUESTIONS[1], logprobs=True, top_logprobs=3)
    off = ask(
        client,
        QUESTIONS[1],
        logprobs=True,
        top_logprobs=3,
        extra_body=steering(EDITS[0], enabled=False),
    )
    assert off.choices[0].to_json() == plain.choices[0].to_json()
    assert "steering_receipt" not in off.model_extra


def test_texts_are_continued(served: Served, client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model=MODEL, prompt=["The red dog", "A boat"], max_tokens=8, temperature=0, logprobs=2
    )
    service = served.service
    for choice, text in zip(reply.choices, ["The red dog", "A boat"], strict=True):
        [expected] = generate_batch(service.lm, [Prompt("p", "s", text=text)], max_new_tokens=8)
        assert choice.text == expected.text
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs is not None
        assert len(choice.logprobs.token_logprobs) == len(expected.ids)


def test_many_clients_with_different_edits_get_what_each_would_get_alone(
    served: Served, client: openai.OpenAI
) -> None:
    jobs = [(QUESTIONS[n % 4], EDITS[n % 8]) for n in range(32)]
    expected = {job: alone(served, *job) for job in set(jobs)}

    def one(n: int) -> str | None:
        question, edit = jobs[n]
        if n % 8 == 5:  # leaves midway
            with ask(client, question, stream=True, extra_body=steering(edit)) as stream:
                next(iter(stream))
            return None
        reply = ask(client, question, extra_body=steering(edit))
        return str(reply.choices[0].message.content)

    with ThreadPoolExecutor(32) as pool:
        replies = list(pool.map(one, range(32)))
    wrong = [n for n, text in enumerate(replies) if text not in (None, expected[jobs[n]])]
    assert wrong == []
    assert sum(text is None for text in replies) == 4


@pytest.mark.parametrize("about", ["mean", "zero"])
def test_project_acts_about_the_mean_or_about_zero(
    about: str, served: Served, client: openai.OpenAI
) -> None:
    edits = [{"feature": "2/412", "op": "project", "strength": 1, "about": about}]
    reply = ask(client, QUESTIONS[0], extra_body={"steering": {"edits": edits}})
    service = served.service
    mean = neutral_means(service.lm, [2])[2] if about == "mean" else None
    edit = Edit("2/412", "project", 1.0, about=mean)
    prompt = Prompt("p", "s", messages=(Message("user", QUESTIONS[0]),))
    with steered(service.lm, service.saes, [edit]):
        [expected] = generate_batch(service.lm, [prompt], max_new_tokens=24)
    assert reply.choices[0].message.content == expected.text
    assert reply.model_extra["steering_receipt"]["edits"][0]["about"] == about


def test_a_stored_edit_set_is_a_model_of_its_own(served: Served, client: openai.OpenAI) -> None:
    answer = httpx.put(
        f"{served.url}/v1/steering/lighthouse-off",
        json={"edits": [body_of(parse_edit(EDITS[0]))]},
    )
    assert answer.status_code == 200
    assert f"{MODEL}@lighthouse-off" in [model.id for model in client.models.list().data]
    expected = alone(served, QUESTIONS[0], EDITS[0])
    messages: Any = [{"role": "user", "content": QUESTIONS[0]}]
    by_name = client.chat.completions.create(
        model=f"{MODEL}@lighthouse-off", messages=messages, temperature=0, max_tokens=24
    )
    by_use = ask(client, QUESTIONS[0], extra_body={"steering": {"use": ["lighthouse-off"]}})
    assert by_name.choices[0].message.content == expected
    assert by_use.choices[0].message.content == expected
    receipts = [reply.model_extra["steering_receipt"] for reply in (by_name, by_use)]
    assert receipts[0]["use"] == receipts[1]["use"] == ["lighthouse-off"]
    assert receipts[0]["fingerprint"] == answer.json()["fingerprint"]
    assert httpx.delete(f"{served.url}/v1/steering/lighthouse-off").status_code == 204
    assert httpx.get(f"{served.url}/v1/steering/lighthouse-off").status_code == 404


def test_a_stored_edit_set_is_an_ordinary_edits_file(served: Served, tmp_path: Path) -> None:
    from saescope.control.edits_file import read_edits

    httpx.put(
        f"{served.url}/v1/steering/kept", json={"edits": [body_of(parse_edit(EDITS[0]))]}
    ).raise_for_status()
    [file] = served.service.edit_sets.folder.glob("kept.toml")
    assert read_edits(file).edits == (parse_edit(EDITS[0]),)


def test_equal_seeds_give_equal_replies_and_others_differ(client: openai.OpenAI) -> None:
    def sample(seed: int, **options: Any) -> list[str]:
        messages: Any = [{"role": "user", "content": QUESTIONS[1]}]
        reply = client.chat.completions.create(
            model=MODEL, messages=messages, seed=seed, temperature=2.0, max_tokens=12, **options
        )
        return [str(choice.message.content) for choice in reply.choices]

    assert sample(1) == sample(1)
    assert len({*sample(1, n=4), *sample(9)}) > 3
    assert sample(1, top_p=1e-6) == sample(2, top_p=1e-6)


def test_a_stop_text_ends_the_reply_before_it(client: openai.OpenAI) -> None:
    whole = ask(client, QUESTIONS[0]).choices[0].message.content
    middle = whole[len(whole) // 2 : len(whole) // 2 + 3]
    reply = ask(client, QUESTIONS[0], stop=[middle, "never"])
    assert reply.choices[0].message.content == whole[: whole.index(middle)]
    assert reply.choices[0].finish_reason == "stop"


def test_log_probabilities_are_those_of_the_model(client: openai.OpenAI) -> None:
    reply = ask(client, QUESTIONS[0], tokens=4, logprobs=True, top_logprobs=5)
    rows = reply.choices[0].logprobs.content
    assert "".join(row.token for row in rows) == reply.choices[0].message.content
    for row in rows:
        assert len(row.top_logprobs) == 5
        assert row.logprob == row.top_logprobs[0].logprob  # greedy
        assert row.logprob <= 0
