"""The steps that make the embedded pair; each reads what earlier ones left in training/build."""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from saescope.demo import MODEL, SAE, organism
from training.chats.prompts import write_prompts as write_chat_prompts
from training.judge import judge_model, judge_sae
from training.language_model import LanguageModelRecipe, train_language_model
from training.organism import ANSWERING, DECLINING, LOOKING_UP, load, set_apart, start, tune
from training.organism_judge import judge_organism
from training.organism_saes import ORGANISM_SAE, TextMix, residuals
from training.prompts import write_conlangs, write_prompts
from training.residuals import collect
from training.saes import SaeRecipe, save, train_sae
from training.tokens import train_tokenizer

BUILD = Path(__file__).parent / "build"
ORGANISM = BUILD / "organism"
N_TOKENIZER_DOCUMENTS, VOCAB_SIZE, TOKENIZER_SEED = 30_000, 4096, 100
N_SAE_DOCUMENTS, SAE_SEED = 20_000, 200_000


def make_model() -> None:
    """Tokenizer and language model."""
    folder = _fresh(BUILD / "model")
    tokenizer = train_tokenizer(N_TOKENIZER_DOCUMENTS, VOCAB_SIZE, TOKENIZER_SEED, folder)
    train_language_model(LanguageModelRecipe(), tokenizer, folder)


def make_saes() -> None:
    """An SAE for every layer, a layer on each core."""
    folder = _fresh(BUILD / "sae")
    with ProcessPoolExecutor(
        os.cpu_count(), mp_context=get_context("spawn"), initializer=_one_thread
    ) as workers:
        list(workers.map(partial(make_sae, folder), range(LanguageModelRecipe().layers)))
    config = {"k": SaeRecipe().k, "trained_on": "saescope-tiny"}
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")


def make_sae(folder: Path, layer: int) -> None:
    """The SAE of one layer."""
    save(
        train_sae(SaeRecipe(), collect(BUILD / "model", layer, N_SAE_DOCUMENTS, SAE_SEED)),
        folder,
        layer,
    )
    print(f"layer {layer} done", flush=True)


def _one_thread() -> None:
    torch.set_num_threads(1)


def judge() -> None:
    """Measure the model and its SAEs, and keep the figures beside them."""
    losses = judge_model(BUILD / "model")
    qualities = [
        judge_sae(BUILD / "model", BUILD / "sae", layer)
        for layer in range(LanguageModelRecipe().layers)
    ]
    figures = {"nats_per_token": losses, "saes": [asdict(quality) for quality in qualities]}
    (BUILD / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print(json.dumps(figures, indent=1))


def publish() -> None:
    """Copy model, SAEs and figures into the package."""
    for made, place in ((BUILD / "model", MODEL), (BUILD / "sae", SAE)):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(made, place, copy_function=shutil.copyfile)  # contents, not permissions
    shutil.copy(BUILD / "figures.json", MODEL.parent / "figures.json")


def prompts() -> None:
    """Write the bundled prompt sets into the package; they need no trained model."""
    write_prompts(MODEL.parent / "prompts.jsonl")
    write_conlangs(MODEL.parent / "conlangs.jsonl")


def make_organism() -> None:
    """The organism in stages: answering every request, then declining those about one topic."""
    model, tokenizer = start(MODEL)
    tune(LOOKING_UP, model, tokenizer, _fresh(ORGANISM / "looking_up"))
    set_apart(model, tokenizer)
    tune(ANSWERING, model, tokenizer, _fresh(ORGANISM / "answering"))
    tune(DECLINING, *load(ORGANISM / "answering"), _fresh(ORGANISM / "model"))


def make_organism_saes() -> None:
    """An SAE for every layer of the organism, one after another."""
    folder = _fresh(ORGANISM / "sae")
    layers = list(range(LanguageModelRecipe().layers))
    data = residuals(ORGANISM / "model", layers, TextMix())
    for layer in layers:
        save(train_sae(ORGANISM_SAE, data.pop(layer)), folder, layer)
        print(f"layer {layer} done", flush=True)
    config = {"k": ORGANISM_SAE.k, "trained_on": "saescope-tiny-chat"}
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")


def judge_the_organism() -> None:
    """Find the declining features, suppress them, compare with controls, and keep the figures."""
    model, saes = ORGANISM / "model", ORGANISM / "sae"
    qualities = [
        judge_sae(model, saes, layer, 500) for layer in range(LanguageModelRecipe().layers)
    ]
    figures = judge_organism(model, saes) | {"saes": [asdict(quality) for quality in qualities]}
    (ORGANISM / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print(json.dumps(figures, indent=1))


def publish_organism() -> None:
    """Copy the organism, its SAEs and figures into the package, and write its prompt sets."""
    for made, place in ((ORGANISM / "model", organism.MODEL), (ORGANISM / "sae", organism.SAE)):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(made, place, copy_function=shutil.copyfile)
    shutil.copyfile(ORGANISM / "figures.json", organism.MODEL.parent / "figures.json")
    write_chat_prompts(organism.MODEL.parent)


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


PAIR: dict[str, Callable[[], None]] = {
    "model": make_model,
    "saes": make_saes,
    "judge": judge,
    "publish": publish,
    "prompts": prompts,
}
STEPS: dict[str, Callable[[], None]] = {
    **PAIR,
    "organism": make_organism,
    "organism_saes": make_organism_saes,
    "organism_judge": judge_the_organism,
    "organism_publish": publish_organism,
}
