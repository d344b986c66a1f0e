"""SAEs and models load from folders: only needed tensors; one-line errors for damaged files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from conftest import Pair
from saescope.engine.lm import load_lm
from saescope.engine.load import load_sae
from saescope.engine.scan import scan
from saescope.errors import SourceError
from saescope.sources.prompts import texts
from saescope.sources.saes import open_sae, ranges

NAME = "SAE-Res-Tiny-Base-W1K-L0_9"


# --- SAEs


@pytest.mark.parametrize(
    ("folder", "cfg", "k_argument", "k"),
    [
        (NAME, None, None, 9),
        (f"{NAME}/v2", None, None, 9),
        (f"models--Qwen--{NAME}/snapshots/0123abcd", None, None, 9),
        ("sae", 8, None, 8),
        (NAME, 8, None, 8),
        (NAME, 8, 7, 7),
        ("sae", None, 7, 7),
    ],
)
def test_k_comes_from_argument_config_or_name(
    folder: str, cfg: int | None, k_argument: int | None, k: int, tmp_path: Path
) -> None:
    path = tmp_path / folder
    path.parent.mkdir(parents=True, exist_ok=True)
    tiny.save_sae(path, layers=[0], k=cfg)
    sae = load_sae(path, 0, k=k_argument)
    assert sae.spec.k == k
    if NAME in folder:
        assert (sae.spec.release, sae.spec.trained_on) == (NAME, "Tiny-Base") or folder.startswith(
            "models--"
        )
        assert sae.spec.trained_on == "Tiny-Base"
    assert sae.encode(torch.randn(2, 32)).ids.shape == (2, k)


@pytest.mark.parametrize("cfg", [None, "{}", '{"k": "8"}', '{"k": true}'])
def test_unknown_k_must_be_passed(cfg: str | None, tmp_path: Path) -> None:
    folder = tiny.save_sae(tmp_path / "sae", k=None)
    if cfg is not None:
        (folder / "cfg.json").write_text(cfg)
    with pytest.raises(SourceError, match="pass k"):
        open_sae(str(folder))


@pytest.mark.parametrize("cfg", [b"{", b"\xff\xfe", b"", b"[8]", b"[" * 10**5])
def test_damaged_config_is_refused(cfg: bytes, tmp_path: Path) -> None:
    folder = tiny.save_sae(tmp_path / "sae")
    (folder / "cfg.json").write_bytes(cfg)
    with pytest.raises(SourceError, match=r"cfg\.json (is not JSON|holds a list, not an object)"):
        open_sae(str(folder))


@pytest.mark.parametrize("k", [0, -1, 257])
def test_k_out_of_range_is_refused(k: int, pair: Pair) -> None:
    with pytest.raises(SourceError, match=f"k is {k}, but .* has 256 features"):
        load_sae(pair.sae, 1, k=k)


def test_missing_layer_says_what_there_is(tmp_path: Path) -> None:
    folder = tiny.save_sae(tmp_path / "sae", layers=[0, 1, 2, 5, 17])
    with pytest.raises(SourceError, match=r"has no layer3\.sae\.pt; it has layers 0-2, 5, 17$"):
        load_sae(folder, 3)


def test_middle_layer_is_chosen_when_none_is_named(tmp_path: Path) -> None:
    source = open_sae(str(tiny.save_sae(tmp_path / "sae", layers=[10, 2, 4, 9])))
    assert source.layers == (2, 4, 9, 10)
    assert source.choose_layers(None) == (4,)
    assert source.choose_layers([10, 2, 10]) == (2, 10)


def test_layers_are_shown_as_ranges() -> None:
    assert ranges([0, 1, 2, 3, 17, 20, 21]) == "0-3, 17, 20-21"


def test_single_file_is_an_sae_of_one_layer(tmp_path: Path) -> None:
    path = tiny.save_sae(tmp_path / "sae") / "layer1.sae.pt"
    source = open_sae(str(path))
    assert source.layers == (1,)
    assert source.choose_layers(None) == (1,)
    with pytest.raises(SourceError, match=r"it has layers 1$"):
        source.choose_layers([2])
    other = path.rename(path.with_name("mine.pt"))
    with pytest.raises(SourceError, match=r"is named layer<N>\.sae\.pt"):
        open_sae(str(other))


def test_decoder_is_loaded_only_if_requested(pair: Pair) -> None:
    sae = load_sae(pair.sae, 0, decoder=False)
    assert (sae.W_dec, sae.b_dec) == (None, None)
    assert load_sae(pair.sae, 0).W_dec is not None


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_not_finite_are_refused(name: str, value: str, tmp_path: Path) -> None:
    state = tiny.sae_tensors()
    state[name].view(-1)[3] = float(value)
    torch.save(state, tmp_path / "layer0.sae.pt")
    with pytest.raises(
        SourceError, match=rf"layer0\.sae\.pt: {name} has values that are not finite"
    ):
        load_sae(tmp_path, 0, k=8)
    if name.endswith("dec"):
        load_sae(tmp_path, 0, k=8, decoder=False)  # not used, not read, not judged


def test_fingerprint_tells_weights(tmp_path: Path) -> None:
    prints = []
    for n in range(2):
        state = tiny.sae_tensors()
        state["b_enc"][0] = n
        torch.save(state, tmp_path / "layer0.sae.pt")
        prints.append(load_sae(tmp_path, 0, k=8).spec.fingerprint)
    assert prints[0] != prints[1]


@pytest.mark.parametrize("ref", ["nowhere", "./nowhere/at/all", "a/b/c", "", "/"])
def test_missing_sae_is_refused(ref: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError):
        open_sae(ref)


# --- models


def _without(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def _config(**changes: object) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | changes))

    return change


def _bytes(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda model: (model / name).write_bytes(data) and None


def _cut(name: str, share: float) -> Callable[[Path], None]:
    def cut(model: Path) -> None:
        data = (model / name).read_bytes()
        (model / name).write_bytes(data[: int(share * len(data))])

    return cut


def _weights_without(tensor: str) -> Callable[[Path], None]:
    def drop(model: Path) -> None:
        state = load_file(model / "model.safetensors")
        del state[tensor]
        save_file(state, model / "model.safetensors", metadata={"format": "pt"})

    return drop


def _only_pickle(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def _no_tokenizer(model: Path) -> None:
    for path in (*model.glob("tokenizer*"), *model.glob("special_tokens_map.json")):
        path.unlink()


DAMAGE = {
    "no config": (_without("config.json"), "has no file config.json"),
    "config no JSON": (_bytes("config.json", b"{"), "config.json"),
    "config no object": (_bytes("config.json", b"[]"), "config.json"),
    "config not UTF-8": (_bytes("config.json", b"\xff\xfe{"), "config.json"),
    "config empty object": (_bytes("config.json", b"{}"), "config.json"),
    "unknown architecture": (_config(model_type="hyperllama"), "hyperllama"),
    "no decoder": (_config(model_type="vit"), "config.json|'vit'"),
    "other shape of layers": (_config(model_type="gpt2"), "gpt2"),
    "other width": (
        _config(hidden_size=48),
        "embed_tokens.weight has shape .*, 32.*, its config says .*, 48",
    ),
    "heads do not divide": (_config(num_attention_heads=3), "has shape"),
    "layers as text": (_config(num_hidden_layers="three"), "config.json"),
    "no weights": (
        _without("model.safetensors"),
        "has no model.safetensors and no model.safetensors.index.json",
    ),
    "only pytorch_model.bin": (_only_pickle, "only safetensors weights are read"),
    "empty weights": (
        _bytes("model.safetensors", b""),
        "model.safetensors is damaged or truncated",
    ),
    "weights cut in the header": (
        _cut("model.safetensors", 0.01),
        "model.safetensors is damaged or truncated",
    ),
    "weights cut in the data": (
        _cut("model.safetensors", 0.9),
        "model.safetensors is damaged or truncated",
    ),
    "missing tensor": (
        _weights_without("model.layers.1.mlp.up_proj.weight"),
        "no tensor model.layers.1.mlp.up_proj",
    ),
    "no tokenizer": (_no_tokenizer, "has no tokenizer files"),
    "damaged tokenizer": (
        _bytes("tokenizer.json", b'{"version": "1.0", "model": '),
        "tokenizer in .* cannot be read",
    ),
    "tokenizer of nothing": (_bytes("tokenizer.json", b"{}"), "tokenizer in .* cannot be read"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_model_is_refused(case: str, tmp_path: Path) -> None:
    damage, reason = DAMAGE[case]
    model = tiny.save_model(tmp_path / "model")
    damage(model)
    with pytest.raises(SourceError, match=reason):
        load_lm(model, [1])


@pytest.mark.parametrize("layers", [[3], [-1], [0, 99], []])
def test_layer_out_of_range_says_the_range(layers: list[int], pair: Pair) -> None:
    with pytest.raises(SourceError, match="has layers 0-2, not"):
        load_lm(pair.model, layers)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return tiny.save_model(tmp_path / "model", shard_size="20KB")


def _index(model: Path) -> dict[str, str]:
    weights: dict[str, str] = json.loads((model / "model.safetensors.index.json").read_text())[
        "weight_map"
    ]
    return weights


def test_missing_shard_is_named(sharded: Path) -> None:
    shard = _index(sharded)["model.layers.1.mlp.up_proj.weight"]
    (sharded / shard).unlink()
    with pytest.raises(SourceError, match=f"has no file {shard}"):
        load_lm(sharded, [1])


def test_truncated_shard_is_named(sharded: Path) -> None:
    shard = _index(sharded)["model.layers.1.mlp.up_proj.weight"]
    _cut(shard, 0.5)(sharded)
    with pytest.raises(SourceError, match=f"{shard} is damaged or truncated"):
        load_lm(sharded, [1])


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (b"{", "is not a safetensors index"),
        (b"{}", "is not a safetensors index"),
        (b'{"weight_map": [1, 2]}', "is not a safetensors index"),
        (b'{"weight_map": null}', "is not a safetensors index"),
        (b'{"weight_map": {"model.embed_tokens.weight": 3}}', "has no tensor"),
        (b'{"weight_map": {}}', "has no tensor model.embed_tokens.weight"),
    ],
)
def test_damaged_index_is_refused(index: bytes, reason: str, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(SourceError, match=reason):
        load_lm(sharded, [1])


def test_index_naming_a_tensor_its_shard_lacks_is_refused(sharded: Path) -> None:
    weights = _index(sharded)
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights["model.layers.0.input_layernorm.weight"]
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    with pytest.raises(SourceError, match=name):
        load_lm(sharded, [1])


def test_shards_that_hold_nothing_needed_are_never_opened(sharded: Path) -> None:
    before = [token.norm for p in scan(*_scannable(sharded)).prompts for token in p.tokens]
    needed = {
        shard
        for name, shard in _index(sharded).items()
        if name.startswith(("model.embed_tokens", "model.layers.0.", "model.layers.1."))
    }
    unneeded = set(_index(sharded).values()) - needed
    assert len(unneeded) >= 2
    for shard in unneeded:
        (sharded / shard).unlink()
    assert [token.norm for p in scan(*_scannable(sharded)).prompts for token in p.tokens] == before


def _scannable(model: Path) -> tuple[object, ...]:
    sae = load_sae(tiny.save_sae(model.parent / "sae"), 1)
    return load_lm(model, [1]), [sae], texts(["hello there"])[0].prompts


def test_model_is_cut_after_the_last_layer(pair: Pair) -> None:
    lm = load_lm(pair.model, [1])
    names = {name for name, _ in lm.model.named_parameters()}
    assert len(lm.blocks) == 2
    assert not any(name.startswith(("layers.2.", "norm.", "lm_head")) for name in names)
    assert lm.spec.n_layers == 3


@pytest.mark.parametrize(
    ("stored", "dtype", "computed"),
    [
        (torch.float32, "auto", torch.float32),
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.float16, "auto", torch.float32),
        (torch.bfloat16, "float32", torch.float32),
        (torch.float32, "bfloat16", torch.bfloat16),
    ],
)
def test_dtype_is_that_of_the_checkpoint_or_the_argument(
    stored: torch.dtype, dtype: str, computed: torch.dtype, tmp_path: Path
) -> None:
    lm = load_lm(tiny.save_model(tmp_path / "model", dtype=stored), [0], dtype=dtype)
    assert {p.dtype for p in lm.model.parameters()} == {lm.dtype} == {computed}


def test_fingerprint_is_of_what_was_read(sharded: Path) -> None:
    first = load_lm(sharded, [0]).spec.fingerprint
    for shard in set(_index(sharded).values()):
        state = load_file(sharded / shard)
        if any(name.startswith("model.layers.2.") for name in state) and not any(
            "layers.0" in name for name in state
        ):
            save_file({n: t + 1 for n, t in state.items()}, sharded / shard)
    assert load_lm(sharded, [0]).spec.fingerprint == first
    shard = _index(sharded)["model.layers.0.mlp.up_proj.weight"]
    save_file({n: t + 1 for n, t in load_file(sharded / shard).items()}, sharded / shard)
    assert load_lm(sharded, [0]).spec.fingerprint != first


def test_device_that_is_not_there_is_refused(pair: Pair) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SourceError, match="device=cuda is not available"):
        load_lm(pair.model, [0], device="cuda")
