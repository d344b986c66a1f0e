"""An edits file names its model by a path, which may be typed in another way."""

from pathlib import Path

import pytest

from saescope.control.edits import Edit, EditSet
from saescope.errors import EditError
from saescope.jobs.edits import inputs_for
from saescope.jobs.inputs import ModelInputs


def test_a_relative_path_is_the_model_that_edits_were_made_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model", "sae", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    edits = EditSet(str(tmp_path / "model"), str(tmp_path / "sae"), (Edit("2/5", "scale", -2.0),))
    same = ModelInputs(model="model", sae="./sae")
    assert inputs_for(edits, same).layers == (2,)
    with pytest.raises(EditError, match="these edits are for the model"):
        inputs_for(edits, ModelInputs(model="other", sae="sae"))
    with pytest.raises(EditError, match="these edits are for the SAE"):
        inputs_for(edits, ModelInputs(model="model", sae="other"))
