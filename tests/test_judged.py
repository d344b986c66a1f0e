"""SAEs of other makers: their own code and saescope agree on features and decoding."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saescope.engine.load import load_sae

HERE = Path(__file__).parent
CASES = {
    "saelens": [
        "standard",
        "standard-not-centred",
        "standard-resid-pre",
        "standard-says-no-hook",
        "topk",
        "topk-by-decoder-norm",
        "jumprelu",
        "jumprelu-not-centred",
        "gated",
        "standard-bfloat16",
        "batchtopk",
        "batchtopk-by-decoder-norm",
        "before-6",
    ],
    "gemma-scope-2b-pt-res": ["layer_5/width_16k/average_l0_71", "layer_5/width_65k/average_l0_80"],
    "gemma-scope-2-1b-pt": ["resid_post/layer_9_width_16k_l0_small"],
    "dictionary_learning": [
        f"{kind}/resid_post_layer_6/trainer_0"
        for kind in (
            "AutoEncoderTopK",
            "BatchTopKSAE",
            "MatryoshkaBatchTopKSAE",
            "JumpReluAutoEncoder",
            "GatedAutoEncoder",
            "AutoEncoder",
            "AutoEncoderNew",
        )
    ],
    "sparsify": ["layers.0", "layers.4"],
    "llama_scope": [f"Llama3_1-8B-Base-L{n}R-8x" for n in (3, 4, 5)],
}
NAMES = [f"{maker}/{name}" for maker, names in CASES.items() for name in names]


@pytest.fixture(scope="session")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the makers' files and answers, made by their code in a process of its own."""
    if importlib.util.find_spec("sae_lens") is None:
        pytest.skip("SAELens is not installed: pip install --group judges")
    folder = tmp_path_factory.mktemp("judged")
    made = subprocess.run(
        [sys.executable, HERE / "judges.py", folder],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_maker_and_saescope_agree(name: str, judged: Path) -> None:
    answers = torch.load(judged / "answers.pt")
    if name not in answers and name.startswith("sparsify"):
        pytest.skip("eai-sparsify is not installed: pip install --group judges")
    resid, acts, decoded, layer = answers[name]
    assert set(answers) <= set(NAMES)
    sae = load_sae(judged / name, layer)
    found = sae.encode(resid)
    dense = torch.zeros_like(acts).scatter_add(1, found.ids, found.acts)
    assert torch.equal(dense > 0, acts > 0)
    torch.testing.assert_close(dense, acts, atol=1e-5, rtol=0)
    torch.testing.assert_close(sae.decode(found), decoded, atol=1e-5, rtol=1e-5)
    assert (
        float((acts > 0).sum(1).float().mean()) > 1
    )  # something fires, so there was something to agree on
    alone = load_sae(judged / name, layer, decoder=False)
    assert torch.equal(alone.encode(resid).acts, found.acts)
