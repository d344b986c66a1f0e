"""precision says what a dtype is safe for and what not, each with its figure and its limit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from saescope.analysis.agreement import LayerAgreement, agreement
from saescope.errors import ArgumentError
from saescope.jobs.precision import PrecisionRequest
from saescope.surfaces.cli import run as cli
from stored import write_run


def layer(folder: Path) -> LayerAgreement:
    """One layer of a run compared with itself: everything agrees."""
    run = write_run(folder / "run", {"x": [4] * 3, "y": [4] * 3}, {2: np.ones((24, 6), bool)})
    return agreement(run, run).layers[2]


def test_rates_can_be_safe_where_the_top_k_is_not(tmp_path: Path) -> None:
    """The figures of a real model in bfloat16: most tokens have another top k."""
    real = replace(
        layer(tmp_path),
        rate_diff=0.012,
        act_rel_diff=0.008,
        top5_equal=0.91,
        topk_equal=0.35,
        found_both=97,
        found_either=100,
    )
    assert real.verdict("bfloat16") == (
        "bfloat16 is safe for rates (differ by at most 1.2 points; limit 5 points), best features "
        "(97 of 100 confirmed by both; limit 90 %), values (activations differ by 0.8 % in the "
        "median; limit 5 %), the five strongest features of a token (the same on 91 % of tokens; "
        "limit 90 %); it is not safe for the whole top k of a token (the same on 35 % of tokens; "
        "limit 90 %)"
    )
    safe = {name: use["safe"] for name, use in real.to_dict()["safe_for"].items()}
    assert safe == {
        "rates": True,
        "best_features": True,
        "values": True,
        "top5": True,
        "topk": False,
    }
    assert real.to_dict()["safe_for"]["topk"] == {"safe": False, "figure": 0.35, "limit": 0.9}


@pytest.mark.parametrize(
    ("field", "value", "use"),
    [
        ("rate_diff", 0.051, "rates"),
        ("act_rel_diff", 0.06, "values"),
        ("top5_equal", 0.89, "top5"),
        ("topk_equal", 0.89, "topk"),
    ],
)
def test_each_figure_decides_its_own_use(
    tmp_path: Path, field: str, value: float, use: str
) -> None:
    same = layer(tmp_path)
    assert all(one.safe for one in same.uses)
    worse = replace(same, **{field: value})
    assert [one.name for one in worse.uses if not one.safe] == [use]


def test_second_run_needs_a_first_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layer(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match="languages is no run"):
        PrecisionRequest("languages", Path("run")).run()
    assert cli(["precision", "languages", "run"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
