"""Time Sae.encode beside its matmul alone, and beside that matmul with torch.topk.

Uses random residuals and an encoder of Qwen-Scope's widest dense shape; prints seconds.
"""

import json

import torch

from benchmarks.memory import Memory
from benchmarks.probes.options import probe_parser
from benchmarks.probes.timing import time_alternating
from saescope.engine.sae import Sae
from saescope.sources.catalog import SaeSpec

ROWS, D_MODEL, D_SAE, K = 512, 4096, 65_536, 50


def main(times: int, device: str) -> None:
    """Measure and print."""
    W_enc = torch.randn(D_SAE, D_MODEL, device=device).mul_(D_MODEL**-0.5)
    b_enc = torch.zeros(D_SAE, device=device)
    sae = Sae(SaeSpec("random", None, 0, D_MODEL, D_SAE, K, "topk", None, ""), W_enc, b_enc)
    resid = torch.randn(ROWS, D_MODEL, device=device)

    # Each function reads one value, to wait for devices that compute asynchronously.
    def matmul() -> None:
        pre_acts = resid @ W_enc.T
        pre_acts[0, 0].item()

    def matmul_and_topk() -> None:
        pre_acts = resid @ W_enc.T
        pre_acts.topk(K, dim=-1).indices[0, 0].item()

    def encode() -> None:
        sae.encode(resid).ids[0, 0].item()

    functions = {"matmul": matmul, "encode": encode, "matmul and topk": matmul_and_topk}
    with torch.inference_mode():
        with Memory() as before:
            pass
        with Memory() as during:
            encode()
        seconds = time_alternating(functions, times)
    grown = during.peak["peak_anonymous"] - before.peak["peak_anonymous"]
    print(json.dumps({**seconds, "grown": grown}))


if __name__ == "__main__":
    args = probe_parser("encode", __doc__).parse_args()
    main(args.times, args.device)
