"""Time a shared prefix run once, beside running it with every prompt.

Uses 60 prompts of 10 tokens after a prefix of 200; prints tokens/s and how well the features agree.
"""

import json
import tempfile
from dataclasses import replace
from itertools import count
from pathlib import Path

import saescope as ss
from benchmarks.probes.options import ModelOptions, add_model_options, model_options, probe_parser
from benchmarks.probes.timing import time_alternating
from benchmarks.words import words
from saescope.analysis.agreement import agreement
from saescope.store.runs import Run

PROMPTS, PREFIX, SUFFIX = 60, 200, 10


def main(options: ModelOptions) -> None:
    """Measure and print."""
    layer, device = options.layer, options.device
    lm = ss.load_lm(options.model, [layer], device=device)
    lm_without_sharing = replace(lm, shares_prefixes=False)
    sae = ss.load_sae(options.sae, layer, decoder=False, device=device)
    prompts = _prompts(lm.vocab_size)
    texts = ss.texts(prompts)

    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folders = (Path(temporary) / str(number) for number in count())

        def once() -> None:
            runs["once"] = ss.extract(lm, [sae], texts, next(folders))

        def every() -> None:
            runs["every"] = ss.extract(lm_without_sharing, [sae], texts, next(folders))

        ss.extract(lm, [sae], ss.texts(prompts[:2]), next(folders))  # warm-up
        seconds = time_alternating({"once": once, "every": every}, options.times, warm=True)
        compared = agreement(runs["every"], runs["once"]).layers[layer]
        n_tokens = len(runs["every"].token_id)

    speeds = {
        name: [n_tokens / elapsed for elapsed in measured] for name, measured in seconds.items()
    }
    figures = {
        **speeds,
        "tokens": n_tokens,
        "shared": compared.topk_jaccard,
        "resid_diff": compared.resid_rel_diff,
    }
    print(json.dumps(figures))


def _prompts(vocab: int) -> list[str]:
    vocabulary = words(vocab)
    prefix = vocabulary[:PREFIX]
    prompts = []
    for number in range(PROMPTS):
        start = PREFIX + SUFFIX * number
        prompts.append("".join(prefix + vocabulary[start : start + SUFFIX]))
    return prompts


if __name__ == "__main__":
    parser = probe_parser("prefix", __doc__)
    add_model_options(parser)
    main(model_options(parser.parse_args()))
