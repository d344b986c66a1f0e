"""Judges: languages, functions, servers and features label replies as documented."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import tiny
from saescope.control.evaluation.behaviour import FeatureRule, LanguageJudge, read_behaviour
from saescope.control.evaluation.feature_judge import FeatureJudge
from saescope.control.evaluation.function_judge import load_judge
from saescope.control.evaluation.http_judge import HttpJudge
from saescope.control.evaluation.judge import (
    EMPTY,
    UNSCORED,
    Reply,
    describe_judge,
    label_replies,
    shows_behaviour,
)
from saescope.control.evaluation.languages import CODE, MIXED, detect_language
from saescope.engine.lm import load_lm
from saescope.engine.load import load_sae
from saescope.engine.scan import scan
from saescope.errors import JudgeError, PromptError
from saescope.sources.catalog import Feature
from saescope.sources.prompt_sets import bundled_prompts
from saescope.sources.prompts import Prompt, texts
from saescope.store.resume_cache import ResumeCache

BUNDLED = {
    "japanese": "ja",
    "english": "en",
    "chinese": "zh",
    "hindi": "hi",
    "basque": "eu",
    "esperanto": "eo",
    "code": CODE,
}


@pytest.mark.parametrize(("name", "code"), BUNDLED.items())
def test_bundled_sentences_are_never_taken_for_another_language(name: str, code: str) -> None:
    prompts = next(s for s in bundled_prompts() if s.name == name).prompts
    detected = [detect_language(p.text or "") for p in prompts]
    assert detected.count(code) >= 0.85 * len(detected)
    assert set(detected) <= {code, None, "en" if code == CODE else code}  # a comment is English


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Ich bin nicht im Haus.", "de"),
        ("Nous ne sommes pas dans la maison.", "fr"),
        ("No está en la casa.", "es"),
        ("Não está em casa.", "pt"),
        ("Non è nella casa, ma che bello.", "it"),
        ("Я не знаю.", "ru"),
        ("모르겠습니다.", "ko"),
        ("لا أعرف", "ar"),
        ("有3只猫。", "zh"),
        ("Lakshmi有灯塔。", "zh"),
        ("灯台", None),  # Japanese or Chinese
        ("灯台があります", "ja"),
        ("Miren", None),
        ("42", None),
        ("", None),
        ("…", None),
        ("ไม่รู้", "thai"),
        ("the house домик там", MIXED),
    ],
)
def test_language_of_short_texts(text: str, code: str | None) -> None:
    assert detect_language(text) == code


def reply(text: str, prompt: str = "Q") -> Reply:
    return Reply(Prompt("p", "prompts", text=prompt), [], text)


def test_language_judge_labels_replies_in_its_language() -> None:
    judge = read_behaviour("language:ja")
    replies = [
        reply("丘があります。"),
        reply("The hill is there."),
        reply("42"),
        reply(" …"),
        reply("<think>a</think>丘です"),
    ]
    assert label_replies(judge, replies) == ["ja", None, UNSCORED, EMPTY, "ja"]
    assert [shows_behaviour(label) for label in label_replies(judge, replies)] == [
        True,
        False,
        None,
        None,
        True,
    ]
    assert describe_judge(judge) == {"name": "language:ja", "language": "ja"}
    with pytest.raises(PromptError, match="known languages are ar"):
        LanguageJudge("klingon")


def test_functions_are_loaded_from_files_and_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def loud(reply):\n    return reply.isupper()\n"
        "def kind(reply):\n"
        "    if '?' in reply:\n        return 'unscored'\n"
        "    return 'kind' if 'please' in reply else None\n"
        "def broken(reply):\n    raise KeyError('x')\n"
        "def odd(reply):\n    return 3\n"
    )
    replies = [reply("HELLO"), reply("hello please"), reply("?a"), reply("")]
    assert label_replies(load_judge(f"{path}:loud"), replies) == ["shown", None, None, EMPTY]
    assert label_replies(load_judge(f"{path}:kind"), replies) == [None, "kind", UNSCORED, EMPTY]
    for name, message in (("broken", "KeyError"), ("odd", "3 is neither a name")):
        with pytest.raises(JudgeError, match=message):
            label_replies(load_judge(f"{path}:{name}"), replies)
    monkeypatch.syspath_prepend(tmp_path)
    assert describe_judge(load_judge("mine:loud")) == {"name": "loud"}
    for place, message in (
        ("mine:nothing", "no function 'nothing'"),
        ("absent_module:f", "cannot be imported"),
        (f"{tmp_path}/none.py:f", "does not exist"),
        ("mine", "is not FILE.py:FUNCTION"),
    ):
        with pytest.raises(JudgeError, match=message):
            load_judge(place)


Answer = Callable[[Any, int], tuple[int, Any]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], tuple[str, list[Any]]]]:
    """Starts a server on loopback; `answer` gets the request and the number of earlier ones."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> tuple[str, list[Any]]:
        requests: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                code, body = answer(document, len(requests))
                requests.append((document, self.headers.get("Authorization")))
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Retry-After", "7")
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/judge?key=secret", requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


REPLIES = [
    reply("no", "a"),
    reply("yes", "b"),
    reply("", "c"),
    reply("no", "a"),
    reply("who knows", "d"),
]


def judged(document: dict[str, str], _before: int) -> tuple[int, Any]:
    return 200, {"label": {"no": False, "yes": "agrees", "who knows": None}[document["reply"]]}


def test_server_is_asked_once_about_each_reply(
    serve: Callable[[Answer], tuple[str, list[Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SAESCOPE_JUDGE_KEY", "open sesame")
    url, requests = serve(judged)
    path = tmp_path / "judged.jsonl"
    for _ in range(2):
        judge = HttpJudge(url, cache=ResumeCache(path))
        assert label_replies(judge, REPLIES) == [None, "agrees", EMPTY, None, UNSCORED]
    assert [a[0] for a in requests] == [
        {"prompt": p, "reply": r} for p, r in (("a", "no"), ("b", "yes"), ("d", "who knows"))
    ]
    assert {a[1] for a in requests} == {"Bearer open sesame"}
    assert "secret" not in json.dumps(describe_judge(judge))


def test_server_gets_replies_in_batches(serve: Callable[[Answer], tuple[str, list[Any]]]) -> None:
    url, requests = serve(
        lambda document, _: (
            200,
            {"labels": [judged(item, 0)[1]["label"] for item in document["items"]]},
        )
    )
    assert label_replies(HttpJudge(url, batch_size=2), REPLIES) == [
        None,
        "agrees",
        EMPTY,
        None,
        UNSCORED,
    ]
    assert [len(a[0]["items"]) for a in requests] == [2, 1]


def test_failed_requests_are_retried_and_labels_are_kept(
    serve: Callable[[Answer], tuple[str, list[Any]]], tmp_path: Path
) -> None:
    server_fails = True

    def sometimes(document: dict[str, str], before: int) -> tuple[int, Any]:
        if before == 0 or (server_fails and document["reply"] == "yes"):
            return 503, "busy"
        return judged(document, before)

    url, requests = serve(sometimes)
    pauses: list[float] = []
    path = tmp_path / "judged.jsonl"
    with pytest.raises(
        JudgeError, match=r"in 3 tries: HTTP 503 .*; 1 of these 3 replies are judged and kept in"
    ):
        label_replies(HttpJudge(url, tries=3, cache=ResumeCache(path), wait=pauses.append), REPLIES)
    assert pauses == [7, 7, 7]
    server_fails = False
    path.write_bytes(path.read_bytes() + b'["half')  # as an interruption may leave it
    before = len(requests)
    assert label_replies(HttpJudge(url, cache=ResumeCache(path)), REPLIES) == [
        None,
        "agrees",
        EMPTY,
        None,
        UNSCORED,
    ]
    assert [a[0]["reply"] for a in requests[before:]] == ["yes", "who knows"]
    assert len(ResumeCache(path)) == 3


@pytest.mark.parametrize(
    ("code", "body", "message"),
    [
        (401, "who are you", "refused: HTTP 401"),
        (302, "", "refused: HTTP 302"),
        (200, b"<html>", "did not answer in JSON"),
        (200, {"label": 3}, "gave no label: 3 is neither"),
        (200, {"verdict": True}, "gave no label"),
    ],
)
def test_answer_without_labels_is_refused(
    serve: Callable[[Answer], tuple[str, list[Any]]], code: int, body: Any, message: str
) -> None:
    url, requests = serve(lambda *_: (code, body))
    with pytest.raises(JudgeError, match=message):
        label_replies(HttpJudge(url, wait=lambda _: None), REPLIES)
    assert len(requests) == 1


def test_wrong_number_of_labels_is_refused(
    serve: Callable[[Answer], tuple[str, list[Any]]],
) -> None:
    url, _ = serve(lambda *_: (200, {"labels": [True]}))
    with pytest.raises(JudgeError, match="did not give 2 labels"):
        label_replies(HttpJudge(url, batch_size=2), REPLIES)


def test_unreachable_server_is_retried_with_growing_pauses() -> None:
    pauses: list[float] = []
    with pytest.raises(JudgeError, match="did not answer in 4 tries"):
        label_replies(HttpJudge("http://127.0.0.1:9/", wait=pauses.append), REPLIES)
    assert pauses == [0.5, 1, 2]
    with pytest.raises(JudgeError, match="is no http"):
        HttpJudge("ftp://127.0.0.1/")


def test_feature_judge_counts_tokens_of_the_reply_that_fire(tmp_path: Path) -> None:
    lm = load_lm(tiny.save_model(tmp_path / "model"), [2])
    saes = [load_sae(tiny.save_sae(tmp_path / "sae", layers=[1, 2]), layer) for layer in (1, 2)]
    question, answer = "The capital", " of France is in the north"
    ids = lm.tokenizer(answer)["input_ids"]
    start = len(lm.tokenizer(question)["input_ids"])
    whole = scan(lm, saes, texts([question + answer])[0].prompts, n_top=8).prompts[0].tokens[start:]
    assert len(whole) == len(ids)
    features = [f for f, _ in whole[0].features[1]][:1] + [f for f, _ in whole[1].features[2]][:1]
    fires = [any(f in [g for g, _ in token.features[f.layer]] for f in features) for token in whole]
    share = sum(fires) / len(fires)
    reply = Reply(Prompt("p", "s", text=question), ids, answer)
    empty_reply = Reply(Prompt("q", "s", text="x"), [], "nothing")
    for limit, label in ((share, f"{share:.2f} of tokens"), (min(1.0, share + 0.01), None)):
        judge = FeatureJudge(lm, saes, FeatureRule(tuple(features), limit))
        assert judge.label_all([reply, empty_reply]) == [label, UNSCORED]
        assert judge.token_ids(answer) == ids


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("feature:x", "is not feature"),
        ("feature:1/2@0", "between 0 and 1"),
        ("feature:1/2@much", "is not feature"),
    ],
)
def test_feature_rules_are_read(text: str, message: str, tmp_path: Path) -> None:
    rule = read_behaviour("feature:1/2+2/3@0.25")
    assert rule == FeatureRule((Feature(1, 2), Feature(2, 3)), 0.25)
    assert str(rule) == "feature:1/2+2/3@0.25"
    with pytest.raises(PromptError, match=message):
        read_behaviour(text)
    lm = load_lm(tiny.save_model(tmp_path / "model"), [1])
    sae = load_sae(tiny.save_sae(tmp_path / "sae", layers=[1]), 1)
    with pytest.raises(PromptError, match="no SAE passed has 2/3"):
        FeatureJudge(lm, [sae], FeatureRule((Feature(2, 3),)))
