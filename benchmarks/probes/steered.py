"""Measure what steering costs in greedy decoding: no edits, then 8 edits under each gate.

Prints tokens/s from the first new token to the last, which leaves out the prompt's forward pass.
"""

import json
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import saescope as ss
from benchmarks.probes.options import ModelOptions, add_model_options, model_options, probe_parser
from benchmarks.words import words
from saescope.engine.generate import generate_batch
from saescope.sources.prompts import Prompt

EDITS, PROMPT = 8, 16


def main(options: ModelOptions, n_tokens: int) -> None:
    """Measure and print."""
    layer, device = options.layer, options.device
    lm = ss.load_lm(options.model, [layer], device=device)
    sae = ss.load_sae(options.sae, layer, device=device)
    features = [n * (sae.spec.d_sae // EDITS) for n in range(EDITS)]
    edits_by_case: dict[str, list[ss.Edit]] = {
        "unsteered": [],
        "relu": [ss.Edit(f"{layer}/{n}", "scale", -1.0, gate="relu") for n in features],
        "topk": [ss.Edit(f"{layer}/{n}", "scale", -1.0, gate="topk") for n in features],
    }
    text = "".join(words(lm.vocab_size)[:PROMPT])
    speeds: dict[str, list[float]] = {name: [] for name in edits_by_case}
    for number in range(1 + options.times):
        for name, edits in edits_by_case.items():
            steering: AbstractContextManager[Any] = nullcontext()
            if edits:
                steering = ss.steered(lm, [sae], edits)
            with steering:
                speed = _tokens_per_s(lm, text, n_tokens)
            if number > 0:  # the first round is a warm-up
                speeds[name].append(speed)
    print(json.dumps({**speeds, "tokens": n_tokens}))


def _tokens_per_s(lm: ss.LM, text: str, n_tokens: int) -> float:
    times: list[float] = []
    generate_batch(
        lm,
        [Prompt("prompt", "prompts", text=text)],
        max_new_tokens=n_tokens,
        on_token=lambda _row, _token: times.append(time.perf_counter()),
    )
    return (len(times) - 1) / (times[-1] - times[0])


if __name__ == "__main__":
    parser = probe_parser("steered", __doc__)
    add_model_options(parser)
    parser.add_argument("--tokens", type=int, default=24)
    args = parser.parse_args()
    main(model_options(args), args.tokens)
