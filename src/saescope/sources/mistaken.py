"""What a wrong file or folder really is, and what to do with it: one sentence for errors.

Opens nothing but the first bytes of a file.
"""

from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

from saescope.errors import SaescopeError

_POINTER = b"version https://git-lfs.github.com/spec/"
_LARGEST_POINTER = 1024
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_SAE_FILES = (
    "sae_weights.safetensors", "sae.safetensors", "params.npz", "params.safetensors", "ae.pt",
)  # fmt: skip
# Packages that transformers needs for some tokenizers, and the modules they install.
_TOKENIZER_PACKAGES = {
    "sentencepiece": "sentencepiece",
    "tiktoken": "tiktoken",
    "protobuf": "google.protobuf",
}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is what git leaves in place of a large file that it has not fetched."""
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_POINTER:
            return False
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def refuse_lfs_pointer(path: Path, error: type[SaescopeError]) -> None:
    """Raise the error if a file is a git-lfs pointer."""
    if is_lfs_pointer(path):
        raise error(
            f"{path} is a git-lfs pointer, not the file itself: run git lfs pull in its folder, "
            "or download the file"
        )


def refuse_folder(path: Path, error: type[SaescopeError], what: str) -> None:
    """Raise the error if a folder, or a git-lfs pointer, was given where a file is meant."""
    if path.is_dir():
        raise error(f"{path} is a folder: give {what}")
    refuse_lfs_pointer(path, error)


def missing_packages(reason: str) -> str | None:
    """What to install if another library's reason names packages that are not installed."""
    named = [name for name in _TOKENIZER_PACKAGES if name in reason.lower()]
    missing = [name for name in named if not _is_installed(_TOKENIZER_PACKAGES[name])]
    if not missing:
        return None
    return f"reading it needs pip install {' '.join(missing)}"


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def what_file(path: Path) -> str:
    """What a file is that was given for the folder of a model, and what to do."""
    if path.suffix.lower() in _ARCHIVES:
        return "is an archive: unpack it and give the folder"
    return "is a file: give the folder it lies in, or a GGUF file"


def what_sae_file(path: Path) -> str:
    """What a file is that was given for an SAE, and what to do."""
    if path.suffix.lower() in _ARCHIVES:
        return "is an archive: unpack it and give the folder"
    reason = why_no_sae([*(sibling.name for sibling in path.parent.iterdir()), path.name])
    return reason or "is no file of an SAE: give the folder of the SAE"


def why_no_model(names: Collection[str]) -> str | None:
    """Why a folder with these files is no model, and what to do; None if that cannot be told."""
    if "adapter_config.json" in names:
        return (
            "is an adapter, not a whole model: load it with peft on its base model, "
            "merge_and_unload() it, and give the folder that save_pretrained then writes"
        )
    if _holds_saes(names):
        return "holds SAEs, not a model: give it as sae=, and as model= what they were trained on"
    archives = sorted(name for name in names if name.endswith(_ARCHIVES))
    if archives:
        return f"holds the archive {archives[0]}, not a model: unpack it and give the folder"
    return None


def why_not_compared(names: Collection[str]) -> str | None:
    """Why `diff` cannot compare a folder with these files; None if that cannot be told."""
    if _holds_saes(names) and not any(name.startswith("model.safetensors") for name in names):
        return "holds SAEs, not a model: diff compares the weights of two models"
    return None


def _holds_saes(names: Collection[str]) -> bool:
    return any(name.endswith(".sae.pt") or name in _SAE_FILES for name in names)


def why_no_weights(names: Collection[str]) -> str | None:
    """Why a folder with these files has no readable weights; None if that cannot be told."""
    pickles = sorted(name for name in names if name.endswith(_PICKLES))
    if any(name.endswith(".gguf") for name in names):
        return "is a GGUF model, and only safetensors can be compared: give the model it is made of"
    if pickles and "config.json" in names:
        return (
            f"has {pickles[0]}, which is pickled and may run code; only safetensors weights are "
            "read: load it once with transformers where you trust it, and save_pretrained() it"
        )
    return None


def why_no_sae(names: Collection[str]) -> str | None:
    """Why a folder with these files is no SAE, and what to do; None if that cannot be told."""
    if "adapter_config.json" in names:
        return "is an adapter of a model, not an SAE"
    if "config.json" in names and any(name.startswith("model") for name in names):
        return "is a model, not an SAE: give it as model="
    if any(name.endswith(".gguf") for name in names):
        return "is a GGUF model, not an SAE: give it as model="
    return None
