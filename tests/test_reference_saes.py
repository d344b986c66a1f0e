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
        "standard-layer-norm",
        "topk-layer-norm",
        "jumprelu-constant-norm",
        "gated-layer-norm",
        "topk-float16",
        "training-checkpoint",
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
def reference_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the makers' files and answers, made by their code in a process of its own."""
    if importlib.util.find_spec("sae_lens") is None:
        pytest.skip("SAELens is not installed: pip install --group judges")
    folder = tmp_path_factory.mktemp("reference_saes")
    process = subprocess.run(
        [sys.executable, HERE / "reference_saes.py", folder],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_maker_and_saescope_agree(name: str, reference_folder: Path) -> None:
    answers = torch.load(reference_folder / "answers.pt", weights_only=True)
    if name not in answers and name.startswith("sparsify"):
        pytest.skip("eai-sparsify is not installed: pip install --group judges")
    resid, acts, decoded, layer = answers[name]
    assert set(answers) <= set(NAMES)
    sae = load_sae(reference_folder / name, layer)
    sparse = sae.encode(resid)
    dense = torch.zeros_like(acts).scatter_add(1, sparse.ids, sparse.acts)
    assert torch.equal(dense > 0, acts > 0)
    torch.testing.assert_close(dense, acts, atol=1e-5, rtol=0)
    torch.testing.assert_close(sae.decode(sparse, resid), decoded, atol=1e-5, rtol=1e-5)
    mean_l0 = float((acts > 0).sum(1).float().mean())
    assert mean_l0 > 1
    encoder_only = load_sae(reference_folder / name, layer, decoder=False)
    assert torch.equal(encoder_only.encode(resid).acts, sparse.acts)
