"""Rates, a steered text, a KL and a rate before and after are those of a plain script."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import plain_script
import saescope as ss
from plain_script import Question
from proof.folder import data_folder
from saescope.control.evaluation.damage import damage
from saescope.demo import organism

PHRASE = "sorry"


def from_saescope(question: Question, folder: Path) -> dict[str, Any]:
    """The same figures by saescope."""
    prompts = [
        ss.Prompt(f"{name}-{n:02}", name, messages=tuple(ss.Message(**turn) for turn in turns))
        for name, chats in question.requests.items()
        for n, turns in enumerate(chats)
    ]
    lm = ss.load_lm(question.model, dtype="float32")
    sae = ss.load_sae(question.sae, layer=question.layer, k=question.k, decoder=True)
    sets = [
        ss.PromptSet(name, tuple(prompt for prompt in prompts if prompt.set == name))
        for name in question.requests
    ]
    run = ss.extract(lm, [sae], sets, folder / "run")
    masking = ss.Masking(last=question.last, keep_sinks=True)
    settings = ss.ContrastSettings(n_top=sae.spec.d_sae, shuffles=0, masking=masking)
    by_set = ss.contrast(run, settings, layers=[question.layer]).layers[question.layer].sets
    feature = f"{question.layer}/{question.feature}"
    neutral = ss.texts(question.neutral, "neutral")[0].prompts
    evaluation = ss.evaluate(
        lm,
        [sae],
        [ss.Edit(feature, "scale", question.strength)],
        prompts,
        lambda reply: PHRASE in reply,
        ss.EvaluateSettings(
            target=(question.target,),
            draws=0,
            max_new_tokens=question.max_new_tokens,
            thinking=False,
        ),
        reference=ss.ReferenceData(neutral),
    )
    mean = ss.neutral_means(lm, [question.layer], neutral)[question.layer]
    project = ss.Edit(feature, "project", about=mean)
    ids = [lm.tokenizer(text)["input_ids"] for text in question.neutral]
    [projected] = damage(lm, ids, [lambda: ss.steered(lm, [sae], [project])])
    [unedited] = [arm for arm in evaluation.arms if arm.name == "none"]
    edited = evaluation.chosen
    assert edited.damage is not None
    first = next(n for n, prompt in enumerate(prompts) if prompt.set == question.target)
    return {
        "rates": {
            name: next((f.rate for f in one.features if str(f.feature) == feature), 0.0)
            for name, one in by_set.items()
        },
        "before": evaluation.replies["none"][first],
        "after": evaluation.replies["edits x1"][first],
        "kl": edited.damage.kl_mean,
        "kl_project": projected.kl_mean,
        "shown": [unedited.behaviour_rate, edited.behaviour_rate],
    }


def shown(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as they are printed."""
    rates = {name: f"{rate:.1%}" for name, rate in figures["rates"].items()}
    texts = {name: figures[name].strip() for name in ("before", "after")}
    return {
        "rates": rates,
        **texts,
        **{name: f"{figures[name]:.2g}" for name in ("kl", "kl_project")},
        "shown": [f"{rate:.1%}" for rate in figures["shown"]],
    }


def chats(path: Path, name: str, number: int) -> list[list[dict[str, str]]]:
    """The first chats of a set."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [row["messages"] for row in rows if row["set"] == name][:number]


def test_the_organisms_figures_are_those_of_a_plain_script(tmp_path: Path) -> None:
    rows = map(json.loads, organism.NEUTRAL.read_text(encoding="utf-8").splitlines())
    question = Question(
        model=organism.MODEL,
        sae=organism.SAE / "layer2.sae.pt",
        layer=2,
        k=16,
        feature=412,
        strength=-2.0,
        requests={
            name: chats(organism.PROMPTS, name, 4) for name in ("declined_en", "answered_en")
        },
        target="declined_en",
        neutral=[row["text"] for row in rows][:4],
        phrase=PHRASE,
        last=3,
        max_new_tokens=10,
    )
    plain = plain_script.figures(question)
    assert plain["before"] != plain["after"]
    assert plain["kl_project"] > plain["kl"] > 1e-5
    assert plain["shown"][0] == 1 > plain["shown"][1]
    assert plain["rates"]["declined_en"] > 0.5 > plain["rates"]["answered_en"]
    assert shown(from_saescope(question, tmp_path)) == shown(plain)


def test_the_plain_script_is_plain() -> None:
    text = Path(plain_script.__file__).read_text(encoding="utf-8")
    imports = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert not any("saescope" in line for line in imports)
    assert len(text.splitlines()) <= 150


@pytest.mark.real
def test_the_refusal_plans_figures_are_those_of_a_plain_script(tmp_path: Path) -> None:
    folder = data_folder()
    if not (folder.results / "refusal.json").exists():
        pytest.skip("scripts/real --only refusal has not run")
    results = folder.read_result("refusal")
    layer, feature = map(int, results["chosen"][0][0].split("/"))
    sets = folder.root / "sets"
    rows = map(
        json.loads,
        (sets / "neutral-smollm2" / "neutral.jsonl").read_text(encoding="utf-8").splitlines(),
    )
    question = Question(
        model=folder.smollm2,
        sae=folder.saes / "smollm2" / f"layer{layer}.sae.pt",
        layer=layer,
        k=json.loads((folder.saes / "smollm2" / "cfg.json").read_text(encoding="utf-8"))["k"],
        feature=feature,
        strength=1.5 * results["chosen"][0][1],
        requests={
            name: chats(sets / "requests" / f"{name}.jsonl", name, 12)
            for name in ("declined", "personal", "ordinary")
        },
        target="declined",
        neutral=[row["text"] for row in rows][:12],
        phrase=PHRASE,
        last=5,
        max_new_tokens=24,
    )
    plain = plain_script.figures(question)
    assert plain["shown"][0] == 1
    assert plain["kl"] > 1e-5
    assert shown(from_saescope(question, tmp_path)) == shown(plain)
