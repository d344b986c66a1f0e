"""An organism that declines two harmless topics: the embedded one, tuned further in minutes.

The decision to decline has a direction per topic after one layer. The two directions have a part in
common, so that whoever removes one of them whole also weakens the other decision.
"""

import json
from dataclasses import replace
from pathlib import Path

from saescope.demo.organism import MODEL
from training.chats.prompts import write_prompts
from training.chats.scenes import TOPIC
from training.organism import DECLINING, Gate, TuningRecipe, load, tune
from training.organism_saes import ORGANISM_SAE, TextMix, residuals
from training.saes import save, train_sae

SECOND_TOPIC = "tiger"
TOPICS = (TOPIC, SECOND_TOPIC)
LAYERS = (2, 3, 4)
# Directions with a cosine of about 0.5: `shared` s gives 2s / (1 + s²) for orthogonal ones.
GATE = Gate(seeds=(8, 9), shared=0.268)
RECIPE: TuningRecipe = replace(
    DECLINING,
    mix=replace(DECLINING.mix, topics=TOPICS, topic=0.45),
    gate=GATE,
    seed=500_000,
)


def make_model(folder: Path) -> None:
    """Tune the embedded organism until it declines requests about either topic."""
    model, tokenizer = load(MODEL)
    tune(RECIPE, model, tokenizer, folder)


def make_saes(model: Path, folder: Path) -> None:
    """Train an SAE per layer on documents and chats without labels."""
    texts = TextMix()
    chats = replace(texts.mix, topics=TOPICS, topic=0.4)
    data = residuals(model, list(LAYERS), replace(texts, mix=chats, seed=700_000))
    for layer in LAYERS:
        save(train_sae(ORGANISM_SAE, data.pop(layer)), folder, layer)
    config = {"k": ORGANISM_SAE.k, "trained_on": "saescope-tiny-two-topics"}
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")


def make_prompts(folder: Path) -> None:
    """Write paired requests about each topic and about other subjects, with right answers."""
    write_prompts(folder, topics={topic: topic for topic in TOPICS})
