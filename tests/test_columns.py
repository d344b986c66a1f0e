"""Columns go to Arrow and back as they are, and pandas is not imported for it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from saescope.errors import RunError
from saescope.store import columns
from stored import write_run


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int32, np.int64, np.float32])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_numbers_come_back(dtype: type, n: int) -> None:
    numbers = np.arange(2 * n, dtype=dtype)[::2]  # not contiguous
    column = columns.numbers(numbers)
    column.validate(full=True)
    for stored in (
        column,
        pa.chunked_array([column]),
        pa.chunked_array([column.slice(0, n // 2), column[n // 2 :]]),
    ):
        read_back = columns.values(stored)
        assert read_back.dtype == dtype
        assert read_back.tolist() == numbers.tolist()


def test_a_column_without_chunks_is_empty() -> None:
    read_back = columns.values(pa.chunked_array([], type=pa.float32()))
    assert (read_back.dtype, read_back.shape) == (np.float32, (0,))


@pytest.mark.parametrize("texts", [[], [None], ["a", None, "é", "", "日本語\n\0"] * 5])
def test_strings_equal_those_of_arrow(texts: list[str | None]) -> None:
    column = columns.strings(texts)
    column.validate(full=True)
    assert column.equals(pa.array(texts, pa.string()))


def test_texts_longer_than_a_column_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_MAX_STRING_BYTES", 9)
    assert len(columns.strings(["12345", "6789"])) == 2
    with pytest.raises(RunError, match="10 bytes"):
        columns.strings(["12345", "67890"])


@pytest.mark.slow
def test_a_question_to_a_run_imports_no_pandas(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    run = write_run(tmp_path / "run", {"a": [4] * 12, "b": [4] * 12}, {3: np.ones((96, 20), bool)})
    ask = (
        "import sys; from saescope.surfaces.cli import run; "
        f"assert run(['contrast', {str(run.path)!r}]) == 0"
    )
    process = subprocess.run(
        [sys.executable, "-c", f"{ask}; assert 'pandas' not in sys.modules"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
