"""Long work says what it will do and how far it is; interrupted work says how to go on."""

import os
import re
import shlex
import signal
import sys
from contextlib import contextmanager
from itertools import pairwise

import pytest

from forked import run_forked
from saescope.errors import Interrupted
from saescope.jobs.contrast import ContrastRequest
from saescope.jobs.reporter import keeping
from saescope.sources.machine import show_seconds
from saescope.surfaces.cli import progress as cli_progress
from saescope.surfaces.cli.interrupts import command_line
from saescope.surfaces.cli.progress import ProgressLog


class Clock:
    """A clock that only moves when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def log_of(clock, **options):
    said = []
    log = ProgressLog("work", "tokens", "7 prompts of M", said.append, clock=clock, **options)
    return log, said


def test_work_under_ten_seconds_says_nothing():
    clock = Clock()
    log, said = log_of(clock)
    log.advance(0, 100)
    for done in range(1, 101):
        clock.now += 0.09
        log.advance(done, 100)
    assert said == []


def test_announced_from_a_measured_sample_before_it_takes_long():
    clock = Clock()
    log, said = log_of(clock)
    log.advance(0, 6000)
    clock.now += 0.5
    log.advance(50, 6000)
    assert said == []  # half a second is too small a sample
    clock.now += 0.5
    log.advance(100, 6000)
    assert said == [
        "work: 7 prompts of M, 6,000 tokens; about 59 s left, measured on the first 100 tokens"
    ]


def test_a_line_at_most_every_ten_seconds_with_done_total_and_time_left():
    clock = Clock()
    log, said = log_of(clock)
    log.advance(0, 6000)
    times = []
    for done in range(100, 6001, 100):
        clock.now += 1
        before = len(said)
        log.advance(done, 6000)
        times += [clock.now] * (len(said) - before)
    assert said[1] == "work: 1,200/6,000 tokens, 48 s left"
    assert len(said) == 6
    assert min(b - a for a, b in pairwise(times)) >= 10


def test_resumed_work_is_not_measured_as_if_it_were_done_now():
    clock = Clock()
    log, said = log_of(clock)
    log.advance(5000, 6000)
    for done in (5050, 5100):
        clock.now += 1
        log.advance(done, 6000)
    assert said[0].endswith("about 18 s left, measured on the first 100 tokens")


def test_a_step_without_news_speaks_too():
    clock = Clock()
    log, said = log_of(clock)
    for _ in range(25):
        clock.now += 1
        log.tick()
    assert said == ["work: 7 prompts of M; takes over 10 s", "work: 20 s so far"]


def test_estimates_that_were_too_short_are_corrected():
    clock = Clock()
    log, said = log_of(clock)
    log.advance(0, 4)
    clock.now += 2
    log.advance(1, 4)
    assert said == []
    clock.now += 10
    log.tick()
    assert "about 36 s left" in said[0]


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.0, "1 s"), (59.0, "59 s"), (200.0, "3 min"), (9000.0, "2.5 h")]
)
def test_times_have_the_unit_that_people_choose(seconds, text):
    assert show_seconds(seconds) == text


def test_lines_on_stderr_where_it_is_no_terminal(capfd, monkeypatch):
    monkeypatch.setattr(cli_progress, "QUIET_SECONDS", 0.0)
    said = []
    with cli_progress.show_progress("features", "tokens", "2 prompts", said.append) as advance:
        advance(0, 10)
        advance(5, 10)
    assert said[0].startswith("features: 2 prompts, 10 tokens")
    assert said[-1].startswith("features: 5/10 tokens")
    assert "\r" not in capfd.readouterr().err


class Recorder:
    """A reporter that keeps what jobs say they will do, and interrupts after some steps."""

    def __init__(self, steps=10**9):
        self.steps = steps
        self.tasks = {}
        self.totals = {}

    def note(self, text):
        pass

    @contextmanager
    def progress(self, label, unit="tokens", task=""):
        self.tasks[label] = task

        def advance(done, total):
            self.totals[label] = (done, total, unit)
            self.steps -= 1
            if self.steps <= 0:
                raise KeyboardInterrupt

        yield advance


@pytest.mark.slow
def test_a_job_names_prompts_layers_and_model(tmp_path):
    recorder = Recorder()
    ContrastRequest("languages", out=tmp_path / "run").run(recorder)
    assert recorder.tasks["features"] == "252 prompts in 7 sets, layer 2 of saescope-tiny"
    done, total, unit = recorder.totals["features"]
    assert done == total > 1000
    assert unit == "tokens"


@pytest.mark.slow
def test_an_interrupted_job_says_how_much_is_kept(tmp_path):
    recorder = Recorder(steps=3)
    with pytest.raises(Interrupted, match=r"^[\d,]+ of [\d,]+ tokens are kept$"):
        ContrastRequest("languages", out=tmp_path / "run").run(recorder)


def test_nothing_finished_is_said_so():
    with (
        pytest.raises(Interrupted, match="nothing is finished yet"),
        keeping(Recorder(), "work", "tokens", ""),
    ):
        raise KeyboardInterrupt


def test_commands_are_printed_as_they_are_typed_here(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["saescope"])
    assert command_line("contrast", "my prompts") == "saescope contrast 'my prompts'"


def test_a_program_that_the_shell_does_not_find_is_named_by_its_path(monkeypatch, tmp_path):
    program = tmp_path / ".venv/bin/saescope"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert command_line("demo") == "./.venv/bin/saescope demo"
    monkeypatch.setenv("PATH", str(program.parent))
    assert command_line("demo") == "saescope demo"


@pytest.mark.slow
def test_sigterm_keeps_finished_work_and_says_how_to_go_on(tmp_path):
    arguments = ["contrast", "languages", "--batch-tokens", "64", "--out", "a run"]

    def when():
        return len(list(tmp_path.glob(".*.partial/layer*"))) >= 2

    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = run_forked(*arguments, env=env, cwd=tmp_path, number=signal.SIGTERM, when=when)
    assert ended.returncode == 130
    [line] = ended.stderr.splitlines()
    assert re.match(r"saescope: interrupted; [\d,]+ of [\d,]+ tokens are kept; to go on: ", line)
    assert shlex.split(line.partition("to go on: ")[2]) == ["saescope", *arguments]
    assert not (tmp_path / "a run").exists()
    again = run_forked(*arguments, env=env, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
