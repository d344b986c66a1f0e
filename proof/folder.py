"""The folder that holds everything of the proof: packages, models, sets, SAEs and results."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
VARIABLE = "SAESCOPE_REAL"


@dataclass(frozen=True)
class DataFolder:
    """Where the steps find what earlier ones made, and leave what they make."""

    root: Path

    @property
    def packages(self) -> Path:
        """Packages as fetched: wheels, npm tarballs and Debian packages."""
        return self.root / "packages"

    @property
    def texts(self) -> Path:
        """Texts of the packages by kind: `KIND/LANGUAGE.jsonl`, rows of document, key and text."""
        return self.root / "texts"

    @property
    def chats(self) -> Path:
        """Requests from patterns with SmolLM2's replies, which its SAEs are trained on."""
        return self.root / "chats.jsonl"

    @property
    def smollm2(self) -> Path:
        """SmolLM2-135M-Instruct as a transformers folder in bfloat16."""
        return self.root / "models" / "smollm2"

    @property
    def gemma3(self) -> Path:
        """Gemma 3 270M (base) as a transformers folder in bfloat16."""
        return self.root / "models" / "gemma3"

    @property
    def qwen3_tokenizer(self) -> Path:
        """Qwen3's tokenizer alone: tokenizer.json and its config."""
        return self.root / "models" / "qwen3-tokenizer"

    @property
    def sets(self) -> Path:
        """Prompt sets by kind: `languages/`, `declaration/`, `requests/`, `neutral-*/`, ..."""
        return self.root / "sets"

    @property
    def saes(self) -> Path:
        """SAEs by model: `gemma3/layer{n}.sae.pt`, `smollm2/layer{n}.sae.pt`, with figures."""
        return self.root / "saes"

    @property
    def runs(self) -> Path:
        """Scans, edits, baked folders and other files that experiments keep for themselves."""
        return self.root / "runs"

    @property
    def results(self) -> Path:
        """`NAME.json` of each experiment, and its pictures as `NAME-*.svg` or `NAME-*.png`."""
        return self.root / "results"

    @property
    def stamps(self) -> Path:
        """What was finished, and from what."""
        return self.root / "steps"

    @contextmanager
    def publish(self, place: Path) -> Iterator[Path]:
        """Yield an empty folder that replaces `place` when the block ends without an exception."""
        staging = place.with_name(f".{place.name}.partial")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        shutil.rmtree(place, ignore_errors=True)
        staging.rename(place)

    def write_result(self, name: str, values: Mapping[str, Any]) -> None:
        """Write `results/NAME.json`, whole."""
        write_json(self.results / f"{name}.json", values)

    def read_result(self, name: str) -> dict[str, Any]:
        """Read `results/NAME.json`."""
        return read_json(self.results / f"{name}.json")


def data_folder() -> DataFolder:
    """`real/` in the checkout, or the folder that SAESCOPE_REAL names."""
    named = os.environ.get(VARIABLE)
    return DataFolder(Path(named).expanduser().resolve() if named else REPOSITORY / "real")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON so that readers see either all of it or what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.partial")
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
    staging.write_text(text + "\n", encoding="utf-8")
    staging.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values
