"""TopK SAEs of the real models, trained in minutes by the workshop of `training/`.

The figures beside them are measured on passages of held-out documents: unexplained variance (FVU),
firing features per position (L0), and the share of features that fire nowhere there (dead).
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from proof.folder import DataFolder, write_json
from proof.passages import gemma3_rows, smollm2_rows
from proof.residuals import collect, join, save
from saescope.engine.load import load_sae
from saescope.sources.prompts import Prompt, Split
from training.saes import Residuals, SaeRecipe, train_sae
from training.saes import save as save_sae

GEMMA3_LAYERS = (2, 5, 9, 12, 15, 17)
SMOLLM2_LAYERS = (9, 14, 19, 24)
RECIPE = SaeRecipe(
    d_sae=4096,
    k=40,
    general=0,
    documents=32,
    steps=600,
    peak_lr=3e-3,
    dead_after=100,
    centred=True,
    sparse=True,
    bfloat16=True,
)
_SHARDS = 4  # fixed, so that the number of cores changes no bit
_JUDGE = "judge"


@dataclass(frozen=True)
class Task:
    """One model's SAEs: where, at which layers, on which rows."""

    model: Path
    place: Path  # of the SAEs
    layers: tuple[int, ...]
    rows: Callable[[Split], list[Prompt]]
    trained_on: str

    @property
    def residuals(self) -> Path:
        """Residuals, kept until all SAEs are trained."""
        return self.place.with_name(f".{self.place.name}.residuals")


def gemma3_task(folder: DataFolder) -> Task:
    """Gemma 3 on text in eight languages."""
    rows = partial(gemma3_rows, folder)
    return Task(folder.gemma3, folder.saes / "gemma3", GEMMA3_LAYERS, rows, "gemma-3-270m")


def smollm2_task(folder: DataFolder) -> Task:
    """SmolLM2 on English text and chats."""
    rows = partial(smollm2_rows, folder)
    return Task(
        folder.smollm2, folder.saes / "smollm2", SMOLLM2_LAYERS, rows, "SmolLM2-135M-Instruct"
    )


def train_gemma3(folder: DataFolder) -> None:
    """SAEs of Gemma 3."""
    train(gemma3_task(folder))


def train_smollm2(folder: DataFolder) -> None:
    """SAEs of SmolLM2."""
    train(smollm2_task(folder))


def train(task: Task) -> None:
    """Collect residuals in shards, then train layer by layer, each on one thread of one core.

    Shards and layers that are finished are kept, so an interrupted run continues with the next.
    """
    task.residuals.mkdir(parents=True, exist_ok=True)
    staging = task.residuals / "saes"
    staging.mkdir(exist_ok=True)
    with _workers() as workers:
        shards = [_JUDGE, *map(str, range(_SHARDS))]
        list(workers.map(partial(collect_shard, task), shards))
        figures = list(workers.map(partial(train_layer, task, staging), task.layers))
    config = {"k": RECIPE.k, "trained_on": task.trained_on}
    (staging / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    write_json(staging / "figures.json", {"recipe": asdict(RECIPE), "layers": figures})
    shutil.rmtree(task.place, ignore_errors=True)
    staging.rename(task.place)
    shutil.rmtree(task.residuals)


@contextmanager
def _workers() -> Iterator[ProcessPoolExecutor]:
    cores = len(os.sched_getaffinity(0))
    # The largest layer's residuals take 1.3 GB as they are trained on.
    with ProcessPoolExecutor(
        min(cores, 4), mp_context=get_context("spawn"), initializer=_one_thread
    ) as pool:
        yield pool


def _one_thread() -> None:
    torch.set_num_threads(1)


def collect_shard(task: Task, shard: str) -> None:
    """Write the residuals of one shard of the rows, or of the held-out rows."""
    place = task.residuals / shard
    if place.exists():
        return
    rows = (
        task.rows("holdout") if shard == _JUDGE else task.rows("discovery")[int(shard) :: _SHARDS]
    )
    collected = collect(task.model, task.layers, rows)
    with DataFolder(task.residuals).publish(place) as out:
        save(collected, out)
        write_json(out / "sinks.json", {"share": collected.sink_share})
    print(f"residuals {shard}: {len(rows)} passages", flush=True)


def train_layer(task: Task, staging: Path, layer: int) -> dict[str, Any]:
    """Train and judge the SAE of a layer; returns its figures."""
    figures = staging / f"layer{layer}.json"
    if not figures.exists():
        data = join([task.residuals / str(shard) for shard in range(_SHARDS)], layer)
        sae = train_sae(RECIPE, data)
        save_sae(sae, staging, layer)
        judged = join([task.residuals / _JUDGE], layer)
        write_json(
            figures,
            {"layer": layer, "positions": len(data.resid)} | quality(staging, layer, judged),
        )
        print(f"layer {layer}: {figures.read_text(encoding='utf-8')}", flush=True)
    values: dict[str, Any] = json.loads(figures.read_text(encoding="utf-8"))
    return values


@torch.inference_mode()
def quality(saes: Path, layer: int, data: Residuals) -> dict[str, float]:
    """FVU, L0 and dead share of an SAE on residuals."""
    sae = load_sae(saes, layer, k=RECIPE.k)
    resid = data.resid.float()
    sparse = sae.encode(resid)
    fires = sparse.acts > 0
    alive = torch.bincount(sparse.ids[fires], minlength=sae.spec.d_sae) > 0
    error = (resid - sae.decode(sparse)).pow(2).sum()
    return {
        "fvu": float(error / (resid - resid.mean(0)).pow(2).sum()),
        "l0": float(fires.sum(1).float().mean()),
        "dead": float(1 - alive.float().mean()),
        "judged_positions": len(resid),
    }
