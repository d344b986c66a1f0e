"""Several sets of edits in one batch: each condition edits its own rows."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import final

from saescope.control.edits import Edit
from saescope.control.receipts import Receipt
from saescope.control.steer import SteeredBlock
from saescope.engine.lm import LM
from saescope.engine.sae import Sae


@dataclass(frozen=True)
class Condition:
    """Edits under which some rows of a batch run; no edits: the model as it is."""

    edits: tuple[Edit, ...] = ()
    random_directions: int | None = None
    "Seed of random directions that replace those of the edits, as in `steered`."


def steered_rows(
    lm: LM, saes: Sequence[Sae], conditions: Sequence[Condition], rows_each: int
) -> AbstractContextManager[list[Receipt | None]]:
    """Within the context, consecutive rows of a batch are edited by one condition after the other.

    Each condition has `rows_each` rows. Yields a receipt per condition, None for one without edits.
    Rows that leave the batch while it generates keep their conditions. The rules of `steered` hold.

    >>> import saescope as ss
    >>> from saescope.engine.generate import generate_batch
    >>> lm, sae = ss.load_lm("saescope-tiny", [2]), ss.load_sae("saescope-tiny-sae", 2)
    >>> [prompt] = ss.texts(["The cat"])[0].prompts
    >>> conditions = [Condition(), Condition((ss.Edit("2/5", "add", 30.0),))]
    >>> with steered_rows(lm, [sae], conditions, rows_each=1) as receipts:
    ...     replies = generate_batch(lm, [prompt, prompt], max_new_tokens=8)
    >>> replies[0].text == ss.generate(lm, "The cat", max_new_tokens=8), replies[0] == replies[1]
    (True, False)
    """
    blocks: list[SteeredBlock | None] = []
    for index, condition in enumerate(conditions):
        rows = range(index * rows_each, (index + 1) * rows_each)
        block = SteeredBlock(lm, saes, condition.edits, condition.random_directions, rows)
        blocks.append(block if condition.edits else None)
    return _SteeredRows(blocks)


@final
class _SteeredRows:
    """What `with steered_rows(...)` enters and leaves: a class, since generators hold blocks."""

    def __init__(self, blocks: Sequence[SteeredBlock | None]) -> None:
        self._blocks = blocks
        self._open = ExitStack()

    def __enter__(self) -> list[Receipt | None]:
        with ExitStack() as stack:
            receipts = [
                None if block is None else stack.enter_context(block) for block in self._blocks
            ]
            self._open = stack.pop_all()
        return receipts

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)
