"""A layer, a feature or a k that does not exist is refused before weights are loaded."""

from pathlib import Path
from typing import Any

import pytest

from conftest import Pair
from saescope.surfaces.cli import run

STEER = ("steer", "hi", "--edit")
EVALUATE = ("evaluate", "--prompts", "SETS", "--edit", "1/1", "--behaviour")
REFUSED = {
    (*STEER, "17/1"): "has no layer17.sae.pt; it has layers 0-2",
    (*STEER, "1/256"): "edit of 1/256: the SAE of layer 1 has 256 features (ids 0-255)",
    (*STEER, "1/1 scale -1 when 0/999"): "the SAE of layer 0 has 256 features (ids 0-255)",
    (*STEER, "1/1 scale 1e30"): "strength must be a number below 1e6 in size, got 1e+30",
    (*STEER, "1/1 scale nan"): "strength nan is not finite",
    (*STEER, "1/1 scale abc"): "strength 'abc' is not a number",
    (*EVALUATE, "feature:1/999"): "behaviour feature:1/999@0.5: no SAE passed has 1/999",
    ("bake", "--edit", "1/999 project", "--out", "baked"): "edit of 1/999: the SAE of layer 1",
    ("layers", "SETS", "--feature", "9/1"): "feature 9/1: layer 9 is not among layers 0-2",
    ("layers", "SETS", "--feature", "1/999"): "feature 1/999: the SAE of layer 1 has 256 features",
    ("scan", "hi", "--k", "257"): "--k is 257, but",
    ("scan", "hi", "--layers", "0,99"): "has no layer99.sae.pt",
}


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_refused_before_loading(
    arguments: tuple[str, ...],
    pair: Pair,
    sets_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def loads(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("saescope.engine.lm.load_lm", loads)
    monkeypatch.setattr("saescope.engine.load._checked", loads)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    words = [str(sets_folder) if word == "SETS" else word for word in arguments]
    assert run([*words, "--model", str(pair.model), "--sae", str(pair.sae)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    [line] = err.splitlines()
    assert REFUSED[arguments] in line
    assert not list(Path().iterdir())
