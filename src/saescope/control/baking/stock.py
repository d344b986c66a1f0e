"""Judge a baked folder by transformers' own `from_pretrained`, as its users load it.

The model and the baked folder are loaded one after the other on the CPU in float32, and read some
of the neutral text. What they give is compared with saescope's own reading of the same folders.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.control.baking.distance import RecordedOutputs
from saescope.control.divergence import kl_divergence
from saescope.engine.config import read_config
from saescope.engine.shards import WIDTHS, Shards
from saescope.errors import SourceError, first_line
from saescope.sources.checkpoint import CONFIG
from saescope.sources.files import Files
from saescope.sources.machine import free_memory, show_bytes

_MAX_TOKENS = 64
_SHARE_OF_MEMORY = 0.7
_FLOAT32_BYTES = 4
# Mean KL in nats up to which two float32 readings of the same weights count as the same.
_SAME = 1e-4


@dataclass(frozen=True)
class StockReading:
    """What transformers' own model says of the bake, in nats per token, on some of the text."""

    model_class: str
    tokens: int

    kl_base_baked: float
    "KL from the model to the baked folder, both read by transformers."

    own_kl_base_baked: float
    "The same as saescope reads them."

    kl_own: float
    "Mean KL from transformers' reading to saescope's, of the folder where it is larger."

    largest_difference: float
    "Largest difference of a log probability between the two readings, over both folders."

    @property
    def agrees(self) -> bool:
        """Whether saescope reads both folders as transformers does."""
        return self.kl_own <= _SAME

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        return {**asdict(self), "agrees": self.agrees}


def judge(
    folders: tuple[Files, Files],
    token_ids: Sequence[Sequence[int]],
    own: tuple[RecordedOutputs, RecordedOutputs],
) -> StockReading | str:
    """Return what transformers says of the model and the baked folder, or why it was not asked.

    `own` holds saescope's reading of both, in the order of `token_ids`. Raises SourceError if
    transformers loads the model but not the baked folder.
    """
    reason = _too_large(folders[1])
    if reason is not None:
        return reason
    rows = _first_rows(token_ids)
    try:
        name, before = _read(folders[0], rows)
    except Exception as error:  # models raise their own exception types
        return f"transformers does not load {folders[0].name}: {first_line(error)}"
    try:
        _, after = _read(folders[1], rows)
    except Exception as error:
        raise SourceError(
            f"transformers loads {folders[0].name}, but not what was baked: {first_line(error)}"
        ) from error
    tokens = slice(0, len(before))
    own_before, own_after = (outputs.log_probs(tokens) for outputs in own)
    return StockReading(
        model_class=name,
        tokens=len(before),
        kl_base_baked=_mean_kl(before, after),
        own_kl_base_baked=_mean_kl(own_before, own_after),
        kl_own=max(_mean_kl(before, own_before), _mean_kl(after, own_after)),
        largest_difference=max(_largest(before, own_before), _largest(after, own_after)),
    )


def _too_large(files: Files) -> str | None:
    values = 0
    for place in Shards.open(files).places.values():
        values += place.n_bytes // WIDTHS.get(place.dtype, 1)
    needed, free = values * _FLOAT32_BYTES, free_memory()
    if free is not None and needed > _SHARE_OF_MEMORY * free:
        return (
            f"transformers needs {show_bytes(needed)} of memory to load the model, "
            f"{show_bytes(free)} are free"
        )
    return None


def _first_rows(token_ids: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Return the first rows, the last one shortened, that have at most `_MAX_TOKENS` together."""
    rows: list[Sequence[int]] = []
    left = _MAX_TOKENS
    for row in token_ids:
        if left:
            rows.append(row[:left])
            left -= len(rows[-1])
    return rows


def _read(files: Files, rows: Sequence[Sequence[int]]) -> tuple[str, Float[Tensor, "tokens vocab"]]:
    """Return the class that transformers opens a folder with, and its log probabilities."""
    with _silent():
        model = _load(files)
        log_probs = []
        with torch.inference_mode():
            for row in rows:
                logits = model(input_ids=torch.tensor([list(row)]), use_cache=False).logits[0]
                log_probs.append(logits.double().log_softmax(-1))
    return type(model).__name__, torch.cat(log_probs)


def _load(files: Files) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    folder: Path = files.path(CONFIG).parent
    read_config(files)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False
        )
    except ValueError:  # a multimodal class without a causal one
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False
        )
    return model.eval()


@contextmanager
def _silent() -> Iterator[None]:
    """Within the context, transformers writes neither warnings nor progress bars."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _mean_kl(p: Tensor, q: Tensor) -> float:
    return float(kl_divergence(p, q).mean())


def _largest(p: Tensor, q: Tensor) -> float:
    return float((p - q).abs().max())
