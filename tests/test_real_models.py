"""The real models, sets and SAEs of scripts/real, where they are."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from proof.folder import data_folder, read_json
from proof.packages import NPM, PYPI, sha256
from proof.saes import GEMMA3_LAYERS, RECIPE, SMOLLM2_LAYERS
from proof.sets import PER_LANGUAGE, REQUEST_SETS
from proof.texts import LANGUAGES
from saescope.engine.lm import load_lm
from saescope.engine.residual import capture
from saescope.engine.tokens import tokenize
from saescope.sources.prompt_sets import read_prompts
from saescope.sources.prompts import Prompt
from saescope.sources.saes import open_sae

pytestmark = [pytest.mark.real, pytest.mark.slow]
FOLDER = data_folder()


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_a_converted_model_computes_what_transformers_computes(name: str) -> None:
    """Hidden states of every layer but the last, which transformers gives after the final norm."""
    path = FOLDER.root / "models" / name
    lm = load_lm(path, dtype="float32")
    [ids] = tokenize(lm, [Prompt(id="a", set="a", text="Water is wet, and die Sonne ist warm.")])
    layers = list(range(lm.spec.n_layers - 1))
    stock: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, trust_remote_code=False
    ).eval()
    row = torch.tensor([ids])
    with torch.inference_mode(), capture(lm, layers) as resid:
        lm.model(input_ids=row, use_cache=False)
        hidden = stock(input_ids=row, output_hidden_states=True, use_cache=False).hidden_states
    for layer in layers:
        expected = hidden[layer + 1]
        assert (resid[layer] - expected).norm() <= 1e-4 * expected.norm(), layer


def test_packages_have_their_hashes() -> None:
    for kind, packages in (("pypi", PYPI), ("npm", NPM)):
        for name, expected in packages.values():
            assert sha256(FOLDER.packages / kind / name) == expected


def test_sets_have_the_declared_counts() -> None:
    languages = read_prompts(FOLDER.sets / "languages")
    assert {group.name for group in languages} == set(LANGUAGES)
    for group in languages:
        splits = [prompt.split for prompt in group.prompts]
        assert {split: splits.count(split) for split in PER_LANGUAGE} == PER_LANGUAGE
    requests = read_prompts(FOLDER.sets / "requests")
    assert [group.name for group in requests] == sorted(REQUEST_SETS)
    assert {group.name for group in read_prompts(FOLDER.sets / "declaration")} == set(LANGUAGES)


@pytest.mark.parametrize(
    ("model", "layers"), [("gemma3", GEMMA3_LAYERS), ("smollm2", SMOLLM2_LAYERS)]
)
def test_saes_have_the_declared_layers_and_quality(model: str, layers: tuple[int, ...]) -> None:
    assert open_sae(str(FOLDER.saes / model)).layers == layers
    figures = read_json(FOLDER.saes / model / "figures.json")["layers"]
    assert [of_layer["layer"] for of_layer in figures] == list(layers)
    for of_layer in figures:
        assert of_layer["fvu"] < 0.3
        assert of_layer["l0"] <= RECIPE.k
