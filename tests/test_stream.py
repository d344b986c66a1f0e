"""One block at a time equals the whole model bit for bit, in every architecture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from conftest import Pair
from saescope.engine.batches import lay_out, plan_batches
from saescope.engine.extract import extract
from saescope.engine.forward import compute_residuals
from saescope.engine.lm import LM, load_lm
from saescope.engine.stream import stream_blocks
from saescope.errors import SourceError
from saescope.sources.prompts import texts


def all_residuals(
    lm: LM, layers: list[int], budget: int, spill: Path | None = None
) -> dict[tuple[int, int], Tensor]:
    plan = plan_batches(lm, texts(tiny.TEXTS)[0].prompts, budget)
    return {
        (unit.batch, unit.layer): unit.resid.clone()
        for unit in compute_residuals(lm, layers, plan, spill=spill)
    }


@pytest.mark.parametrize("budget", [1, 60, 10_000])
@pytest.mark.parametrize("on_disk", [False, True])
def test_streamed_equals_cut_bit_for_bit(
    pair: Pair, budget: int, on_disk: bool, tmp_path: Path
) -> None:
    lm = load_lm(pair.model, [2])
    cut = all_residuals(lm, [0, 2], budget)
    stream = all_residuals(
        load_lm(pair.model, [2], streamed=True), [0, 2], budget, tmp_path if on_disk else None
    )
    assert cut.keys() == stream.keys()
    for unit, resid in cut.items():
        assert torch.equal(resid, stream[unit])
    assert bool(list(tmp_path.iterdir())) == on_disk


def test_streamed_run_has_the_same_bytes(pair: Pair, tmp_path: Path) -> None:
    lm, saes = pair.load(0, 2)
    runs = [
        extract(model, saes, texts(tiny.TEXTS), tmp_path / str(n), batch_tokens=60)
        for n, model in enumerate((lm, load_lm(pair.model, [2], streamed=True)))
    ]
    assert runs[0].manifest["tables"] == runs[1].manifest["tables"]


def test_interrupted_stream_goes_on(pair: Pair, tmp_path: Path) -> None:
    lm, saes = pair.load(0, 1, 2)
    lm = load_lm(pair.model, [2], streamed=True)
    whole = extract(lm, saes, texts(tiny.TEXTS), tmp_path / "whole", batch_tokens=60)
    encoded: list[int] = []

    def stop(done: int, total: int) -> None:
        encoded.append(done)
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(lm, saes, texts(tiny.TEXTS), tmp_path / "run", batch_tokens=60, progress=stop)
    n_batches = len(list((tmp_path / ".run.partial").glob("layer*-batch*.npz")))
    assert n_batches == len(encoded)
    resumed = extract(lm, saes, texts(tiny.TEXTS), tmp_path / "run", batch_tokens=60)
    assert resumed.manifest["tables"] == whole.manifest["tables"]


def test_blocks_are_back_in_place(pair: Pair) -> None:
    lm = load_lm(pair.model, [2])
    before = list(lm.blocks)
    plan = plan_batches(lm, texts(tiny.TEXTS)[0].prompts, 60)
    batches = [lay_out(batch.rows, plan.token_ids, lm.device) for batch in plan.batches]
    stream = stream_blocks(lm, [2], batches)
    next(stream)
    stream.close()
    assert all(a is b for a, b in zip(before, lm.blocks, strict=True))


def test_model_that_changes_the_residual_between_blocks_is_refused(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = load_lm(pair.model, [2], streamed=True)

    def forward(input_ids: Tensor, **_others: object) -> None:
        resid = lm.model.get_input_embeddings()(input_ids)
        for block in lm.blocks:
            resid = block(resid) * 2

    monkeypatch.setattr(lm.model, "forward", forward)
    with pytest.raises(SourceError, match="changes the residual between its blocks"):
        all_residuals(lm, [2], 60)


def test_residuals_kept_on_disk_are_those_in_memory(pair: Pair, tmp_path: Path) -> None:
    _, saes = pair.load(2)
    run = extract(
        load_lm(pair.model, [2], streamed=True),
        saes,
        texts(tiny.TEXTS),
        tmp_path / "run",
        batch_tokens=60,
    )
    assert not (tmp_path / ".run.partial").exists()
    assert np.isfinite(run.features(2).norms).all()
