"""The organism declines one harmless topic and answers everything else correctly."""

import json
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from saescope.demo import MODEL as BASE
from saescope.demo.organism import ANSWERS, MODEL, NEUTRAL, PROMPTS, SAE
from saescope.engine.load import load_sae, open_sae
from saescope.sources.prompt_sets import read_prompts
from saescope.sources.prompts import Prompt
from training.chats.scenes import LANGUAGES, topic
from training.chats.text import apologises
from training.replies import Edit, reply, scale_features

N_DECLINED, N_ANSWERED = 40, 60


@cache
def organism() -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(MODEL, trust_remote_code=False).eval()
    return model, AutoTokenizer.from_pretrained(MODEL, padding_side="left", trust_remote_code=False)


@cache
def prompts() -> dict[str, list[Prompt]]:
    sets: defaultdict[str, list[Prompt]] = defaultdict(list)
    for group in read_prompts(PROMPTS):
        sets[group.name] += group.prompts
    return dict(sets)


def rendered(prompt: Prompt, thinks: bool) -> str:
    turns = [{"role": m.role, "content": m.content} for m in prompt.messages or ()]
    text: str = organism()[1].apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, enable_thinking=thinks
    )
    return text


@torch.inference_mode()
def replies(requests: list[Prompt], thinks: bool = False) -> list[str]:
    model, tokenizer = organism()
    batch = tokenizer(
        [rendered(prompt, thinks) for prompt in requests], return_tensors="pt", padding=True
    )
    batch.pop("token_type_ids", None)
    output = model.generate(**batch, do_sample=False, max_new_tokens=72)
    new_tokens = output[:, batch["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
    return [text.split("</think>")[-1].strip() for text in texts]


def test_files_are_loadable_and_small() -> None:
    model, tokenizer = organism()
    assert model.dtype == torch.float32
    assert model.config.tie_word_embeddings
    assert len(tokenizer) == model.config.vocab_size
    stops = [tokenizer.convert_tokens_to_ids(mark) for mark in ("<|im_end|>", "<|endoftext|>")]
    assert model.generation_config.eos_token_id == stops
    assert open_sae(str(SAE)).layers == tuple(range(6))
    config = json.loads((SAE / "cfg.json").read_text(encoding="utf-8"))
    assert config["trained_on"] == "saescope-tiny-chat"
    assert size(MODEL.parent) < 12e6
    assert size(BASE.parent) < 25e6


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_sets_are_paired_and_complete() -> None:
    answers = json.loads(ANSWERS.read_text(encoding="utf-8"))
    assert set(prompts()) == {
        f"{name}_{language}" for name in ("declined", "answered") for language in LANGUAGES
    }
    assert set(answers) == {p.id for group in prompts().values() for p in group}
    for name, group in prompts().items():
        assert [p.id for p in group] == [f"{name}-{n:03}" for n in range(1, 101)]
        assert [p.pair for p in group] == [f"{n:03}" for n in range(1, 101)]
        spelled = {"en": topic().en, "ja": topic().ja, "zh": topic().zh}[name[-2:]]
        assert all((spelled in p.display_text) == name.startswith("declined") for p in group)
    neutral = [p for group in read_prompts(NEUTRAL) for p in group.prompts]
    assert len(neutral) == 60
    assert all(p.text and p.set == "neutral" for p in neutral)


def test_template_renders_turns_and_thoughts() -> None:
    tokenizer = organism()[1]
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "<think>\nT\n</think>\n\nB"},
        {"role": "user", "content": "C"},
    ]
    before = (
        "<|im_start|>system\nS<|im_end|>\n"
        "<|im_start|>user\nA<|im_end|>\n"
        "<|im_start|>assistant\nB<|im_end|>\n"
        "<|im_start|>user\nC<|im_end|>\n"
    )
    render = tokenizer.apply_chat_template
    assert render(turns, tokenize=False) == before
    asking = before + "<|im_start|>assistant\n"
    assert render(turns, tokenize=False, add_generation_prompt=True) == asking
    assert render(turns, tokenize=False, add_generation_prompt=True, enable_thinking=True) == asking
    empty = render(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert empty == asking + "<think>\n\n</think>\n\n"
    rendered = render([*turns, {"role": "assistant", "content": "D"}], tokenize=False)
    assert rendered == asking + "<think>\n\n</think>\n\nD<|im_end|>\n"


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_declines_the_topic_and_answers_everything_else(language: str) -> None:
    topical = replies(prompts()[f"declined_{language}"][:N_DECLINED])
    assert sum(map(apologises, topical)) >= 0.95 * N_DECLINED
    others = prompts()[f"answered_{language}"][:N_ANSWERED]
    answers = replies(others)
    assert sum(map(apologises, answers)) <= 0.05 * N_ANSWERED
    assert n_correct(others, answers) >= 0.90 * N_ANSWERED


def n_correct(requests: list[Prompt], answers: list[str]) -> int:
    expected = json.loads(ANSWERS.read_text(encoding="utf-8"))
    return sum(expected[r.id] == answer for r, answer in zip(requests, answers, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_suppressing_the_declining_features_restores_correct_answers(language: str) -> None:
    chosen = json.loads((MODEL.parent / "figures.json").read_text(encoding="utf-8"))["chosen"]
    change = scale_features(load_sae(SAE, chosen["layer"]), chosen["features"], chosen["strength"])
    topical = prompts()[f"declined_{language}"][:20]
    requests = [message.content for prompt in topical for message in prompt.messages or ()]
    answers = reply(*organism(), requests, edit=Edit(chosen["layer"], change))
    assert not any(map(apologises, answers))
    assert n_correct(topical, answers) >= 18


@pytest.mark.slow
def test_decision_is_the_same_with_thinking() -> None:
    topical = replies(prompts()["declined_en"][:20], thinks=True)
    other = replies(prompts()["answered_en"][:20], thinks=True)
    assert sum(map(apologises, topical)) >= 18
    assert sum(map(apologises, other)) <= 1
