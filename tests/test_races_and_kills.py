"""Two equal commands at one moment, and commands killed at random moments.

By default one race and one kill of each command. Many of them, with a line about each command:

    SAESCOPE_RACES=20 SAESCOPE_KILLS=30 pytest -s tests/test_races_and_kills.py
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

import tiny
from forked import run_forked
from hub_server import Hub, serving

pytestmark = pytest.mark.slow

RACES = int(os.environ.get("SAESCOPE_RACES", "1"))
KILLS = int(os.environ.get("SAESCOPE_KILLS", "1"))
COMMANDS = ("contrast", "evaluate", "bake", "fetch")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL, SAE = "tiny/model", "tiny/SAE-Res-Tiny-Base-W1K-L0_8"
LAYER = "layer1.sae.pt"
# What a process does to files, as Python tells it before it is done.
FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink"}

Content = dict[str, str]


@dataclass(frozen=True)
class Undisturbed:
    """A command, what it makes if nothing happens, and how long and how many steps it takes."""

    arguments: tuple[str, ...]
    env: dict[str, str]
    out: str
    content: Content
    seconds: float
    events: int

    def run(self, folder: Path, **options: object) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **self.env, "SAESCOPE_CACHE": str(folder / "cache")}
        env |= {"HF_HOME": str(folder / "home")}
        return run_forked(*self.arguments, env=env, cwd=folder, **options)  # type: ignore[arg-type]


# --- the commands


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny.save_model(folder / "model", shard_size="20KB")
    tiny.save_sae(folder / "sae")
    tiny.save_sae(folder / "hub_sae", k=None)
    (folder / "sets").mkdir()
    for name in ("a", "b"):
        lines = [f"{name} is prompt {n}, one of many" for n in range(20)]
        (folder / "sets" / f"{name}.txt").write_text("\n".join(lines))
    asked = [{"text": f"Is it {n}?", "set": "a", "split": "holdout"} for n in range(3)]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (folder / "neutral").mkdir()
    (folder / "neutral" / "a.txt").write_text("The red dog sleeps.\nThe hill is old.\n")
    return folder


@pytest.fixture(scope="module")
def hub(inputs: Path) -> Iterator[Hub]:
    repos = {MODEL: inputs / "model", SAE: inputs / "hub_sae"}
    with serving(Hub(repos, {"main": COMMIT})) as server:
        yield server


def arguments_of(command: str, inputs: Path) -> tuple[tuple[str, ...], str]:
    """The command line, and what it makes."""
    pair = ("--model", str(inputs / "model"), "--sae", str(inputs / "sae"))
    neutral = ("--neutral", str(inputs / "neutral"))
    match command:
        case "contrast":
            options = ("--layers", "0,1", "--shuffles", "1", "--batch-tokens", "40", "--out", "run")
            return ("contrast", str(inputs / "sets"), *pair, *options), "run"
        case "evaluate":
            options = ("--edit", "1/5 add 3", "--every-prompt", "--max-new-tokens", "3")
            out = ("--draws", "1", "--out", "made")
            prompts = ("--prompts", str(inputs / "asked.jsonl"))
            return ("evaluate", *prompts, *pair, *options, *neutral, *out), "made"
        case "bake":
            return ("bake", "--edit", "1/5 project", *pair, *neutral, "--out", "baked"), "baked"
        case _:
            pair = ("--model", MODEL, "--sae", SAE)
            return ("fetch", *pair, "--layers", "1", "--device", "cpu"), "home/hub"


@pytest.fixture(scope="module", params=COMMANDS)
def undisturbed(
    request: pytest.FixtureRequest,
    inputs: Path,
    hub: Hub,
    tmp_path_factory: pytest.TempPathFactory,
) -> Undisturbed:
    folder = tmp_path_factory.mktemp("alone")
    arguments, out = arguments_of(request.param, inputs)
    env = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    planned = Undisturbed(arguments, env, out, {}, 0, 0)
    events = folder.parent / f"{folder.name}-events"
    run_forked("--version", env=os.environ, cwd=folder)  # starts what processes are forked from
    started = time.monotonic()
    done = planned.run(folder, prepare=partial(count_events, folder, events))
    assert done.returncode == 0, done.stderr
    return Undisturbed(
        arguments,
        env,
        out,
        content_of(folder / out),
        time.monotonic() - started,
        events.stat().st_size,
    )


def content_of(result: Path) -> Content:
    """Every file's hash by its name; of what says when it was made, without that."""
    content = {}
    for path in sorted(result.rglob("*")):
        name = path.relative_to(result).as_posix()
        if path.is_file() and not is_scratch(name):
            data = path.read_bytes()
            if path.suffix in (".json", ".md"):
                data = without_date(data)
            content[name] = hashlib.sha256(data).hexdigest()
    return content


def is_scratch(name: str) -> bool:
    """Whether a file is no result: it has not its name yet, or is the hub's cache's own."""
    parts = (".partial", ".locks/", "/dummy_file_", ".incomplete", "CACHEDIR.TAG")
    return any(part in name for part in parts)


def without_date(data: bytes) -> bytes:
    dated = (b'"created"', b'"digest"')  # when it was made, and the digest of all that
    lines = data.split(b"\n")
    return b"\n".join(line for line in lines if not line.strip().startswith(dated))


# --- moments of a process


def on_file_events(folder: Path, act: Callable[[], object]) -> None:
    """Call `act` before each change of a file in the folder."""
    place = os.path.realpath(folder)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in FILE_EVENTS and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if path.startswith(place):
                act()

    sys.addaudithook(hook)


def count_events(folder: Path, counted: Path) -> None:
    file = os.open(counted, os.O_WRONLY | os.O_CREAT)
    on_file_events(folder, lambda: os.write(file, b"."))


def kill_before(folder: Path, number: int) -> None:
    left = [number]

    def count() -> None:
        left[0] -= 1
        if left[0] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    on_file_events(folder, count)


def run_until_killed(
    job: Undisturbed, folder: Path, moment: float, by_time: bool
) -> subprocess.CompletedProcess[str]:
    """Run the command and kill it at this share of its time, or of its changes of files."""
    if not by_time:
        number = 1 + int(moment * job.events)
        return job.run(folder, prepare=partial(kill_before, folder, number))
    end = time.monotonic() + moment * job.seconds
    return job.run(folder, number=signal.SIGKILL, when=lambda: time.monotonic() >= end)


# --- what must hold


def check_nothing_half(job: Undisturbed, folder: Path) -> bool:
    """What has its name is whole; returns whether all of the result is there."""
    found = content_of(folder / job.out)
    if job.arguments[0] != "fetch" and (folder / job.out).exists():
        assert found == job.content
    for name, digest in found.items():
        assert job.content.get(name) == digest, name
    return found == job.content


def check_whole(job: Undisturbed, folder: Path) -> None:
    assert check_nothing_half(job, folder)
    left = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.name.endswith((".partial", ".incomplete", ".jsonl"))
    ]
    assert left == []
    if job.arguments[0] != "fetch":  # whose next call needs no lock for what is complete
        assert list((folder / "cache" / "locks").glob("*")) == []


def test_races_end_with_one_whole_result(
    undisturbed: Undisturbed, hub: Hub, tmp_path: Path
) -> None:
    seed = random.Random(0)
    counts: Counter[str] = Counter()
    for n in range(RACES):
        folder = tmp_path / str(n)
        folder.mkdir()
        delays = (0, seed.choice([0, 0.1, 0.5]) * seed.random() * undisturbed.seconds)

        def start(delay: float, folder: Path = folder) -> subprocess.CompletedProcess[str]:
            time.sleep(delay)
            return undisturbed.run(folder)

        hub.sent.clear()
        with ThreadPoolExecutor(2) as pool:
            ended = list(pool.map(start, delays))
        errors = [done.stderr for done in ended]
        counts["waited"] += any("waiting for process" in text for text in errors)
        counts["refused"] += any(done.returncode == 2 for done in ended)
        assert sorted(done.returncode for done in ended) in ([0, 0], [0, 2]), errors
        for done in ended:
            # What is there already is refused, and said in one line.
            if done.returncode:
                assert undisturbed.arguments[0] == "bake"
                assert "exists" in done.stderr.splitlines()[-1]
            assert "Traceback" not in done.stderr
        check_whole(undisturbed, folder)
        if undisturbed.arguments[0] == "fetch":  # each file once; the headers of shards, each plan
            assert len(hub.sent[LAYER]) == 1
            assert max(map(len, hub.sent.values())) <= 3
    print(f"\n{undisturbed.arguments[0]}: {RACES} races, {dict(counts)}")


def test_kills_leave_nothing_half_and_the_next_call_ends(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    seed = random.Random(1)
    counts: Counter[str] = Counter()
    for n in range(KILLS):
        folder = tmp_path / str(n)
        folder.mkdir()
        killed = run_until_killed(undisturbed, folder, seed.random(), by_time=n % 2 == 1)
        assert killed.returncode in (0, -signal.SIGKILL), killed.stderr
        counts["killed"] += killed.returncode != 0
        whole = check_nothing_half(undisturbed, folder)
        counts["after publishing"] += whole and killed.returncode != 0
        done = undisturbed.run(folder)
        if whole and undisturbed.arguments[0] == "bake":  # never overwritten
            assert (done.returncode, "exists" in done.stderr) == (2, True)
        else:
            assert done.returncode == 0, done.stderr
        check_whole(undisturbed, folder)
    print(f"\n{undisturbed.arguments[0]}: {KILLS} kills, {dict(counts)}")
