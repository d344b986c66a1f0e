"""Encodes with SAELens and an exported SAE, in a process of its own: it takes seconds to start."""

import sys
import warnings

warnings.simplefilter("ignore")

import torch  # noqa: E402
from sae_lens import SAE  # noqa: E402


def main(*places: str) -> None:
    """For each pair of residuals and folder, save what SAELens encodes and decodes."""
    for resid, folder in zip(places[::2], places[1::2], strict=True):
        sae, h = SAE.load_from_disk(folder), torch.load(resid, weights_only=True)
        with torch.inference_mode():
            acts = sae.encode(h)
            torch.save(
                {"acts": acts, "decoded": sae.decode(acts), "config": sae.cfg.to_dict()},
                f"{folder}.judged",
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
