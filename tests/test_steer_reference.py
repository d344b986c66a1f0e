"""Edits in a model, pass by pass, against encode, change, decode plus error in float64."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

import tiny
from saescope.control.edits import Edit, FeatureCondition
from saescope.control.steer import steered
from saescope.engine.generate import generate_batch
from saescope.engine.lm import LM, load_lm
from saescope.engine.load import load_sae
from saescope.engine.sae import Sae
from saescope.errors import EditError
from saescope.sources.catalog import Feature
from saescope.sources.directions import Direction
from saescope.sources.prompts import texts

Steerable = tuple[LM, list[Sae]]
LAYER = 1
V = np.linspace(-1, 1, 32).astype(np.float32)
OPS = {"add": 2.5, "scale": -1.7, "clamp": 3.0, "readout_clamp": 2.0, "project": 0.4}


@pytest.fixture(scope="module")
def steerable(tmp_path_factory: pytest.TempPathFactory) -> Steerable:
    folder = tmp_path_factory.mktemp("reference")
    source = tiny.save_sae(folder / "sae")
    return load_lm(tiny.save_model(folder / "model"), [2]), [
        load_sae(source, layer) for layer in (0, 1, 2)
    ]


def activations(sae: Sae, gate: str, h: Tensor) -> tuple[Tensor, Tensor]:
    z = h.double() @ sae.W_enc.double().T + sae.b_enc.double()
    is_top_k = torch.zeros_like(z).scatter(-1, z.topk(sae.spec.k).indices, 1.0)
    return z, z.relu() * (is_top_k if gate == "topk" else 1.0)


def reference(sae: Sae, edit: Edit, h: Tensor) -> Tensor:
    """One edit of every position: encode, change a feature, decode, add the SAE's error."""
    h = h.double()
    if edit.direction is not None:
        unit = torch.tensor(edit.direction.values).double()
        along = (h @ unit)[..., None] / unit.norm()
        if edit.op == "add":
            return h + edit.amount * unit
        target = edit.amount if edit.op == "readout_clamp" else (1 - edit.amount) * along
        return h + (target - along) * unit / unit.norm()
    z, acts = activations(sae, edit.gate, h)
    D, f, s = sae.W_dec.double(), edit.target_feature.id, edit.amount
    error = h - (acts @ D.T + sae.b_dec.double())
    changed = acts.clone()
    match edit.op:
        case "add":
            changed[..., f] += s
        case "scale":
            changed[..., f] *= 1 + s
        case "clamp":
            changed[..., f] = s
        case "readout_clamp":
            changed[..., f] += (s - z[..., f]) / (sae.W_enc[f].double() @ D[:, f])
        case "project":
            unit = D[:, f] / D[:, f].norm()
            return h - s * (h @ unit)[..., None] * unit
    return changed @ D.T + sae.b_dec.double() + error


def targeted(edit: Edit, mask: Tensor, *, prompt: bool) -> Tensor:
    """Positions of a pass that an edit targets, one by one."""
    result = torch.zeros_like(mask, dtype=torch.bool)
    for row in range(len(mask)):
        real = [at for at in range(mask.shape[1]) if mask[row, at]]
        inner = real[1:] if prompt and edit.skip_sinks else real
        if (edit.scope == "prefill" and not prompt) or (edit.scope == "decode" and prompt):
            inner = []
        if edit.scope == "last":
            inner = [at for at in inner if at == real[-1]]
        result[row, inner] = True
    return result


@contextmanager
def tapped(block: torch.nn.Module) -> Iterator[list[Tensor]]:
    caught: list[Tensor] = []
    handle = block.register_forward_hook(lambda _m, _i, out: caught.append(out.clone()))
    yield caught
    handle.remove()


def passes(lm: LM, mask: Tensor) -> Iterator[tuple[Tensor, bool]]:
    """Run a padded prompt and two more tokens as generation does; yields each pass's mask."""
    torch.manual_seed(3)
    ids, cache = torch.randint(1, 200, mask.shape), DynamicCache()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        for step in range(3):
            pass_mask = mask if step == 0 else mask[:, -1:]
            lm.whole(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache
            )
            yield pass_mask, step == 0
            ids, mask = (
                torch.randint(1, 200, (len(mask), 1)),
                torch.cat([mask, torch.ones_like(mask[:, :1])], 1),
            )
            positions = positions[:, -1:] + 1


MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8, [0, 0, 0, 0, 0, 1, 1, 1]])
TARGETS = [
    *((op, gate) for op in OPS for gate in ("relu", "topk")),
    *((op, None) for op in ("add", "readout_clamp", "project")),
]


def compare(lm: LM, saes: Sequence[Sae], edits: Sequence[Edit], mask: Tensor) -> None:
    sae = saes[LAYER]
    with (
        tapped(lm.blocks[LAYER]) as before,
        steered(lm, saes, edits) as receipt,
        tapped(lm.blocks[LAYER]) as after,
    ):
        n_compared = n_changed = 0
        for n, (pass_mask, prompt) in enumerate(passes(lm, mask)):
            h = before[n]
            expected, everywhere = h.double(), torch.zeros_like(pass_mask, dtype=torch.bool)
            for edit in edits:
                targets = targeted(edit, pass_mask, prompt=prompt)
                expected = expected + torch.where(
                    targets[..., None], reference(sae, edit, h) - h.double(), 0
                )
                everywhere |= targets
            error = (after[n].double() - expected).norm(dim=-1) / expected.norm(dim=-1)
            assert error.max() < 1e-6
            assert torch.equal(after[n][~everywhere], h[~everywhere])
            n_compared += int(everywhere.sum())
            n_changed += int((after[n] != h).any(-1).sum())
    assert (receipt.steps, receipt.positions, receipt.changed) == (3, n_compared, n_changed)


@pytest.mark.parametrize("scope", ["all", "prefill", "decode", "last"])
@pytest.mark.parametrize(("op", "gate"), TARGETS)
def test_every_op_gate_and_scope_follows_its_formula(
    steerable: Steerable, op: Any, gate: Any, scope: Any
) -> None:
    lm, saes = steerable
    changes: dict[str, Any] = (
        {"direction": Direction(LAYER, V)}
        if gate is None
        else {"feature": Feature(LAYER, 9), "gate": gate}
    )
    edit = Edit(op=op, strength=OPS[op], scope=scope, **changes)
    compare(lm, saes, [edit], MASK)
    compare(lm, saes, [edit], MASK.flip(1))  # filled on the right instead


def test_order_of_many_edits_does_not_matter(steerable: Steerable) -> None:
    lm, saes = steerable
    edits = [
        Edit(Feature(LAYER, n), op, s, gate, scope, n % 2 == 0)  # type: ignore[arg-type]
        for n, ((op, s), gate, scope) in enumerate(
            zip(
                OPS.items(),
                ("relu", "topk", "topk", "relu", "relu"),
                ("all", "last", "decode", "prefill", "all"),
                strict=True,
            )
        )
    ] + [Edit(direction=Direction(LAYER, V), op="project")]
    for order in (edits, edits[::-1], edits[3:] + edits[:3]):
        compare(lm, saes, order, MASK)


# --- conditions


@pytest.mark.parametrize("gate", ["relu", "topk"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("above", [0.0, 3.0])
def test_condition_is_checked_at_each_position(
    steerable: Steerable, layer: int, gate: Any, above: float
) -> None:
    lm, saes = steerable
    often = Feature(layer, {0: 185, 1: 166}[layer])  # among the 8 on a third of these positions
    edits = [
        Edit(Feature(LAYER, 9), "add", 2.0, gate, when=FeatureCondition(often, above)),
        Edit(Feature(LAYER, 4), "add", 1.0, gate, scope="decode"),
        Edit(
            Feature(0, 2), "add", 5.0, when="0/7"
        ),  # of the layer that may be read: read before it is changed
    ]
    with (
        tapped(lm.blocks[0]) as first,
        tapped(lm.blocks[1]) as before,
        steered(lm, saes, edits) as receipt,
        tapped(lm.blocks[1]) as after,
    ):
        n_held = n_targeted = 0
        for n, (pass_mask, prompt) in enumerate(passes(lm, MASK)):
            read = first[n] if layer == 0 else before[n]
            targets = targeted(edits[0], pass_mask, prompt=prompt)
            on = targets & (activations(saes[layer], gate, read)[1][..., often.id] > above)
            expected = before[n].double() + torch.where(
                on[..., None], 2.0 * saes[1].W_dec[:, 9].double(), 0
            )
            decode = targeted(edits[1], pass_mask, prompt=prompt)
            expected = expected + torch.where(decode[..., None], saes[1].W_dec[:, 4].double(), 0)
            assert (
                (after[n].double() - expected).norm(dim=-1) / expected.norm(dim=-1)
            ).max() < 1e-6
            assert torch.equal(after[n][~on & ~decode], before[n][~on & ~decode])
            n_held, n_targeted = n_held + int(on.sum()), n_targeted + int(targets.sum())
    assert receipt.condition_held[0] == n_held
    assert 0 < n_held < n_targeted
    assert receipt.to_dict()["edits"][0]["when"] == str(edits[0].condition)


def test_impossible_conditions_are_refused(steerable: Steerable) -> None:
    lm, saes = steerable
    with pytest.raises(EditError, match="got 2/3"):
        Edit("1/3", when="2/3")
    with (
        pytest.raises(EditError, match="no SAE for layer 0 was passed"),
        steered(lm, saes[1:], [Edit("1/3", when="0/3")]),
    ):
        pass
    with (
        pytest.raises(EditError, match="layer 0 has 256 features"),
        steered(lm, saes, [Edit("1/3", when="0/999")]),
    ):
        pass
    for text in ("1", "1/2 >", "1/2 > x", "1/2 < 3", "1/2 > -1", "1/2 > nan", "1/2 > inf", ""):
        with pytest.raises(EditError, match="condition"):
            Edit("1/3", when=text)


# --- receipts


def test_receipt_of_a_batch_is_the_sum_of_its_prompts(steerable: Steerable, tmp_path: Path) -> None:
    """Rows that have ended, and what fills rows up, are not counted."""
    _, saes = steerable
    lm = load_lm(tiny.save_model(tmp_path / "model"), [2])
    lm.whole.generation_config.eos_token_id = list(range(0, 250, 9))
    prompts = texts(["hello", "def add(a, b):", "x y"])[0].prompts
    edits = [Edit(Feature(1, 9), "add", 1.0), Edit(Feature(2, 8), "scale", 2.0)]
    with steered(lm, saes, edits) as together:
        written = generate_batch(lm, prompts, max_new_tokens=12, temperature=1.0, seed=11)
    alone = []
    for prompt in prompts:
        with steered(lm, saes, edits) as receipt:
            generate_batch(lm, [prompt], max_new_tokens=12, temperature=1.0, seed=11)
        alone.append(receipt)
    assert len({len(reply.ids) for reply in written}) > 1
    assert together.positions == sum(receipt.positions for receipt in alone)
    assert together.fired == [
        sum(counts) for counts in zip(*(receipt.fired for receipt in alone), strict=True)
    ]
    ratio = (
        sum(receipt.delta_norm_ratio * receipt.positions for receipt in alone) / together.positions
    )
    assert together.delta_norm_ratio == pytest.approx(ratio, rel=1e-4)
    assert together.largest_ratio == pytest.approx(
        max(receipt.largest_ratio for receipt in alone), rel=1e-4
    )


def test_change_that_rounding_loses_does_not_count(tmp_path: Path) -> None:
    lm = load_lm(tiny.save_model(tmp_path / "model", dtype=torch.bfloat16), [1])
    sae = load_sae(tiny.save_sae(tmp_path / "sae", layers=[1]), 1)
    ids = torch.randint(1, 200, (1, 20))
    for strength, applied in ((1e-9, False), (1.0, True)):
        with (
            torch.inference_mode(),
            steered(lm, [sae], [Edit(Feature(1, 9), "add", strength)]) as receipt,
        ):
            lm.whole(ids)
        assert receipt.positions == 19
        assert receipt.applied == applied


@pytest.mark.slow
def test_long_generations_keep_few_records(steerable: Steerable) -> None:
    lm, saes = steerable
    edit = Edit(Feature(1, 9), "add", 1.0)
    ids = torch.randint(1, 200, (1, 3))
    with torch.inference_mode(), steered(lm, saes, [edit]) as receipt:
        for _ in range(600):
            lm.whole(ids, use_cache=False)
        assert len(receipt._records) < 512
    assert receipt.positions == receipt.changed == 1200
    about = receipt.to_dict()["edits"][0]
    d, w = saes[1].W_dec[:, 9], saes[1].W_enc[9]
    assert about["readout_gain"] == pytest.approx(float(w @ d), rel=1e-5)
    assert about["direction_norm"] == pytest.approx(float(d.norm()), rel=1e-5)
