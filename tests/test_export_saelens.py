"""SAELens opens what is exported for it, and its activations are saescope's."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from saescope.control.exports.saelens import export_saelens
from saescope.control.exports.tensors import StoredTensor, write_safetensors
from saescope.engine.load import load_sae
from saescope.engine.sae import Sae, SparseActs
from saescope.errors import ResourceError, SourceError
from saescope.sources.catalog import SaeSpec
from saescope.sources.saes import open_sae

SHAPES = {"k 8": (0, 8, 32, 256), "k 50": (1, 50, 48, 300), "every feature": (2, 16, 8, 16)}
# Another activation: layer, its name here and SAELens' name, whether it has thresholds.
OTHERS = {
    "jumprelu": (3, "jumprelu", True),
    "batchtopk": (4, "jumprelu", True),
    "relu": (5, "standard", False),
}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Each SAE's folder, and what SAELens computes from its export (in one process)."""
    folder, patch = tmp_path_factory.mktemp("saelens"), pytest.MonkeyPatch()
    command = [sys.executable, str(Path(__file__).with_name("sae_lens_judge.py"))]
    for layer, k, d_model, d_sae in SHAPES.values():
        source = tiny.save_sae(folder / f"sae {layer}", [layer], k, d_model=d_model, d_sae=d_sae)
        export_saelens(source, folder / f"out {layer}", layers=[layer], model_name="a/model")
        torch.save(
            torch.randn(40, d_model, generator=torch.Generator().manual_seed(0)) * 3,
            folder / f"h {layer}",
        )
        command += [str(folder / f"h {layer}"), str(folder / f"out {layer}")]
    for activation, (layer, _, _) in OTHERS.items():
        patch.setattr(
            "saescope.control.exports.saelens.load_sae", lambda _s, _n, a=activation: other(a)
        )
        export_saelens(
            tiny.save_sae(folder / f"sae {layer}", [layer]), folder / f"out {layer}", layers=[layer]
        )
        command += [str(folder / "h 0"), str(folder / f"out {layer}")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    patch.undo()
    return {
        name: (
            folder / f"sae {layer}",
            torch.load(folder / f"out {layer}.judged", weights_only=True),
        )
        for name, (layer, *_) in (*SHAPES.items(), *OTHERS.items())
    }


def other(activation: str) -> Sae:
    """An SAE with another activation than the k largest; some of its thresholds are below 0."""
    random = torch.Generator().manual_seed(1)
    threshold = torch.randn(256, generator=random) if OTHERS[activation][2] else None
    spec = SaeSpec("other", None, OTHERS[activation][0], 32, 256, None, activation, "a/model", "")
    return Sae(spec, **tiny.sae_tensors(), threshold=threshold)


@pytest.mark.slow
@pytest.mark.parametrize("activation", OTHERS)
def test_saelens_gives_the_same_for_other_activations(
    activation: str, judged: dict[str, tuple[Path, Any]]
) -> None:
    _, theirs = judged[activation]
    ours = other(activation).encode(
        torch.load(judged["k 8"][0].with_name("h 0"), weights_only=True)
    )
    torch.testing.assert_close(theirs["acts"], dense(ours, 256), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        theirs["decoded"], other(activation).decode(ours), atol=1e-4, rtol=1e-4
    )
    assert theirs["config"]["architecture"] == OTHERS[activation][1]


def dense(sparse: SparseActs, d_sae: int) -> torch.Tensor:
    return torch.zeros(len(sparse.acts), d_sae).scatter_add(1, sparse.ids, sparse.acts)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_saelens_gives_the_same(name: str, judged: dict[str, tuple[Path, Any]]) -> None:
    layer, k, d_model, d_sae = SHAPES[name]
    source, theirs = judged[name]
    sae = load_sae(source, layer)
    h = torch.load(source.with_name(f"h {layer}"), weights_only=True)
    ours = sae.encode(h)
    torch.testing.assert_close(theirs["acts"], dense(ours, d_sae), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs["decoded"], sae.decode(ours), atol=1e-4, rtol=1e-5)
    assert theirs["acts"].count_nonzero() > 0
    config = theirs["config"]
    assert (config["architecture"], config["k"], config["d_in"], config["d_sae"]) == (
        "topk",
        k,
        d_model,
        d_sae,
    )
    metadata = config["metadata"]
    assert (metadata["model_name"], metadata["prepend_bos"]) == ("a/model", False)
    assert metadata["hook_name"] == f"blocks.{layer}.hook_resid_post"


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SHAPES, *OTHERS])
def test_saescope_reads_it_back(name: str, judged: dict[str, tuple[Path, Any]]) -> None:
    source, theirs = judged[name]
    layer = (SHAPES | OTHERS)[name][0]
    before = other(name) if name in OTHERS else load_sae(source, layer)
    after = load_sae(source.with_name(f"out {layer}"), layer)
    h = torch.load(source.with_name(f"h {layer if name in SHAPES else 0}"), weights_only=True)
    assert all(
        torch.equal(getattr(before, n), getattr(after, n))
        for n in ("W_enc", "b_enc", "W_dec", "b_dec")
    )
    assert torch.equal(
        dense(before.encode(h), before.spec.d_sae), dense(after.encode(h), after.spec.d_sae)
    )
    torch.testing.assert_close(
        theirs["acts"], dense(after.encode(h), after.spec.d_sae), atol=1e-5, rtol=1e-5
    )
    assert (after.spec.k, after.spec.trained_on) == (before.spec.k, "a/model")


def test_several_layers_get_folders_named_by_hook_point(tmp_path: Path) -> None:
    source = tiny.save_sae(tmp_path / "sae")
    result = export_saelens(source, tmp_path / "out", layers=[2, 0])
    assert [path.relative_to(tmp_path / "out").as_posix() for path in result.files] == [
        "blocks.0.hook_resid_post/cfg.json",
        "blocks.0.hook_resid_post/sae_weights.safetensors",
        "blocks.2.hook_resid_post/cfg.json",
        "blocks.2.hook_resid_post/sae_weights.safetensors",
    ]
    assert json.loads(result.files[0].read_text())["metadata"]["model_name"] is None
    opened = open_sae(str(tmp_path / "out"))
    assert opened.layers == (0, 2)
    assert torch.equal(load_sae(opened, 2).W_enc, load_sae(source, 2).W_enc)


def test_tensors_of_many_chunks_are_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saescope.control.exports.tensors._CHUNK_BYTES", 4 * 40)
    tensors = {"a": torch.randn(31, 17), "b": torch.randn(5), "c": torch.randn(17, 50)}
    stored = {name: StoredTensor(t, transposed=name != "b") for name, t in tensors.items()}
    write_safetensors(tmp_path / "x", stored, {"format": "pt"})
    read = load_file(tmp_path / "x")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], t if name == "b" else t.T) for name, t in tensors.items())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_export_leaves_nothing(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.save_sae(tmp_path / "sae")
    before = sorted(tmp_path.rglob("*"))

    def load(source: Any, layer: int) -> Any:
        if layer == 2:
            raise error
        return load_sae(source, layer)

    monkeypatch.setattr("saescope.control.exports.saelens.load_sae", load)
    with pytest.raises((ResourceError, KeyboardInterrupt)) as raised:
        export_saelens(source, tmp_path / "new" / "out", layers=[0, 2])
    if isinstance(error, OSError):
        assert "out: No space left on device; nothing was left" in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_leftovers_are_cleared_and_nothing_is_overwritten(tmp_path: Path) -> None:
    source = tiny.save_sae(tmp_path / "sae")
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "old").touch()
    result = export_saelens(source, tmp_path / "out", layers=[0])
    assert [path.name for path in result.files] == ["cfg.json", "sae_weights.safetensors"]
    assert not (tmp_path / ".out.partial").exists()
    with pytest.raises(ResourceError, match="exists"):
        export_saelens(source, tmp_path / "out", layers=[0])
    with pytest.raises(SourceError, match="has layers 0-2"):
        export_saelens(source, tmp_path / "other", layers=[7])
