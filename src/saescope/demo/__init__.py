"""The embedded pair: a small model and its SAEs in real formats, made by `training/`."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
SAE = Path(__file__).parent / "sae"
ORGANISM = Path(__file__).parent / "organism"
# What comes with saescope can be named wherever a folder or hub id can.
EMBEDDED = {
    "saescope-tiny": MODEL,
    "saescope-tiny-sae": SAE,
    "saescope-tiny-chat": ORGANISM / "model",
    "saescope-tiny-chat-sae": ORGANISM / "sae",
}
