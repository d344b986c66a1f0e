"""What a server cannot or must not do is refused with the reason, in the shape of OpenAI's API."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from saescope.errors import ArgumentError
from saescope.surfaces.server.guard import MOST_BYTES
from saescope.surfaces.server.serve import ServeRequest
from served import Served, serving, tiny_chat

MODEL = "saescope-tiny-chat"
ASKED = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Where are the boats?"}],
    "max_tokens": 4,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tiny_chat(tmp_path_factory.mktemp("server"))) as server:
        yield server


def refused(served: Served, change: dict[str, Any], path: str = "chat/completions") -> Any:
    answer = httpx.post(f"{served.url}/v1/{path}", json={**ASKED, **change})
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return error


@pytest.mark.parametrize(
    ("steering", "param", "says"),
    [
        ({"edits": [{"feature": "2/99999"}]}, "steering.edits[0]", "512 features"),
        ({"edits": [{"feature": "2/1"}, {"feature": "4/1"}]}, "steering.edits[1]", "layers 2"),
        ({"edits": [{"feature": "2/1", "op": "add"}]}, "steering.edits[0]", "needs a strength"),
        ({"edits": [{"feature": "2/1", "op": "remove"}]}, "steering.edits[0].op", "'add'"),
        ({"edits": [{"feature": "2/1", "strength": True}]}, "steering.edits[0].strength", "True"),
        ({"edits": [{"feature": "2/1", "strength": "-1"}]}, "steering.edits[0].strength", "'-1'"),
        ({"edits": [{"feature": "2/1"}, {"feature": "x"}]}, "steering.edits[1]", "x"),
        ({"edits": [{"feature": "2/1", "stregth": 1}]}, "steering.edits[0].stregth", "1"),
        ({"edits": [{"feature": "/etc/passwd"}]}, "steering.edits[0]", "/etc/passwd"),
        ({"use": ["../../etc/passwd"]}, "steering.use[0]", "passwd"),
        ({"use": ["nothing"]}, "steering.use[0]", "nothing"),
        ({"enabled": 1}, "steering.enabled", "1"),
        ({"enable": True}, "steering.enable", "True"),
        ({"version": 2}, "steering.version", "2"),
        ([], "steering", "[]"),
    ],
)
def test_steering_that_cannot_be_applied_is_refused_and_never_ignored(
    served: Served, steering: Any, param: str, says: str
) -> None:
    error = refused(served, {"steering": steering})
    assert error["param"] == param
    assert says in error["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": "gpt-4"}, "model"),
        ({"model": f"{MODEL}@nothing"}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, None),
        ({"messages": [{"role": "", "content": "Hello"}]}, "messages[0].role"),
        ({"messages": "Hello"}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"stop": [""]}, "stop[0]"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ],
)
def test_what_a_request_asks_for_in_vain_is_named(
    served: Served, change: dict[str, Any], param: str | None
) -> None:
    answer = httpx.post(
        f"{served.url}/v1/chat/completions",
        content=json.dumps({**ASKED, **change}),  # httpx itself refuses half a surrogate pair
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code in (400, 404), answer.text
    if param is not None:
        assert answer.json()["error"]["param"] == param


def test_a_misspelt_edit_set_is_answered_with_the_nearest_names(served: Served) -> None:
    edits = {"edits": [{"feature": "2/412"}]}
    httpx.put(f"{served.url}/v1/steering/lighthouse-off", json=edits).raise_for_status()
    error = refused(served, {"steering": {"use": ["lighthose-of"]}})
    assert "lighthouse-off" in error["message"]


def test_names_of_edit_sets_never_leave_the_folder(served: Served, tmp_path: Path) -> None:
    edits = {"edits": [{"feature": "2/412"}]}
    for name in ("..%2Fout", "%2e%2e", ".hidden", "a" * 65, "a%00b", "a%5Cb"):
        answer = httpx.put(f"{served.url}/v1/steering/{name}", json=edits)
        assert answer.status_code in (400, 404, 405), name
    folder = served.service.edit_sets.folder
    assert {path.parent for path in folder.parent.rglob("*.toml")} <= {folder}


def test_more_requests_than_can_wait_are_told_when_to_come_back(tmp_path: Path) -> None:
    request = ServeRequest(port=0, dir=tmp_path, max_batch=1, max_waiting=1)
    statuses: list[tuple[int, str | None]] = []
    with serving(request) as served:

        def ask() -> None:
            body = {**ASKED, "max_tokens": 60}
            answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60)
            statuses.append((answer.status_code, answer.headers.get("Retry-After")))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    codes = [code for code, _ in statuses]
    assert set(codes) == {200, 429}
    assert all(after for code, after in statuses if code == 429)


def test_a_key_is_needed_everywhere_but_for_health(tmp_path: Path) -> None:
    request = ServeRequest(port=0, dir=tmp_path, api_key="sesame")
    with serving(request) as served:
        assert httpx.get(f"{served.url}/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer sesam"}, {"Authorization": "sesame"}):
            answer = httpx.get(f"{served.url}/v1/models", headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong").models.list()
        assert openai.OpenAI(base_url=f"{served.url}/v1", api_key="sesame").models.list().data


def test_other_hosts_and_pages_of_other_sites_are_refused(served: Served) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        answer = httpx.get(f"{served.url}/v1/models", headers=headers)
        assert answer.status_code == 403
    assert httpx.get(f"{served.url}/v1/models").status_code == 200


def test_a_body_that_is_too_large_is_refused(served: Served) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(MOST_BYTES // 2**20 + 2):
            yield b" " * 2**20

    url = f"{served.url}/v1/chat/completions"
    large = b" " * (MOST_BYTES + 1)
    assert httpx.post(url, content=large).status_code == 413
    assert httpx.post(url, content=chunks()).status_code == 413


def test_a_body_that_is_not_json_is_refused(served: Served) -> None:
    url = f"{served.url}/v1/chat/completions"
    for body in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"model": NaN}'):
        answer = httpx.post(url, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, body[:20]
        assert answer.json()["error"]["message"]


def test_an_address_that_others_can_reach_needs_a_key() -> None:
    for host in ("0.0.0.0", "192.168.0.3", "example.com", "::"):
        with pytest.raises(ArgumentError, match="api_key"):
            ServeRequest(host=host)
        assert not ServeRequest(host=host, api_key="sesame").loopback
    for host in ("127.0.0.1", "localhost", "::1"):
        assert ServeRequest(host=host).loopback


def test_a_reply_whose_client_has_left_is_not_continued(served: Served) -> None:
    body = {**ASKED, "max_tokens": 900, "stream": True, "temperature": 5, "seed": 1}
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body) as answer:
        next(answer.iter_lines())
    deadline = time.monotonic() + 20
    while served.service.scheduler.n_running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert served.service.scheduler.n_running == 0
