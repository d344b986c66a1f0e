"""Special tokens are no text: figures and warnings of a profile are those without them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

import tiny
from saescope.analysis.profile import Profile, profile
from saescope.engine.extract import extract
from saescope.engine.lm import load_lm
from saescope.engine.load import load_sae
from saescope.sources.chats import Message
from saescope.sources.prompts import Prompt, PromptSet
from saescope.store.runs import Run

SHORT = ["日本 ab", "cd ef", "gh ij", "kl mn"]
LONG = ["abc defg hijk lmnop", "qrs tuvw xyza bcdef", "ghi jklm nopq rstuv", "wxy zabc defg hijkl"]


def tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    tok = tiny.tokenizer()
    tok.add_special_tokens({"bos_token": "<s>", "extra_special_tokens": ["<|turn|>"]})
    tok.chat_template = (
        "{{ bos_token }}{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}<|turn|>"
    )
    if bos:
        tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tok.convert_tokens_to_ids("<s>"))]
        )
    return tok


def text_sets() -> list[PromptSet]:
    sets = {"short": SHORT, "long": LONG}
    return [
        PromptSet(
            name,
            tuple(
                Prompt(f"{name}:{n}", name, text=text, pair=str(n)) for n, text in enumerate(lines)
            ),
        )
        for name, lines in sets.items()
    ]


def chat_sets() -> list[PromptSet]:
    sets = []
    for group in text_sets():
        prompts = [
            Prompt(p.id, p.set, messages=(Message("user", p.text),), pair=p.pair)
            for p in group.prompts
        ]
        sets.append(PromptSet(group.name, tuple(prompts)))
    return sets


def stored(folder: Path, sets: list[PromptSet], *, bos: bool) -> Run:
    lm = load_lm(tiny.save_model(folder / "model", tok=tokenizer(bos=bos)), [1])
    sae = load_sae(tiny.save_sae(folder / "sae", layers=[1]), 1)
    return extract(lm, [sae], sets, folder / "run")


def figures(result: Profile) -> dict[str, Any]:
    plain = {name: asdict(one) for name, one in result.sets.items()}
    for one in plain.values():
        del one["layers"]
    return plain


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return figures(profile(stored(tmp_path_factory.mktemp("plain"), text_sets(), bos=False)))


@pytest.mark.parametrize("sets", [text_sets(), chat_sets()], ids=["texts", "chats"])
def test_figures_of_text_leave_special_tokens_out(
    sets: list[PromptSet], without: dict[str, Any], tmp_path: Path
) -> None:
    run = stored(tmp_path, sets, bos=True)
    assert (~run.is_text).sum() == (8 if sets[0].prompts[0].text else 3 * 8)
    result = profile(run)
    assert figures(result) == without
    assert not any("begin with" in warning for warning in result.warnings)
    assert not any("position 0 makes" in warning for warning in result.warnings)


def test_shared_first_word_is_still_noticed(tmp_path: Path) -> None:
    sets = [PromptSet("a", tuple(Prompt(f"a:{n}", "a", text=f"Was {n}?") for n in range(4)))]
    result = profile(stored(tmp_path, sets, bos=False))
    assert any("begin with 'W'" in warning for warning in result.warnings)


def test_prompts_of_special_tokens_alone_have_no_text(tmp_path: Path) -> None:
    sets = [
        PromptSet("a", tuple(Prompt(f"a:{n}", "a", text="<|turn|><|turn|>") for n in range(3))),
        *text_sets(),
    ]
    of_set = profile(stored(tmp_path, sets, bos=True)).sets["a"]
    assert (of_set.tokens, of_set.bytes_per_token, of_set.ratio) == (0, 0, 0)
    assert of_set.samples == []


def test_runs_without_the_record_count_every_token(tmp_path: Path) -> None:
    run = stored(tmp_path, text_sets(), bos=True)
    manifest = {name: value for name, value in run.manifest.items() if name != "special_tokens"}
    assert Run(run.path, manifest).is_text.all()
