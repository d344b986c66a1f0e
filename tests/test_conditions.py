"""Conditions in rows of one batch write what each writes alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kinds
import tiny
from saescope.control.conditions import Condition, steered_rows
from saescope.control.edits import Edit
from saescope.control.evaluation import reply_batches
from saescope.control.evaluation.arms import Arm
from saescope.control.evaluation.reply_batches import ReplyBatches, ReplyOptions
from saescope.control.steer import _HOOKS, steered
from saescope.engine import generate, split_pass
from saescope.engine.generate import generate_batch
from saescope.engine.lm import LM, load_lm
from saescope.engine.load import load_sae
from saescope.engine.sae import Sae
from saescope.errors import EditError
from saescope.sources.directions import Direction
from saescope.sources.prompts import Prompt
from saescope.sources.saes import open_sae

# Full and sliding attention, linear attention, states, experts, keys and values shared by layers.
MODELS = ("Gemma 3", "Qwen3.5", "Granite 4", "LFM2", "Mixtral", "DeepSeek-V3", "Gemma 4", "gpt-oss")
TEXTS = ("The red car drives", "old", "a big dog", "one sun and a moon", "my boat is")
DIRECTION = Direction(2, np.linspace(-1, 1, kinds.D_MODEL).astype(np.float32))
ARMS = (
    Arm("none"),
    Arm("edits", edits=(Edit("1/3", "add", 6.0), Edit("2/5", "scale", -2.0))),
    Arm("zero", edits=(Edit("1/3", "add", 0.0),)),
    Arm("gated", edits=(Edit("2/7", "add", 5.0, scope="decode", when="1/9 > 0.1"),)),
    Arm("random", edits=(Edit("1/3", "add", 6.0, skip_sinks=False),), direction_seed=3),
    Arm("direction", edits=(Edit(op="project", direction=DIRECTION),)),
    Arm("asked", instruction="Say"),
)


def load_pair(model: str, folder: Path) -> tuple[LM, list[Sae]]:
    kinds.save(kinds.KINDS[model], folder / "model")
    sae = open_sae(str(tiny.save_sae(folder / "sae", [1, 2], d_model=kinds.D_MODEL, d_sae=64)))
    return load_lm(str(folder / "model")), [load_sae(sae, n, decoder=True) for n in (1, 2)]


def prompts(texts: Sequence[str] = TEXTS) -> list[Prompt]:
    return [Prompt(str(n), "set", text=text) for n, text in enumerate(texts)]


@pytest.mark.parametrize(
    "model", [MODELS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS[1:])]
)
def test_arms_in_one_batch_reply_as_each_alone(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, saes = load_pair(model, tmp_path)
    ends = set(range(0, 264, 7))
    monkeypatch.setattr(generate, "end_tokens", lambda _: ends)
    advanced: list[int] = []
    batches = ReplyBatches(lm, saes, prompts(), ReplyOptions(10, None), advanced.append)
    together = {arm.name: replies for arm, replies in batches.under(ARMS)}
    assert sum(advanced) == len(ARMS) * len(TEXTS)
    assert not _HOOKS
    texts = set()
    for arm in ARMS:
        with arm.steered(lm, saes) as receipt:
            alone = [
                generate_batch(lm, [prompt], max_new_tokens=10)[0]
                for prompt in arm.prompts(lm, prompts())
            ]
        replies = together[arm.name]
        assert replies.generations == alone
        assert replies.applied == (receipt is not None and receipt.applied)
        if receipt is not None:
            assert replies.delta_norm_ratio == pytest.approx(receipt.delta_norm_ratio, rel=1e-3)
        texts.add(tuple(reply.text for reply in alone))
    assert len(texts) >= len(ARMS) - 2  # most arms change something
    assert together["zero"].generations == together["none"].generations


def test_prompts_are_prefilled_once_below_the_edits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, saes = load_pair("Qwen3", tmp_path)
    conditions = [Condition(), Condition((Edit("1/3", "add", 6.0),)), Condition((Edit("2/4"),))]
    rows = prompts() * 3
    with steered_rows(lm, saes, conditions, len(TEXTS)):
        expected = generate_batch(lm, rows, max_new_tokens=6)  # tries once whether it can be split
    widths: dict[int, list[int]] = {}

    def see(_module: Any, inputs: Any, _output: Any) -> None:
        widths.setdefault(id(_module), []).append(len(inputs[0]))

    hooks = [block.mlp.register_forward_hook(see) for block in lm.whole.model.layers]
    with steered_rows(lm, saes, conditions, len(TEXTS)):
        assert generate_batch(lm, rows, max_new_tokens=6) == expected
    for hook in hooks:
        hook.remove()
    first = [widths[id(block.mlp)][0] for block in lm.whole.model.layers]
    assert first == [len(TEXTS), len(TEXTS), len(rows), len(rows)]
    # Where an architecture cannot be split, the replies are the same.
    monkeypatch.setattr(generate, "can_split", lambda *_: False)
    with steered_rows(lm, saes, conditions, len(TEXTS)):
        assert generate_batch(lm, rows, max_new_tokens=6) == expected


def test_few_rows_at_once_give_the_same_and_arms_come_as_they_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, saes = load_pair("Qwen3", tmp_path)
    batches = ReplyBatches(lm, saes, prompts(), ReplyOptions(6, None), lambda _: None)
    expected = {arm.name: replies.generations for arm, replies in batches.under(ARMS)}
    sizes: list[int] = []

    def generating(lm: LM, rows: Sequence[Prompt], **options: Any) -> Any:
        sizes.append(len(rows))
        return generate_batch(lm, rows, **options)

    monkeypatch.setattr(reply_batches, "generate_batch", generating)
    for limit in (10, 3):
        monkeypatch.setattr(reply_batches, "rows_at_once", lambda *_, n=limit: n)
        seen = {}
        for n_arms, (arm, replies) in enumerate(batches.under(ARMS), 1):
            seen[arm.name] = replies.generations
            assert sum(sizes) <= (n_arms + 1) * len(TEXTS)
        assert seen == expected
        assert max(sizes) <= limit
        sizes.clear()


def test_strength_0_changes_no_bit_beside_other_rows(tmp_path: Path) -> None:
    lm, saes = load_pair("Qwen3", tmp_path)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with torch.inference_mode():
        expected = lm.whole(torch.cat([ids, ids])).logits
        edits = (Edit("1/3", "add", 6.0),)
        with steered_rows(lm, saes, [Condition((Edit("1/3", strength=0.0),)), Condition(edits)], 2):
            logits = lm.whole(torch.cat([ids, ids])).logits
        with steered(lm, saes, edits):
            edited = lm.whole(torch.cat([ids, ids])).logits
    assert torch.equal(logits[:2], expected[:2])
    assert torch.equal(logits[2:], edited[2:])
    assert not torch.equal(logits[2:], expected[2:])


def test_contexts_around_rows_edit_all_of_them(tmp_path: Path) -> None:
    lm, saes = load_pair("Qwen3", tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    around, inner = (Edit("1/3", "add", 6.0),), (Edit("1/9", "add", 4.0),)
    with torch.inference_mode():
        with steered(lm, saes, around), steered_rows(lm, saes, [Condition(), Condition(inner)], 1):
            logits = lm.whole(ids.expand(2, -1)).logits
        with steered(lm, saes, around):
            first = lm.whole(ids.expand(2, -1)).logits
        with steered(lm, saes, [*around, *inner]):
            second = lm.whole(ids.expand(2, -1)).logits
    assert torch.equal(logits[0], first[0])
    assert torch.allclose(logits[1], second[1], atol=1e-5)


def test_a_batch_with_fewer_rows_is_refused(tmp_path: Path) -> None:
    lm, saes = load_pair("Qwen3", tmp_path)
    rows = steered_rows(lm, saes, [Condition(), Condition((Edit("1/3"),))], 2)
    with rows, pytest.raises(EditError, match="rows"):
        generate_batch(lm, prompts()[:2], max_new_tokens=2)
    assert not split_pass._blocks(lm)[0].__dict__.get("forward")
