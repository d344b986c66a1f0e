"""Released pages read back the same; anonymous memory is never released."""

import sys
from pathlib import Path

import pytest
import torch

import tiny
from conftest import Pair
from saescope.engine.lm import load_lm
from saescope.engine.pages import mapped_pages, release_pages
from saescope.engine.scan import scan
from saescope.sources.prompts import texts

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="pages are given back on Linux only"
)


def test_mapped_weights_are_the_same_after_release(tmp_path: Path) -> None:
    lm = load_lm(tiny.save_model(tmp_path / "model", d_model=128, heads=16, kv_heads=8), [1])
    before = [p.clone() for p in lm.blocks.parameters()]
    assert sum(page.length for pages in lm.block_pages for page in pages) > 100_000
    for pages in lm.block_pages:
        release_pages(pages)
    assert all(torch.equal(a, b) for a, b in zip(before, lm.blocks.parameters(), strict=True))


def test_anonymous_memory_is_never_released(tmp_path: Path) -> None:
    assert mapped_pages([torch.ones(1_000_000)]) == []
    converted = load_lm(
        tiny.save_model(tmp_path / "model", d_model=128, heads=16), [1], dtype="bfloat16"
    )
    assert converted.block_pages == ([], [])


def test_second_pass_equals_the_first(pair: Pair) -> None:
    lm, saes = pair.load(1)
    prompts = texts(tiny.TEXTS)[0].prompts
    assert scan(lm, saes, prompts) == scan(lm, saes, prompts)
