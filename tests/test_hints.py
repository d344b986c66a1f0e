"""What commands say about each other holds: next commands run as printed, ranks are explained."""

import shlex

import pytest

from saescope.analysis.ranking import why_ranks_differ
from saescope.sources.catalog import Feature
from saescope.surfaces.cli import run as cli


@pytest.mark.slow
def test_demo_ends_with_a_command_that_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli(["demo", "--out", "my runs/first"]) == 0
    last = capsys.readouterr().out.rstrip().splitlines()[-1]
    program, *arguments = shlex.split(last)
    assert program == "saescope"
    assert arguments == ["contrast", "my runs/first"]
    assert cli(arguments) == 0
    assert "features that distinguish the sets" in capsys.readouterr().out


@pytest.mark.slow
def test_detect_says_why_it_ranks_otherwise_and_what_should_not_transfer(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli(["detect", "languages", "--target", "japanese"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "first for japanese: 2/5), detect by the share of prompts" in shown
    assert "2/241 chinese* " in shown
    assert "* not expected to transfer: the detector was chosen to be silent there." in shown


def test_equal_ranks_need_no_sentence():
    one, other = Feature(2, 5), Feature(2, 7)
    assert why_ranks_differ("a", one, one) is None
    assert "first for a: 2/5" in why_ranks_differ("a", one, other)
