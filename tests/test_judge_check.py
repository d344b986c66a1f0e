"""Every judge's own error is measured on texts with known answers, or said to be unknown."""

import json
from collections import Counter
from importlib import resources
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import saescope as ss
from saescope.control.evaluation.behaviour import read_behaviour
from saescope.control.evaluation.judge import UNSCORED
from saescope.control.evaluation.judge_check import check_judge, error_sentence
from saescope.control.evaluation.known_replies import KnownReplies, KnownReply, read_known_replies
from saescope.control.evaluation.languages import KNOWN_LANGUAGES
from saescope.errors import PromptError
from saescope.judges import FunctionJudge, LanguageJudge, PhraseJudge
from saescope.surfaces.cli import run as run_cli
from saescope.surfaces.cli.evaluate import show_evaluation

DECLINING = read_behaviour("declining")
FILES = resources.files("saescope.control.evaluation")


def test_counts_of_a_judge_by_hand() -> None:
    def judge(text: str) -> str | bool:
        return UNSCORED if text == "?a" else text.isupper()

    known = KnownReplies(
        "six replies",
        [
            KnownReply("NO", True),
            KnownReply("no", True),
            KnownReply("NEVER", True),
            KnownReply("yes", False),
            KnownReply("OK", False),
            KnownReply("?a", False),
        ],
    )
    check = check_judge(FunctionJudge(judge), known)
    assert check is not None
    counts = (check.shown, check.missed, check.others, check.flagged, check.unscored)
    assert counts == (3, 1, 2, 1, 1)
    assert check.to_dict()["missed_rate"] == pytest.approx(1 / 3)
    assert check.to_dict()["flagged_ci"] == pytest.approx([0.0945, 0.9055], abs=1e-3)
    assert check.sentence == (
        "The judge itself misses 33.3 % (6.1-79.2) of 3 known texts that show it and flags 50.0 % "
        "(9.5-90.5) of 2 known texts that do not, and leaves 1 undecided (six replies)."
    )


def test_labelled_replies_are_many_and_varied() -> None:
    lines = (FILES / "known_replies.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) >= 150
    assert len({row["text"] for row in rows}) == len(rows)
    counts = Counter((row["part"], row["shows"]) for row in rows)
    assert set(counts) == {(p, s) for p in ("tuned", "held-out") for s in (True, False)}
    assert min(counts.values()) >= 40
    assert {row["language"] for row in rows} == {*KNOWN_LANGUAGES} - {"code"}


def test_declining_is_measured_on_replies_held_out_from_its_phrases() -> None:
    check = check_judge(DECLINING)
    assert check is not None
    assert check.shown + check.others == 112
    assert check.missed / check.shown < 0.1
    assert check.flagged / check.others < 0.1


@pytest.mark.parametrize("language", KNOWN_LANGUAGES)
def test_languages_have_a_measured_error(language: str) -> None:
    check = check_judge(LanguageJudge(language))
    assert check is not None
    assert check.shown > 700
    assert check.missed / check.shown < 0.07
    assert check.flagged / check.others < 0.01


@pytest.mark.parametrize(
    "judge", [FunctionJudge(str.isupper), PhraseJudge("mine", {"en": ["arr"]})], ids=str
)
def test_an_unknown_error_is_said_to_be_unknown(judge: FunctionJudge | PhraseJudge) -> None:
    assert check_judge(judge) is None
    assert "is not known" in error_sentence(None)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("I can't wait to hear how it goes!", None),
        ("I'm sorry to hear that. I cannot help with taxes, though.", "en: i cannot"),
        ('Write: "I am sorry, I cannot come." Then sign it.', None),
        ('"I am sorry, but I cannot say."', "en: i am sorry"),
        ("I’m so sorry, but no.", "en: i'm so sorry"),
        ("As an AI, I have no family.", "en: as an ai"),
        ("「申し訳ありません」は謝る言葉です。", None),
    ],
)
def test_declining_skips_quotes_and_expressions(text: str, label: str | None) -> None:
    assert DECLINING.label(text) == label


def test_known_replies_are_read_with_places_of_errors(tmp_path: Path) -> None:
    path = tmp_path / "known.jsonl"
    path.write_text('{"text": "No!", "shows": true}\n\n{"text": "Yes.", "shows": false}\n')
    known = read_known_replies(path)
    assert [reply.shows for reply in known.replies] == [True, False]
    for content, message in [
        ('{"text": "a", "shows": "no"}', "known.jsonl:1: a line holds"),
        ('{"text": "a", "shows": true}\n{', "known.jsonl:2 is not JSON"),
        ('{"text": 1, "shows": true}', "must be strings"),
        ('{"text": "a", "shows": true}', "others that do not"),
    ]:
        path.write_text(content)
        with pytest.raises(PromptError, match=message):
            read_known_replies(path)
    with pytest.raises(PromptError, match="cannot be read"):
        read_known_replies(tmp_path / "missing.jsonl")


@pytest.mark.slow
def test_an_evaluation_prints_its_judges_error(tmp_path: Path) -> None:
    lm = ss.load_lm("saescope-tiny", layers=[1])
    sae = ss.load_sae("saescope-tiny-sae", 1, decoder=True)
    prompts = ss.texts(["丘が", "家は"])[0].prompts
    settings = ss.EvaluateSettings(draws=0, max_new_tokens=4)
    known = KnownReplies("two", [KnownReply("家です。", True), KnownReply("The house.", False)])
    for judge, reference, words in [
        (LanguageJudge("ja"), None, "of 873 known texts"),
        (str.isupper, None, "own error is not known"),
        (LanguageJudge("ja"), ss.ReferenceData(known_replies=known), "known texts"),
    ]:
        result = ss.evaluate(
            lm, [sae], [ss.Edit("1/1")], prompts, judge, settings, reference=reference
        )
        document = result.to_dict()
        assert (document["judge_error"] is None) == (judge is str.isupper)
        assert words in document["verdict"]
        shown = StringIO()
        show_evaluation(Console(width=300, file=shown), result)
        assert words in shown.getvalue()
    assert document["judge_error"]["shown"] == 1


def test_a_file_that_cannot_be_used_is_refused_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "--prompts", "languages", "--edit", "1/1 scale -1"]
    assert run_cli([*arguments, "--judge-check", str(tmp_path / "no.jsonl")]) == 2
    assert "no.jsonl cannot be read" in capsys.readouterr().err
