"""What saescope must equal: one prompt at a time through plain transformers, dense, in float32."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


class Reference(NamedTuple):
    """One prompt's tokens: ids, residual norms, and the top k after ReLU."""

    ids: list[int]
    norms: Tensor
    acts: Tensor
    features: Tensor


def features(model: Path, sae: Path, layer: int, k: int, texts: list[str]) -> list[Reference]:
    """The plain way: whole model, a hook, a dense product, topk."""
    lm = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, trust_remote_code=False
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    weights = torch.load(sae / f"layer{layer}.sae.pt", weights_only=True)
    seen: list[Tensor] = []
    handle = blocks(lm)[layer].register_forward_hook(lambda _m, _i, out: seen.append(tensor(out)))
    results = []
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            lm(input_ids=ids)
            resid = seen.pop()[0]
            top = (resid @ weights["W_enc"].T + weights["b_enc"]).topk(k, dim=-1)
            results.append(
                Reference(ids[0].tolist(), resid.norm(dim=-1), top.values.relu(), top.indices)
            )
    handle.remove()
    return results


def blocks(lm: PreTrainedModel) -> nn.ModuleList:
    """Where transformers' own models keep their blocks."""
    n_layers = lm.config.get_text_config(decoder=True).num_hidden_layers
    lists = [m for m in lm.get_decoder().modules() if isinstance(m, nn.ModuleList)]
    return next(blocks for blocks in lists if len(blocks) == n_layers)


def tensor(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The residual of a block's output."""
    return output[0] if isinstance(output, tuple) else output


def assert_same(acts: Tensor, ids: Tensor, ref_acts: Tensor, ref_ids: Tensor) -> None:
    """Activations agree within 1e-4; ids may swap where values differ by under 1e-5."""
    torch.testing.assert_close(acts, ref_acts, atol=1e-4, rtol=1e-4)
    differ = (ids != ref_ids) & (ref_acts > 0)
    for row, column in differ.nonzero().tolist():
        act = ref_acts[row, column]
        neighbours = [i for i in (column - 1, column + 1) if 0 <= i < ref_acts.shape[1]]
        gaps = [abs(float(act - ref_acts[row, i])) for i in neighbours]
        near_border = column == ref_acts.shape[1] - 1
        assert min(gaps) < 1e-5 or near_border, (
            f"token {row}, rank {column}: {ids[row]} is not {ref_ids[row]}"
        )
