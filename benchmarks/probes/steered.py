"""What steering costs while a model writes: greedy decoding without edits, with 8 under each gate, in turn.

Prints tokens/s between the first token and the last, so that reading the prompt is left out.
"""

import argparse
import json
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import saescope as ss
from benchmarks.words import words
from saescope.engine.generate import generate
from saescope.sources.prompts import Prompt

EDITS, PROMPT = 8, 16


def main(model: Path, sae_folder: Path, layer: int, times: int, tokens: int, device: str) -> None:
    """Measure and print."""
    lm = ss.load_lm(model, [layer], device="cuda" if device == "cuda" else "cpu")
    sae = ss.load_sae(sae_folder, layer, device=device)
    ids = [n * (sae.spec.d_sae // EDITS) for n in range(EDITS)]
    relu = [ss.Edit(f"{layer}/{n}", "scale", -1.0, gate="relu") for n in ids]
    topk = [ss.Edit(f"{layer}/{n}", "scale", -1.0, gate="topk") for n in ids]
    text = "".join(words(lm.vocab_size)[:PROMPT])
    rates: dict[str, list[float]] = {"unsteered": [], "relu": [], "topk": []}
    for turn in range(times + 1):
        for name, edits in (("unsteered", []), ("relu", relu), ("topk", topk)):
            within: AbstractContextManager[Any] = (
                ss.steered(lm, [sae], edits) if edits else nullcontext()
            )
            with within:
                rate = _rate(lm, text, tokens)
            if turn:  # the first of each warms the caches up
                rates[name].append(rate)
    print(json.dumps({**rates, "tokens": tokens}))


def _rate(lm: ss.LM, text: str, tokens: int) -> float:
    times: list[float] = []
    generate(
        lm,
        [Prompt("prompt", "prompts", text=text)],
        max_new_tokens=tokens,
        on_token=lambda _row, _token: times.append(time.perf_counter()),
    )
    return (len(times) - 1) / (times[-1] - times[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.probes.steered", description=__doc__
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sae", type=Path, required=True)
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    main(args.model, args.sae, args.layer, args.times, args.tokens, args.device)
