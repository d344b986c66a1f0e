"""What every way shares: its job from the command line, its clock, its memory, and the JSON line it ends with.

Imported before anything heavy, so that the import of torch counts as loading.
"""

import argparse
import json
import re
import resource
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ids = npt.NDArray[np.integer[Any]]
    Compute = Callable[[list[str]], Ids]

K = 50
_POLL_SECONDS = 0.01
_LINE = re.compile(rb"(VmHWM|RssAnon|RssFile):\s*(\d+) kB")


@dataclass(frozen=True)
class Job:
    """What to compute with: a model folder, an SAE folder and a layer."""

    model: Path
    sae: Path
    layer: int

    @property
    def sae_file(self) -> Path:
        """The layer's file."""
        return self.sae / f"layer{self.layer}.sae.pt"


class Memory:
    """Peaks of this process's memory in bytes, looked at every 10 ms while the block runs."""

    def __init__(self) -> None:
        self.peak: dict[str, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        with Path("/proc/self/status").open("rb", buffering=0) as status:
            while True:
                ended = self._ended.wait(_POLL_SECONDS)
                status.seek(0)
                for name, kilobytes in _LINE.findall(status.read()):
                    self.peak[name.decode()] = max(self.peak.get(name.decode(), 0), 1024 * int(kilobytes))
                if ended:
                    return


def run(load: "Callable[[Job], Compute]") -> None:
    """Load, compute the prompts, save (tokens, 50) feature ids in prompt order, print the figures as one JSON line."""
    parser = argparse.ArgumentParser()
    for name in ("model", "sae", "prompts", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--layer", type=int, required=True)
    args = parser.parse_args()
    texts: list[str] = json.loads(args.prompts.read_text())
    with Memory() as memory:
        start = time.perf_counter()
        compute = load(Job(args.model, args.sae, args.layer))
        loaded = time.perf_counter()
        ids = compute(texts)
        computed = time.perf_counter()
    import numpy as np

    np.save(args.out, ids.astype(np.int32))
    figures = {
        "load_s": loaded - start,
        "compute_s": computed - loaded,
        "tokens": len(ids),
        "peak_rss": memory.peak["VmHWM"],
        "peak_anonymous": memory.peak["RssAnon"],
        "peak_file": memory.peak["RssFile"],
        "ru_maxrss": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    print(json.dumps(figures))
