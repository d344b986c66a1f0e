"""Results are tables: in a notebook, and for other programs."""

from pathlib import Path

import numpy as np
import pytest

import tiny
from conftest import Pair
from saescope.analysis.contrast import Contrast, ContrastSettings, contrast
from saescope.engine.scan import scan
from saescope.errors import SaescopeError
from saescope.sources.prompts import texts
from stored import write_run


@pytest.fixture
def result(tmp_path: Path) -> Contrast:
    fires = np.random.default_rng(0).random((96, 20)) < 0.3
    run = write_run(tmp_path / "run", {"<b>a</b>": [4] * 12, "b": [4] * 12}, {3: fires})
    return contrast(run, ContrastSettings(shuffles=0))


def test_rows_are_all_features(result: Contrast) -> None:
    rows = result.rows()
    assert len(rows) == sum(
        len(set_result.features) for set_result in result.layers[3].sets.values()
    )
    assert {row["set"] for row in rows} == {"<b>a</b>", "b"}
    assert rows[0]["feature"].startswith("3/")


def test_becomes_polars_and_pandas(result: Contrast) -> None:
    polars, pandas = result.to_polars(), result.to_pandas()
    assert polars.height == len(pandas) == len(result.rows())
    assert (
        polars["score"].to_list()
        == pandas["score"].tolist()
        == [row["score"] for row in result.rows()]
    )


def test_table_escapes_text_and_limits_rows_in_html(result: Contrast) -> None:
    shown = result._repr_html_()
    assert shown.count("<tr>") == 1 + min(50, len(result.rows()))
    assert "&lt;b&gt;a&lt;/b&gt;" in shown
    assert "<b>" not in shown


def test_package_that_is_not_there_is_named(
    result: Contrast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "polars", None)
    with pytest.raises(SaescopeError, match="pip install polars"):
        result.to_polars()


def test_scan_is_a_table(pair: Pair) -> None:
    lm, saes = pair.load(0, 1)
    result = scan(lm, saes, texts(tiny.TEXTS)[0].prompts, n_top=3)
    frame = result.to_pandas()
    assert set(frame["layer"]) == {0, 1}
    assert (frame["act"] > 0).all()
    assert frame["rank"].max() == 2
