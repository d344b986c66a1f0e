"""Replies are judged by the right answers that come with prompt sets."""

import json
import os
from dataclasses import replace

import pytest

from saescope.control.evaluation.behaviour import LanguageJudge, read_behaviour
from saescope.control.evaluation.trials import worth_of
from saescope.errors import PromptError
from saescope.jobs.judging import ReplyInputs
from saescope.jobs.select import _warnings
from saescope.sources.known_answers import known_answers, read_answers
from saescope.sources.prompt_sets import bundled_prompts, read_prompts


def prompts_of(source):
    return [prompt for group in read_prompts(source) for prompt in group.prompts]


def test_bundled_requests_come_with_answers():
    prompts = prompts_of("requests")
    answers = known_answers(prompts)
    assert len(answers) == len(prompts) == 600
    assert answers["declined_en-001"] == "Lakshmi has the lighthouses."


def test_an_answer_is_only_for_the_very_prompt_it_came_with():
    first, second = bundled_prompts("requests")[0].prompts[:2]
    other = replace(second, id=first.id)
    assert known_answers([other], "requests") == {}
    assert list(known_answers([first, other], "requests")) == []


@pytest.mark.parametrize("single", [False, True])
def test_answers_stand_in_the_folder_or_beside_the_file(tmp_path, single):
    path = tmp_path / "asked.jsonl"
    path.write_text('{"id": "q1", "text": "Who?"}\n{"id": "q2", "text": "Where?"}\n')
    if single:
        path.write_text(path.read_text().replace('"id"', '"set": "asked", "id"'))
    (tmp_path / "answers.json").write_text(json.dumps({"q1": "Me.", "q9": "?"}))
    source = str(path if single else tmp_path)
    assert known_answers(prompts_of(source), source) == {"q1": "Me."}


@pytest.mark.parametrize("text", ["[1]", "{", '{"q1": 3}', '[{"text": "Who?", "set": "answers"}]'])
def test_another_file_of_that_name_is_no_error(tmp_path, text):
    (tmp_path / "asked.txt").write_text("Who?\n")
    (tmp_path / "answers.json").write_text(text)
    assert known_answers(prompts_of("languages"), str(tmp_path)) == {}


def test_a_fifo_of_that_name_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "answers.json")
    assert known_answers(prompts_of("languages"), str(tmp_path)) == {}
    with pytest.raises(PromptError, match="cannot be read as JSON"):
        read_answers(tmp_path / "answers.json")


def test_sets_that_are_gone_have_no_answers(tmp_path):
    assert known_answers(prompts_of("languages"), str(tmp_path / "gone")) == {}


def test_a_file_of_answers_replaces_those_of_the_sets(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"declined_en-001": "Mine."}')
    prompts = prompts_of("requests")
    assert ReplyInputs(answers=path).answers_of(prompts, "requests") == {"declined_en-001": "Mine."}
    assert ReplyInputs(cut=0.5).answers_of(prompts, "requests") is None
    assert ReplyInputs().answers_of(prompts_of("languages"), "languages") is None


@pytest.mark.parametrize(
    ("judge", "goal", "judged", "warns"),
    [
        (read_behaviour("declining"), "suppress", False, True),
        (read_behaviour("declining"), "suppress", True, False),
        (read_behaviour("declining"), "amplify", False, False),
        (LanguageJudge("ja"), "suppress", False, False),
    ],
)
def test_select_warns_if_no_answer_was_judged(judge, goal, judged, warns):
    warnings = _warnings(judge, goal, judged)
    assert bool(warnings) == warns
    assert all("right answers" in text for text in warnings)


def test_an_edit_that_leaves_answers_wrong_is_worth_less():
    """An edit that ends 95 % of the refusals and answers right beats one that babbles."""
    assert worth_of(0.95, 0.95, "suppress") > worth_of(1.0, 0.5, "suppress")
    assert worth_of(1.0, None, "suppress") > worth_of(0.95, None, "suppress")
    assert worth_of(1.0, 0.0, "amplify") > worth_of(0.95, 0.05, "amplify")
