"""What Sae.encode takes beside the bare matrix product in it, and beside torch's top k of that product.

Random residuals and an encoder of Qwen-Scope's widest dense shape; prints seconds.
"""

import argparse
import json

import torch

from benchmarks.memory import Memory
from benchmarks.probes.turns import in_turn
from saescope.engine.sae import Sae
from saescope.sources.catalog import SaeSpec

ROWS, D_MODEL, D_SAE, K = 512, 4096, 65_536, 50


def main(times: int, device: str) -> None:
    """Measure and print."""
    W_enc, b_enc = (
        torch.randn(D_SAE, D_MODEL, device=device).mul_(D_MODEL**-0.5),
        torch.zeros(D_SAE, device=device),
    )
    sae = Sae(SaeSpec("random", None, 0, D_MODEL, D_SAE, K, "topk", None, ""), W_enc, b_enc)
    resid = torch.randn(ROWS, D_MODEL, device=device)

    def matmul() -> None:
        (resid @ W_enc.T)[
            0, 0
        ].item()  # reading a value waits for devices that compute on their own

    def dense() -> None:
        (resid @ W_enc.T).topk(K, dim=-1).indices[0, 0].item()

    def encode() -> None:
        sae.encode(resid).ids[0, 0].item()

    with torch.inference_mode():
        with Memory() as before:
            pass
        with Memory() as during:
            encode()
        seconds = in_turn({"matmul": matmul, "encode": encode, "matmul and topk": dense}, times)
    grown = during.peak["peak_anonymous"] - before.peak["peak_anonymous"]
    print(json.dumps({**seconds, "grown": grown}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probes.encode", description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    main(given.times, given.device)
