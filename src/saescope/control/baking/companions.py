"""Files that come along with a baked checkpoint: all of the model's files except weights.

Weights beside the safetensors that were baked hold the model without the edits, so they stay.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from saescope.control.baking.bake_result import MANIFEST
from saescope.sources.checkpoint import CONFIG
from saescope.sources.files import Files, LocalFiles

CARD = "README.md"
BASE_CARD = "README.base.md"
"The model's own card: the baked checkpoint has one of its own under the usual name."

_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".onnx", ".onnx_data",
    ".h5", ".msgpack", ".tflite", ".npz", ".npy", ".ot", ".pkl", ".pickle", ".joblib", ".engine",
    ".pdparams", ".mlmodel", ".pte", ".xml", ".index.json", ".safetensors.json", ".imatrix",
)  # fmt: skip
# What belongs to other weights, or was written by a training run or by an earlier bake.
_LEFT_BEHIND = {
    CONFIG, MANIFEST, "adapter_config.json", "trainer_state.json", "quantize_config.json",
    "quant_strategy.json",
}  # fmt: skip
_LEFT_FOLDERS = ("checkpoint-", "global_step")
# Larger files of an unknown kind are weights in a format that is not listed above.
_LARGEST = 512 * 2**20


def copy_companions(files: Files, out: Path) -> None:
    """Copy the model's files that are not weights into `out`, sub-folders included."""
    for name in companion_names(files):
        target = out / (BASE_CARD if name == CARD else name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files.path(name), target)


def companion_names(files: Files) -> list[str]:
    """Return the names of the files that are not weights, with `/` between folders."""
    return sorted(name for name in _all_names(files) if _comes_along(files, name))


def _comes_along(files: Files, name: str) -> bool:
    path = PurePosixPath(name)
    if path.is_absolute() or any(part.startswith(".") or "\\" in part for part in path.parts):
        return False
    if any(part.startswith(_LEFT_FOLDERS) for part in path.parts[:-1]):
        return False
    lower = name.lower()
    if name in _LEFT_BEHIND or lower.endswith(_WEIGHTS) or "tfevents" in lower:
        return False
    return (files.entry(name).bytes or 0) <= _LARGEST


def _all_names(files: Files) -> Iterator[str]:
    """Yield all names of a checkpoint's files; a local folder lists its sub-folders too."""
    if not isinstance(files, LocalFiles):
        yield from files.names()
        return
    for path in files.folder.rglob("*"):
        if path.is_file():
            yield path.relative_to(files.folder).as_posix()
