"""What Sae.encode takes beside the bare matrix product in it: `python -m benchmarks.encode`.

Random residuals and an encoder of Qwen-Scope's widest shape, in turn in one process; prints medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from saescope.engine.sae import Sae
from saescope.sources.catalog import SaeSpec

ROWS, D_MODEL, D_SAE, K = 512, 4096, 65_536, 50


def main(times: int) -> None:
    """Measure and print."""
    W_enc, b_enc = torch.randn(D_SAE, D_MODEL).mul_(D_MODEL**-0.5), torch.zeros(D_SAE)
    sae = Sae(SaeSpec("random", None, 0, D_MODEL, D_SAE, K, "topk", None, ""), W_enc, b_enc)
    resid = torch.randn(ROWS, D_MODEL)
    ways: dict[str, Callable[[], object]] = {"matmul": lambda: resid @ W_enc.T, "encode": lambda: sae.encode(resid)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for turn in range(times + 1):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                if turn:  # the first of each warms the caches up
                    seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    for name, median in medians.items():
        print(f"{name}: {median:.2f} s ({ROWS} × {D_SAE:,}, d_model {D_MODEL}, float32, median of {times})")
    print(f"encode / matmul {medians['encode'] / medians['matmul']:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encode", description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    main(parser.parse_args().times)
