"""Fixtures shared by all tests."""

import gc
import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Hashes and measurements of other sessions decide nothing here.
os.environ["SAESCOPE_CACHE"] = tempfile.mkdtemp(prefix="saescope-cache-")
# Nor do the settings of whoever runs the tests.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="saescope-config-")
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: one thread per worker
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

import shape_checks  # noqa: F401  before the package is imported
import tiny
from proof.folder import data_folder
from saescope.engine.lm import LM, load_lm
from saescope.engine.load import load_sae
from saescope.engine.sae import Sae
from saescope.sources.saes import open_sae

# No deadline: how long an example takes depends on the load of the machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


# What takes longest starts first, so that no worker ends long after the others.
_LONGEST_FIRST = (
    "docs/evaluate.md",
    "docs/start.md",
    "docs/bake-and-export.md",
    "docs/article.md",
    "test_bake.py",
    "test_architectures.py",
    "test_docs.py",
    "docs/",
    "test_bake",
    "test_report.py",
    "test_cli_hostile.py",
    "test_evaluate.py",
    "test_export",
    "test_table_of",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests of real models that are not here, then sort for several workers."""
    if not data_folder().gemma3.exists():
        absent = [item for item in items if item.get_closest_marker("real")]
        config.hook.pytest_deselected(items=absent)
        items[:] = [item for item in items if item not in absent]
    _sort_for_workers(config, items)


def _sort_for_workers(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On several workers, keep each file on one, but run each page of the docs by itself."""
    if not getattr(config.option, "loadgroup", False):
        return
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=_place)  # stable: the rest stays in random order


def pytest_collection_finish() -> None:
    """Spare the imported libraries, half a million objects, from every garbage collection."""
    gc.collect()
    gc.freeze()


def _group(item: pytest.Item) -> str:
    """A page that is executed, or else the file of a test."""
    if getattr(item, "originalname", "") == "test_commands_print_what_the_page_shows":
        return item.name.partition("[")[2].removesuffix("]")
    return item.path.name


def _place(item: pytest.Item) -> int:
    group = _group(item)
    places = (n for n, start in enumerate(_LONGEST_FIRST) if group.startswith(start))
    return next(places, len(_LONGEST_FIRST))


@dataclass(frozen=True)
class Pair:
    """A tiny model and SAE on disk."""

    model: Path
    sae: Path

    def load(self, *layers: int) -> tuple[LM, list[Sae]]:
        source = open_sae(str(self.sae))
        return load_lm(self.model, layers), [load_sae(source, layer) for layer in layers]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    return Pair(tiny.save_model(folder / "model"), tiny.save_sae(folder / "sae"))


@pytest.fixture
def sets_folder(tmp_path: Path) -> Path:
    """Three sets of twelve short prompts."""
    folder = tmp_path / "sets"
    folder.mkdir()
    for name, words in {"red": "ab cd", "green": "wx yz", "blue": "12 34"}.items():
        lines = [f"{words} {words[n % 5]}{n} {words}" for n in range(12)]
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder
