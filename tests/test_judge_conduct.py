"""A judge that exits, hangs, prints, drips or answers nonsense is one line, and never a result."""

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from conftest import Pair
from saescope.control.evaluation.judge import label_replies
from saescope.errors import JudgeError
from saescope.judges import FunctionJudge, HttpJudge, Reply, load_judge
from saescope.sources.prompts import Prompt
from saescope.surfaces.cli import run

REPLY = Reply(Prompt("q-01", "questions", text="Why?"), [], "Because.")


class _Odd(BaseException):
    pass


def exits(_: str) -> None:
    sys.exit(0)


def hangs(_: str) -> None:
    time.sleep(60)


def loops(_: str) -> None:
    while True:
        pass


def odd(_: str) -> None:
    raise _Odd("two\nlines")


async def later(_: str) -> bool:
    return True


def recurses(text: str) -> Any:
    return recurses(text)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (exits, "it ended the program, exit(0)"),
        (hangs, "TimeoutError: no answer within 0.2 s"),
        (loops, "TimeoutError: no answer within 0.2 s"),
        (odd, "_Odd: two"),
        (later, "TypeError: it is async: give a plain function"),
        (recurses, "RecursionError: "),
        (lambda _: 3.5, "ValueError: 3.5 is neither a name, true nor false"),
        (lambda _: "x" * 10**6, "ValueError: a label of 1,000,000 characters is no name"),
    ],
)
def test_function_that_misbehaves_is_a_judge_error(function: Any, reason: str) -> None:
    with pytest.raises(JudgeError) as raised:
        label_replies(FunctionJudge(function, timeout=0.2), [REPLY])
    assert reason in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


class _Judge:
    def __init__(self, labels: Any) -> None:
        self.labels = labels

    def label_all(self, replies: Sequence[Reply]) -> Any:
        if isinstance(self.labels, BaseException):
            raise self.labels
        return self.labels


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([], "gave no list of 1 labels"),
        ("yes", "gave no list of 1 labels"),
        (None, "gave no list of 1 labels"),
        ([7], "gave no label: 7 is neither"),
        (SystemExit(0), "failed: SystemExit: 0"),
    ],
)
def test_judge_of_another_kind_is_checked(labels: Any, reason: str) -> None:
    with pytest.raises(JudgeError, match=f"judge _Judge {reason}"):
        label_replies(_Judge(labels), [REPLY])


def test_import_that_exits_is_a_judge_error(tmp_path: Path) -> None:
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(JudgeError, match=r"cannot be imported: it ended the program, exit\(0\)"):
        load_judge(f"{tmp_path / 'exits.py'}:judge")


@contextmanager
def dripping_server() -> Iterator[str]:
    """A server that sends a byte every tenth of a second, and never all of an answer."""
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
            while not stop.wait(0.1):
                self.wfile.write(b" ")

        def log_message(self, *_: Any) -> None:
            pass

    web = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{web.server_port}/"
    finally:
        stop.set()
        web.shutdown()
        thread.join()
        web.server_close()


def test_server_that_drips_is_given_up() -> None:
    with dripping_server() as url:
        judge = HttpJudge(url, timeout=0.3, tries=1)
        started = time.monotonic()
        with pytest.raises(JudgeError, match=r"in 1 tries: no whole answer within 0\.3 s"):
            judge.label_all([REPLY])
    assert time.monotonic() - started < 1.5


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"[" * 10**5, "did not answer in JSON: it is nested too deeply"),
        (b"\xff\xfe", "did not answer in JSON"),
        (b'{"label": ' + b"9" * 5000 + b"}", "did not answer in JSON: a number in it has"),
    ],
)
def test_server_that_answers_nonsense_is_a_judge_error(answer: bytes, reason: str) -> None:
    judge = HttpJudge("http://127.0.0.1/", tries=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("urllib.request.OpenerDirector.open", lambda *_, **__: _Answer(answer))
        with pytest.raises(JudgeError, match=reason):
            judge.label_all([REPLY])


class _Answer:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def __enter__(self) -> "_Answer":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, _: int) -> bytes:
        return self.data


def test_judge_that_prints_leaves_the_json_whole(
    pair: Pair, sets_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loud.py").write_text(
        "import sys\nprint('loading')\n\ndef judge(reply):\n"
        "    print('judging')\n    sys.stdout.close()\n    return True\n"
    )
    options = ["--max-new-tokens", "2", "--draws", "0", "--neutral", str(sets_folder)]
    inputs = ["--model", str(pair.model), "--sae", str(pair.sae), "--edit", "1/1 scale -1"]
    command = ["evaluate", "--prompts", str(sets_folder), "--judge", "loud.py:judge", "--json"]
    code = run([*command, *inputs, *options])
    out, err = capfd.readouterr()
    assert code == 0, err
    assert json.loads(out)["conditions"]
    assert "judging" in err
