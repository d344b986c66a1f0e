"""What it gains to run a shared prefix once: 60 prompts of 10 tokens after a prefix of 200.

With the prefix run once and with every prompt, in turn; prints tokens/s and how far the features agree.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from itertools import count
from pathlib import Path

import saescope as ss
from benchmarks.probes.turns import in_turn
from benchmarks.words import words
from saescope.analysis.agreement import agreement
from saescope.store.runs import Run

PROMPTS, PREFIX, SUFFIX = 60, 200, 10


def main(model: Path, sae_folder: Path, layer: int, times: int, device: str) -> None:
    """Measure and print."""
    lm = ss.load_lm(model, [layer], device="cuda" if device == "cuda" else "cpu")
    sae = ss.load_sae(sae_folder, layer, decoder=False, device=device)
    known = words(lm.vocab_size)
    prompts = [
        "".join(known[:PREFIX] + known[PREFIX + SUFFIX * p :][:SUFFIX]) for p in range(PROMPTS)
    ]
    texts, few = ss.texts(prompts), ss.texts(prompts[:2])
    apart = replace(lm, shares=False)
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory() as temporary:
        names = (Path(temporary) / str(n) for n in count())

        def once() -> None:
            runs["once"] = ss.extract(lm, [sae], texts, next(names))

        def every() -> None:
            runs["every"] = ss.extract(apart, [sae], texts, next(names))

        ss.extract(lm, [sae], few, next(names))  # warms the caches up
        seconds = in_turn({"once": once, "every": every}, times, warm=True)
        found = agreement(runs["every"], runs["once"]).layers[layer]
        tokens = len(runs["every"].token_id)
    figures = {name: [tokens / taken for taken in of_way] for name, of_way in seconds.items()}
    print(
        json.dumps(
            {
                **figures,
                "tokens": tokens,
                "shared": found.topk_jaccard,
                "resid_diff": found.resid_rel_diff,
            }
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probes.prefix", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sae", type=Path, required=True)
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    main(args.model, args.sae, args.layer, args.times, args.device)
