"""Tokens that a tokenizer adds: one BOS, no end before a continuation; YaRN extends the context."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

import tiny
from saescope.engine.config import max_length
from saescope.engine.generate import generate
from saescope.engine.lm import LM, load_lm
from saescope.engine.tokens import beginning, prompt_ids
from saescope.sources.prompts import Prompt

BOS, EOS = "<s>", "<|endoftext|>"
TEXT = "The quick brown fox"


def adding_tokenizer(before: str = "", after: str = "") -> PreTrainedTokenizerFast:
    """A tokenizer that puts tokens around every text."""
    tok = tiny.tokenizer()
    tok.add_special_tokens({"bos_token": BOS, "extra_special_tokens": ["<mask>", "<|im_start|>"]})
    names = [*before.split(), *after.split()]
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{before} $A {after}".strip(),
        special_tokens=[(name, tok.convert_tokens_to_ids(name)) for name in dict.fromkeys(names)],
    )
    return tok


@pytest.fixture(scope="module")
def lm_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LM]:
    def load(before: str = "", after: str = "") -> LM:
        folder = tmp_path_factory.mktemp("model")
        return load_lm(tiny.save_model(folder, tok=adding_tokenizer(before, after)))

    return load


def ids_of(lm: LM, text: str) -> list[int]:
    return prompt_ids(lm, Prompt("p", "set", text=text))


def test_pasted_text_has_one_bos(lm_of: Callable[..., LM]) -> None:
    lm = lm_of(BOS)
    bos = lm.tokenizer.bos_token_id
    assert ids_of(lm, TEXT) == lm.tokenizer(TEXT)["input_ids"]
    pasted = f"{BOS}<|im_start|>user\n{TEXT}"
    assert ids_of(lm, pasted) == lm.tokenizer(pasted, add_special_tokens=False)["input_ids"]
    # A BOS inside a text is the user's.
    assert ids_of(lm, f"{pasted}{BOS}{TEXT}").count(bos) == 2
    assert ids_of(lm, f"{BOS}{BOS}{TEXT}").count(bos) == 2


def test_pasted_text_has_one_prefix_of_several_tokens(lm_of: Callable[..., LM]) -> None:
    lm = lm_of(f"<mask> {BOS}")
    assert ids_of(lm, TEXT) == lm.tokenizer(TEXT)["input_ids"]
    assert ids_of(lm, f"<mask>{BOS}{TEXT}") == ids_of(lm, TEXT)


def test_bos_that_the_tokenizer_does_not_add_is_kept(lm_of: Callable[..., LM]) -> None:
    lm = lm_of()
    assert ids_of(lm, f"{BOS}{TEXT}") == lm.tokenizer(f"{BOS}{TEXT}")["input_ids"]


@pytest.mark.parametrize("before", ["", BOS])
def test_text_is_continued_before_the_end_that_a_tokenizer_adds(
    before: str, lm_of: Callable[..., LM]
) -> None:
    lm = lm_of(before, EOS)
    read = lm.tokenizer(TEXT)["input_ids"]
    assert read[-1] == lm.tokenizer.eos_token_id
    assert ids_of(lm, TEXT) == read[:-1]
    # An end that the text itself has is the user's.
    assert ids_of(lm, TEXT + EOS) == read
    judge = AutoModelForCausalLM.from_pretrained(
        lm.source, dtype=torch.float32, trust_remote_code=False
    )
    ids = torch.tensor([read[:-1]])
    mask = torch.ones_like(ids)
    new = judge.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    expected = lm.tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)
    assert generate(lm, TEXT, max_new_tokens=6) == expected


def test_cut_text_keeps_the_special_tokens_it_has(lm_of: Callable[..., LM]) -> None:
    lm = lm_of(BOS, EOS)
    text = f"{BOS}<|im_start|>user\nThe quick brown fox jumps"
    assert beginning(lm, Prompt("p", "set", text=TEXT), 0.5).text == "The quick "
    cut = beginning(lm, Prompt("p", "set", text=text), 0.8).text
    assert cut is not None
    assert cut.startswith(f"{BOS}<|im_start|>user\nThe quick")
    assert text.startswith(cut)


YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({**YARN, "original_max_position_embeddings": 32}, 128),  # as Qwen3 documents it
        (YARN, 160),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ({**YARN, "factor": 1.0, "original_max_position_embeddings": 32}, 40),
        ({"rope_type": "linear", "factor": 4.0}, 40),
        ({"rope_type": "default"}, 40),
    ],
)
def test_yarn_extends_the_context(scaling: dict[str, Any], expected: int) -> None:
    for name in ("rope_scaling", "rope_parameters"):
        config = Qwen3Config(max_position_embeddings=40, **{name: {"rope_theta": 1e4, **scaling}})
        assert max_length(config) == expected


def test_yarn_beyond_the_positions_of_the_config_is_read_as_transformers_does(
    tmp_path: Path,
) -> None:
    folder = tiny.save_model(tmp_path, max_length=16)
    config = Qwen3Config.from_pretrained(folder, trust_remote_code=False)
    config.rope_parameters = {
        **YARN,
        "rope_theta": 1e4,
        "original_max_position_embeddings": 16,
    }
    config.save_pretrained(folder)
    lm = load_lm(folder)
    assert lm.max_length == 64
    text = "ab cd " * 8
    ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
    judge = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    new = judge.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False
    )
    expected = lm.tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)
    assert ids.shape[1] > 16
    assert generate(lm, text, max_new_tokens=6) == expected
