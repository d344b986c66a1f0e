"""The embedded pair is a real model whose SAEs hold what the README claims."""

import json
import random
import re
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from saescope.analysis.contrast import Contrast, ContrastSettings, contrast
from saescope.demo import MODEL, SAE
from saescope.engine.extract import extract
from saescope.engine.lm import load_lm
from saescope.engine.load import load_sae
from saescope.engine.tokens import tokenize
from saescope.sources.prompt_sets import bundled_prompts
from saescope.sources.prompts import Prompt
from saescope.sources.saes import open_sae
from saescope.surfaces.cli import run
from training import pycode
from training.conlangs.tongues import TONGUES
from training.grammar import text
from training.grammar.lexicon import lexicon

pytestmark = pytest.mark.slow

LANGUAGES = ("japanese", "english", "chinese", "hindi", "basque", "esperanto")
MIDDLE = 2  # of six layers, the one taken when none is named


def bundled(name: str) -> dict[str, tuple[Prompt, ...]]:
    return {prompt_set.name: prompt_set.prompts for prompt_set in bundled_prompts(name)}


@pytest.fixture(scope="module")
def contrasted(tmp_path_factory: pytest.TempPathFactory) -> Contrast:
    lm = load_lm(MODEL, [MIDDLE])
    run = extract(
        lm, [load_sae(SAE, MIDDLE)], bundled_prompts(), tmp_path_factory.mktemp("runs") / "run"
    )
    return contrast(run, ContrastSettings())


def test_one_feature_is_japanese_on_held_out_prompts(contrasted: Contrast) -> None:
    best = contrasted.layers[MIDDLE].sets["japanese"].features[0]
    assert best.confirmed
    assert best.holdout_rate >= 0.90
    assert best.holdout_other_rate <= 0.05


@pytest.mark.parametrize("name", [*LANGUAGES, "code"])
def test_every_set_has_a_confirmed_feature(contrasted: Contrast, name: str) -> None:
    best = contrasted.layers[MIDDLE].sets[name].features[0]
    assert best.confirmed
    assert best.holdout_score >= 0.5
    assert best.score >= 0.5


def test_shuffled_labels_confirm_nothing(contrasted: Contrast) -> None:
    assert contrasted.settings.shuffles >= 20
    assert contrasted.layers[MIDDLE].shuffled_confirmed == 0


def test_model_is_better_than_counting(contrasted: Contrast) -> None:
    figures = json.loads((MODEL.parent / "figures.json").read_text(encoding="utf-8"))
    loss = figures["nats_per_token"]
    assert loss["model"] < loss["bigram"] - 0.5 < loss["unigram"] - 1.0
    assert all(sae["fvu"] < 0.5 and sae["dead"] < 0.3 for sae in figures["saes"])


def test_files_are_as_real_ones_and_small() -> None:
    assert open_sae(str(SAE)).layers == tuple(range(6))
    weights = sum(path.stat().st_size for path in MODEL.parent.rglob("*") if path.is_file())
    assert weights < 25e6


def test_prompts_are_paired_and_enough() -> None:
    sets = {s.name: s.prompts for s in bundled_prompts()}
    assert set(sets) == {*LANGUAGES, "code"}
    assert all(len(prompts) >= 30 for prompts in sets.values())
    pairs = [[prompt.pair for prompt in sets[name]] for name in LANGUAGES]
    assert all(p == pairs[0] and None not in p for p in pairs)


def test_conlangs_are_complete_and_paired_with_the_languages() -> None:
    sets, english = bundled("conlangs"), bundled("languages")["english"]
    assert set(sets) == set(TONGUES)
    for prompts in sets.values():
        assert [prompt.pair for prompt in prompts] == [prompt.pair for prompt in english]
        assert len({prompt.display_text for prompt in prompts}) == len(english)


def test_conlangs_share_no_words_but_names() -> None:
    names = {name.name.lower() for name in lexicon().names}
    sets = {**bundled("languages"), **bundled("conlangs")}
    text_of = {
        name: " ".join(prompt.display_text for prompt in prompts).lower()
        for name, prompts in sets.items()
    }
    words = {
        name: {w for w in re.findall(r"[^\W\d_]{3,}", tongue) if w not in names}
        for name, tongue in text_of.items()
    }
    for tongue, other in product(TONGUES, sets):
        assert tongue == other or len(words[tongue] & words[other]) <= 0.01 * len(words[tongue])


def test_every_conlang_needs_over_twice_the_tokens_of_english() -> None:
    lm = load_lm(MODEL, [0])
    english = [len(row) for row in tokenize(lm, bundled("languages")["english"])]
    for prompts in bundled("conlangs").values():
        tokens = [len(row) for row in tokenize(lm, prompts)]
        assert sum(tokens) > 2 * sum(english)
        assert all(n > m for n, m in zip(tokens, english, strict=True))


def test_profile_shows_what_the_pair_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = tmp_path / "some.jsonl"
    some = [p for s in (*bundled_prompts(), *bundled_prompts("conlangs")) for p in s.prompts[:12]]
    small.write_text(
        "".join(json.dumps({"set": p.set, "pair": p.pair, "text": p.text}) + "\n" for p in some)
    )
    assert run(["profile", str(small), "--layers", "0", "--json"]) == 0
    profiled = json.loads(capsys.readouterr().out)
    sets = profiled["sets"]
    assert sets["code"]["paired"] is None
    assert all(
        sets[name]["paired"]["ratio"] > sets["english"]["paired"]["ci"][1] for name in TONGUES
    )
    assert all(
        sets[name]["bytes_per_token"] < sets["english"]["bytes_per_token"] for name in TONGUES
    )
    assert sets["hradun"]["fragments"] == 1.0  # no rune is a token: each is three bytes
    assert sets["english"]["fragments"] == 0.0
    assert any(
        line.startswith("orrhane: ") and "begin with" in line for line in profiled["warnings"]
    )
    assert not any(line.startswith("english: ") for line in profiled["warnings"])


def test_prompts_cannot_be_in_the_training_text() -> None:
    prompts = {prompt.display_text for s in bundled_prompts() for prompt in s.prompts}
    rng = random.Random(12345)
    for _ in range(1500):
        for name in LANGUAGES:
            document = text.document(name, rng)
            assert not any(prompt in document for prompt in prompts)
        code = pycode.document(rng)
        assert not any(prompt in code for prompt in prompts)


def test_demo_does_the_whole_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["demo", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"profile", "scan", "contrast", "steer", "report", "run"}
    assert "sorry" in result["steer"]["base"]
    assert "sorry" not in result["steer"]["steered"]
    assert result["steer"]["receipt"]["applied"]
    assert (tmp_path / result["report"]).is_file()
    assert len(result["scan"]["prompts"]) == 3
    assert (tmp_path / result["run"] / "manifest.json").is_file()
    assert run(["demo"]) == 0
    printed = capsys.readouterr().out
    assert result["run"] in printed
    first = result["contrast"]["layers"]["2"]["sets"]["japanese"]["features"][0]
    assert first["feature"] in printed


def test_contrast_of_a_stored_run_needs_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["contrast", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(
        "saescope.engine.lm.load_lm", lambda *_, **__: pytest.fail("loaded a model")
    )
    assert run(["contrast", first["run"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert Counter(first["split"]["holdout"].values())[14] >= 6  # 36 prompts, 60 % for discovery
