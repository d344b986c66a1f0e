"""What it gains to run a shared prefix once: `python -m benchmarks.shared_prefix FOLDER` (made by make_model).

60 prompts of 10 tokens after a prefix of 200, with the prefix run once and with every prompt, in turn in one process;
prints medians of tokens/s and how far the features agree.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import saescope as ss
from benchmarks.words import words
from saescope.analysis.agreement import agreement

PROMPTS, PREFIX, SUFFIX = 60, 200, 10


def main(folder: Path, layer: int, times: int) -> None:
    """Measure and print."""
    lm = ss.load_lm(folder / "model", [layer])
    sae = ss.load_sae(next(folder.glob("SAE-*")), layer, decoder=False)
    known = words(lm.vocab_size)
    texts = ["".join(known[:PREFIX] + known[PREFIX + SUFFIX * p :][:SUFFIX]) for p in range(PROMPTS)]
    ways = {"once": lm, "with every prompt": replace(lm, shares=False)}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as temporary:
        runs = {}
        for turn in range(times + 1):
            for name, one in ways.items():
                start = time.perf_counter()
                runs[name] = ss.extract(one, [sae], ss.texts(texts), Path(temporary) / f"{name}{turn}")
                if turn:  # the first of each warms the caches up
                    rates[name].append(len(runs[name].token_id) / (time.perf_counter() - start))
        medians = {name: statistics.median(values) for name, values in rates.items()}
        for name, median in medians.items():
            print(f"{name}: {median:.0f} tokens/s (of {len(runs[name].token_id)} tokens, median of {times})")
        found = agreement(runs["with every prompt"], runs["once"]).layers[layer]
        print(f"gain {medians['once'] / medians['with every prompt']:.1f} times; of the k features "
              f"{100 * found.topk_jaccard:.2f} % shared, top 5 the same on {100 * found.top5_equal:.2f} % of tokens, "
              f"residuals {found.resid_rel_diff:.1e} apart")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared_prefix", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layer", type=int, default=13)
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    main(given.folder, given.layer, given.times)
