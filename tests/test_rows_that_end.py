"""Rows whose replies have ended leave the batch; the others go on as if alone."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import kinds
import tiny
from saescope.control.edits import Edit
from saescope.control.steer import steered
from saescope.engine import cache_rows, generate
from saescope.engine.generate import generate_batch
from saescope.engine.lm import load_lm
from saescope.engine.load import load_sae
from saescope.sources.prompts import Prompt
from saescope.sources.saes import open_sae

# Every kind of cache layer: keys and values, a window, linear attention, a state and convolutions.
MODELS = ("Qwen3", "Gemma 3", "Qwen3.5", "Granite 4", "LFM2")
# Of equal length, because recurrent layers would read padding, and then nothing is batched.
TEXTS = ("red car", "old cat", "big dog", "one sun", "my boat", "a tree ")
ENDS = set(range(0, 264, 3))


@pytest.mark.slow
@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_replies_that_go_on_are_those_generated_alone(
    model: str, edited: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    keep_rows = cache_rows.keep_rows

    def counting(cache: Any, rows: Any) -> None:
        kept.append(len(rows))
        keep_rows(cache, rows)

    monkeypatch.setattr(generate, "keep_rows", counting)
    monkeypatch.setattr(generate, "end_tokens", lambda lm: ENDS)
    kinds.save(kinds.KINDS[model], tmp_path / "model")
    sae = tiny.save_sae(tmp_path / "sae", [1], d_model=kinds.D_MODEL, d_sae=64)
    lm, saes = load_lm(str(tmp_path / "model")), [load_sae(open_sae(str(sae)), 1)]
    prompts = [Prompt(str(n), "set", text=text) for n, text in enumerate(TEXTS)]
    edits = [Edit("1/3", "add", 4.0, skip_sinks=True)]
    left = 0
    for temperature in (0.0, 1.0):
        options: Any = {"max_new_tokens": 12, "temperature": temperature}
        with steered(lm, saes, edits) if edited else nullcontext():
            together = generate_batch(lm, prompts, **options)
        left += len(kept)
        kept.clear()
        with steered(lm, saes, edits) if edited else nullcontext():
            alone = [generate_batch(lm, [prompt], **options)[0] for prompt in prompts]
        assert together == alone
        assert not kept
    assert left > 1
