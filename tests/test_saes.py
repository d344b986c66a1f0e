"""SAEs of every format: found by name and path, distinguished by files, or refused in one line."""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from saescope.engine.load import load_sae
from saescope.engine.plan import plan_job
from saescope.errors import SourceError
from saescope.sources.catalog import RegistryName, canonical_folders, model_of, parse_registry_name
from saescope.sources.files import LocalFiles
from saescope.sources.hook_points import HookPoint, hook_in_path, parse_hook_point
from saescope.sources.job_plan import JobOptions
from saescope.sources.saes import open_sae

GEMMA = [
    "layer_0/width_16k/average_l0_46",
    "layer_0/width_16k/average_l0_105",
    "layer_0/width_65k/average_l0_73",
    "layer_20/width_16k/average_l0_71",
    "layer_20/width_16k/average_l0_139",
    "embedding/width_4k/average_l0_6",
]


def save_gemma_scope(folder: Path, names: list[str], **options: Any) -> Path:
    for seed, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        state = tiny.sae_tensors(seed=seed)
        arrays = state | {"W_enc": state["W_enc"].T, "W_dec": state["W_dec"].T}
        arrays |= {"threshold": torch.full((256,), 1.0)} | options
        np.savez(
            folder / name / "params.npz",
            **{key: np.ascontiguousarray(value) for key, value in arrays.items()},
        )
    return folder


@pytest.fixture
def gemma(tmp_path: Path) -> Path:
    return save_gemma_scope(tmp_path / "gemma-scope-2b-pt-res", GEMMA)


# --- names


@pytest.mark.parametrize(
    ("name", "repo", "path"),
    [
        (
            "qwen-scope-3-8b-base-w64k-l50/layer17",
            "Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50",
            "layer17.sae.pt",
        ),
        (
            "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71",
            "google/gemma-scope-2b-pt-res",
            "layer_20/width_16k/average_l0_71",
        ),
        (
            "gemma-scope-9b-it-res-canonical/layer_9/width_16k/canonical",
            "google/gemma-scope-9b-it-res",
            "layer_9/width_16k/canonical/canonical",
        ),
        (
            "gemma-scope-2-1b-pt-res-all/layer_0_width_16k_l0_big",
            "google/gemma-scope-2-1b-pt",
            "resid_post_all/layer_0_width_16k_l0_big",
        ),
        (
            "llama_scope_lxr_8x/l15r_8x",
            "fnlp/Llama3_1-8B-Base-LXR-8x",
            "Llama3_1-8B-Base-L15R-8x",
        ),
    ],
)
def test_registry_names_follow_a_grammar(name: str, repo: str, path: str) -> None:
    parsed = parse_registry_name(name)
    assert parsed is not None
    assert (parsed.repo, "/".join(parsed.parts)) == (repo, path)
    assert model_of(name) == parsed.model == model_of(repo)


@pytest.mark.parametrize(
    "name", ["", "gemma", "gemma-scope-3b-pt-res", "llama_scope", "google/gemma-scope-2b-pt-res"]
)
def test_other_names_are_no_registry_names(name: str) -> None:
    assert parse_registry_name(name) is None


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("google/gemma-scope-2b-pt-res", "google/gemma-2-2b"),
        ("gemma-scope-9b-it-res-canonical", "google/gemma-2-9b-it"),
        ("google/gemma-scope-2-270m-pt", "google/gemma-3-270m"),
        ("google/gemma-scope-2-4b-it@abc/resid_post", "google/gemma-3-4b-it"),
        ("fnlp/Llama3_1-8B-Base-L15R-8x", "meta-llama/Llama-3.1-8B"),
        ("EleutherAI/sae-llama-3-8b-32x", None),
    ],
)
def test_repository_names_tell_the_model(name: str, model: str | None) -> None:
    assert model_of(name) == model


@pytest.mark.slow
def test_registry_of_saelens_is_what_the_grammar_says() -> None:
    """Every residual-stream SAE of Gemma, Qwen and Llama Scope in SAELens' own registry."""
    yaml = pytest.importorskip("yaml", reason="comes with SAELens: pip install --group judges")
    from importlib.util import find_spec

    spec = find_spec("sae_lens")
    if spec is None or spec.origin is None:
        pytest.skip("SAELens is not installed: pip install --group judges")
    releases = yaml.load(
        (Path(spec.origin).parent / "pretrained_saes.yaml").read_text(), yaml.CSafeLoader
    )
    checked = 0
    for release, about in releases.items():
        if not release.startswith(
            ("gemma-scope", "qwen-scope", "llama_scope_lx")
        ) or release.endswith("transcoders"):
            continue
        folders = [
            sae["path"] for sae in releases.get(release.removesuffix("-canonical"), about)["saes"]
        ]
        canonical = canonical_folders(folders)
        for sae in about["saes"]:
            parsed = parse_registry_name(f"{release}/{sae['id']}")
            assert parsed is not None
            assert parsed.repo == about["repo_id"]
            segments = [segment for segment in parsed.parts if segment != "canonical"]
            if "-canonical" in release and "-res" in release:
                assert sae["path"] in canonical
                assert sae["path"].startswith("/".join(segments))
            elif "-canonical" not in release:
                assert sae["path"] == "/".join(segments)
            checked += 1
    assert checked > 5000


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("blocks.3.hook_resid_post", HookPoint(3)),
        ("blocks.3.hook_resid_pre", HookPoint(2)),
        ("blocks.0.hook_resid_pre", HookPoint(other="blocks.0.hook_resid_pre (the embedding)")),
        ("blocks.3.hook_mlp_out", HookPoint(other="blocks.3.hook_mlp_out")),
        ("model.layers.12.output", HookPoint(12)),
        ("layers.7", HookPoint(7)),
        ("transformer.h.7", HookPoint(7)),
        ("layers.7.mlp", HookPoint(other="layers.7.mlp")),
        (None, HookPoint()),
        (7, HookPoint()),
    ],
)
def test_hook_points_are_parsed(name: object, hook: HookPoint) -> None:
    assert parse_hook_point(name) == hook


@pytest.mark.parametrize(
    ("kind", "path", "hook"),
    [
        ("sparsify", "layers.5/sae.safetensors", HookPoint(5)),
        ("sparsify", "layers.5/seed0/sae.safetensors", HookPoint(5)),
        ("sparsify", "layers.5.mlp/sae.safetensors", HookPoint(other="layers.5.mlp")),
        ("sparsify", "embed_tokens/sae.safetensors", HookPoint(other="embed_tokens")),
        ("gemma-scope", "coder/layer_5/width_16k/average_l0_71/params.npz", HookPoint(5)),
        (
            "gemma-scope",
            "gemma-scope-2b-pt-mlp/layer_5/params.npz",
            HookPoint(other="mlp (not the residual stream)"),
        ),
        (
            "gemma-scope",
            "transcoder_all/layer_0_width_16k_l0_big/params.safetensors",
            HookPoint(other="transcoder_all (not the residual stream)"),
        ),
        (
            "llama-scope",
            "Llama3_1-8B-Base-L15M-8x/checkpoints/final.safetensors",
            HookPoint(other="Llama3_1-8B-Base-L15M-8x (not the residual stream)"),
        ),
        (
            "dictionary-learning",
            "x/resid_post_layer_12_checkpoints/trainer_0_step_0/ae.pt",
            HookPoint(12),
        ),
    ],
)
def test_hook_points_in_paths(kind: Any, path: str, hook: HookPoint) -> None:
    assert hook_in_path(kind, path.split("/")) == hook


# --- opening


def test_several_saes_of_a_layer_are_chosen_by_path(gemma: Path) -> None:
    source = open_sae(str(gemma))
    assert source.layers == (0, 20)
    with pytest.raises(
        SourceError, match=r"has 3 SAEs of layer 0 .*choose by parts of their paths, as in "
    ):
        source.locate(0)
    chosen = open_sae(f"{gemma}/width_16k/canonical")
    assert [chosen.locate(layer).folder for layer in (0, 20)] == [GEMMA[1], GEMMA[3]]
    assert chosen.trained_on == "google/gemma-2-2b"
    sae = load_sae(f"{gemma}/layer_20/width_16k/average_l0_139", 20)
    assert (sae.spec.format, sae.spec.activation, sae.spec.k) == ("gemma-scope", "jumprelu", None)
    assert sae.source == str(gemma / "layer_20/width_16k/average_l0_139")
    assert load_sae(sae.source, 20).spec.fingerprint == sae.spec.fingerprint
    assert load_sae(gemma / GEMMA[3] / "params.npz", 20).spec.d_sae == 256
    with pytest.raises(SourceError, match=r"no SAE has width_1m in its path"):
        open_sae(f"{gemma}/width_1m")
    with pytest.raises(SourceError, match=r"has no SAE of layer 5; it has layers 0, 20"):
        load_sae(f"{gemma}/width_16k/canonical", 5)
    with pytest.raises(SourceError, match="reads the embedding: only SAEs of a layer's output"):
        open_sae(f"{gemma}/embedding")


def test_requested_layer_is_used_if_no_file_names_one(tmp_path: Path) -> None:
    folder = save_gemma_scope(tmp_path, ["mine"])
    assert load_sae(folder / "mine", 7).spec.layer == 7
    with pytest.raises(SourceError, match="pass layers"):
        open_sae(str(folder / "mine")).choose_layers(None)
    with pytest.raises(SourceError, match="pass layers"):
        open_sae(str(folder / "mine")).choose_layers(())
    with pytest.raises(SourceError, match="is one SAE: ask for one layer, not 1-2"):
        open_sae(str(folder / "mine")).choose_layers([1, 2])


def test_mixed_and_unknown_folders_say_what_is_there(tmp_path: Path) -> None:
    both = tiny.save_sae(tmp_path / "both")
    tiny.save_saelens(both / "other", [4])
    with pytest.raises(
        SourceError, match=r"several formats \(qwen-scope, saelens\): give the folder of one"
    ):
        open_sae(str(both))
    assert open_sae(str(both / "other")).layers == (4,)
    (tmp_path / "none").mkdir()
    with pytest.raises(
        SourceError, match=r"has no SAE: looked for layer<N>\.sae\.pt \(Qwen-Scope\), sae_weights"
    ):
        open_sae(str(tmp_path / "none"))
    tiny.save_saelens(tmp_path / "half", [1])
    (tmp_path / "half" / "blocks.1.hook_resid_post" / "cfg.json").unlink()
    with pytest.raises(
        SourceError, match=r"sae_weights\.safetensors is there, but not its .*cfg\.json"
    ):
        open_sae(str(tmp_path / "half"))


def test_search_of_a_large_folder_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saescope.sources import saes

    monkeypatch.setattr(saes, "_MAX_FILES", 3)
    for n in range(5):
        (tmp_path / f"{n}.txt").touch()
    with pytest.raises(SourceError, match="over 3 files: give the folder of the SAE itself"):
        open_sae(str(tmp_path))
    (tmp_path / "more").mkdir()
    for n in range(2):
        (tmp_path / f"{n}.txt").unlink()
        (tmp_path / "more" / f"{n}.txt").touch()
    (tmp_path / "4.txt").unlink()
    path = save_gemma_scope(tmp_path, ["one"]) / "one" / "params.npz"
    assert load_sae(path.rename(tmp_path / "params.npz"), 3).spec.layer == 3


def test_config_that_contradicts_its_path_is_refused(tmp_path: Path) -> None:
    tiny.save_saelens(tmp_path, [2])
    (tmp_path / "blocks.2.hook_resid_post").rename(tmp_path / "blocks.5.hook_resid_post")
    with pytest.raises(SourceError, match="says it reads layer 2, not layer 5"):
        load_sae(tmp_path, 5)


def test_plan_lists_the_files_of_one_layer(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    folder = tiny.save_saelens(tmp_path / "saes")
    plan = plan_job(JobOptions(str(model), str(folder), layers=[1]))
    names = [
        file.entry.name for file in plan.needed if file.files and file.files.name == str(folder)
    ]
    folder_name = "blocks.1.hook_resid_post"
    assert names == [f"{folder_name}/sae_weights.safetensors", f"{folder_name}/cfg.json"]
    assert plan.sizes is not None
    assert plan.sizes.encoder == 4 * 256 * 33


def test_k_is_refused_for_thresholds(tmp_path: Path) -> None:
    folder = tiny.save_saelens(tmp_path)
    assert load_sae(folder, 1).spec.k is None
    with pytest.raises(SourceError, match=r"k is 5, but .* has no k"):
        load_sae(folder, 1, k=5)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="shows what is mapped")
def test_files_are_mapped_not_read(gemma: Path, tmp_path: Path) -> None:
    """The encoder's pages can be released, and read back the same."""
    for folder in (gemma / GEMMA[3], tiny.save_saelens(tmp_path / "saes", [20], d_sae=2048)):
        sae = load_sae(folder, 20)
        resid = torch.randn(3, 32)
        assert sae.mapped or sae.W_enc.nbytes < 2**16
        assert torch.equal(sae.encode(resid).acts, sae.encode(resid).acts)


# --- what cannot be folded


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalize_activations": "covariance_whitening"}, "normalised .*cannot be folded"),
        (
            {"normalize_activations": "expected_average_only_in"},
            "by a constant that its files do not hold",
        ),
        ({"reshape_activations": "hook_z"}, "its input is reshaped"),
        ({"architecture": "temporal"}, "architecture 'temporal' is not supported"),
        ({"architecture": "batchtopk"}, "save it with save_inference_model"),
        ({"architecture": ["jumprelu"]}, "is not supported"),
        ({"architecture": "topk"}, "k is None: it must be a whole number"),
        ({"architecture": "topk", "k": "8"}, "k is '8': it must be a whole number"),
        ({"architecture": "topk", "k": 10**9}, "k is 1000000000, but .* has 256 features"),
        ({"apply_b_dec_to_input": "no"}, "apply_b_dec_to_input is 'no': it must be true or false"),
        (
            {"metadata": {"hook_name": "blocks.1.hook_mlp_out"}},
            "says it reads blocks.1.hook_mlp_out, not layer 1",
        ),
        (
            {"metadata": {"hook_name": "blocks.1.hook_z", "hook_head_index": 3}},
            "reads head 3 of blocks.1.hook_z",
        ),
        (
            {"metadata": {"hook_name": "blocks.1.hook_resid_post", "hook_name_out": "x"}},
            "a transcoder",
        ),
    ],
)
def test_saelens_settings_without_support_are_refused(
    settings: Mapping[str, Any], message: str, tmp_path: Path
) -> None:
    folder = tiny.save_saelens(tmp_path, [1], settings=settings)
    with pytest.raises(SourceError, match=message):
        load_sae(folder, 1)


def test_scale_of_finetuning_is_refused(tmp_path: Path) -> None:
    path = tiny.save_saelens(tmp_path, [1]) / "blocks.1.hook_resid_post" / "sae_weights.safetensors"
    state = load_file(path)
    save_file(state | {"scaling_factor": torch.ones(256)}, path)
    load_sae(tmp_path, 1)
    save_file(state | {"scaling_factor": torch.full((256,), 1.1)}, path)
    with pytest.raises(SourceError, match="scaled after finetuning"):
        load_sae(tmp_path, 1)


def save_sparsify(folder: Path, **settings: Any) -> Path:
    (folder / "layers.1").mkdir(parents=True)
    tensors = tiny.sae_tensors()
    state = {
        "encoder.weight": tensors["W_enc"],
        "encoder.bias": tensors["b_enc"],
        "W_dec": tensors["W_dec"].T.contiguous(),
        "b_dec": tensors["b_dec"],
    }
    save_file(state, folder / "layers.1" / "sae.safetensors")
    config = {"d_in": 32, "k": 8, "expansion_factor": 8} | settings
    (folder / "layers.1" / "cfg.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transcode": True}, "it is a transcoder"),
        ({"skip_connection": True}, r"\(skip_connection\), which cannot be folded"),
        ({"activation": "groupmax"}, "activation 'groupmax' is not supported"),
        ({"signed": True}, "signed"),
        ({"k": 0}, "k is 0: it must be a whole number"),
    ],
)
def test_sparsify_settings_without_support_are_refused(
    settings: Mapping[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=message):
        load_sae(save_sparsify(tmp_path, **settings), 1)


def save_dictionary(folder: Path, trainer: Any, state: Mapping[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = tiny.sae_tensors()
    linear = {
        "encoder.weight": tensors["W_enc"],
        "encoder.bias": tensors["b_enc"],
        "decoder.weight": tensors["W_dec"],
        "b_dec": tensors["b_dec"],
        "threshold": torch.tensor(-1.0),
    }
    torch.save(linear if state is None else dict(state), folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"io": "out"}}))
    return folder


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"dict_class": "CrossCoder", "layer": 1}, "class 'CrossCoder' is not supported"),
        ({"layer": 1}, "class None is not supported"),
        ({"dict_class": ["BatchTopKSAE"], "layer": 1}, "is not supported"),
        (
            {"dict_class": "BatchTopKSAE", "layer": 1, "submodule_name": "mlp_layer1"},
            "reads mlp_layer1: only SAEs of",
        ),
        (
            {"dict_class": "AutoEncoderTopK", "layer": 1, "k": 1.5},
            "k is 1.5: it must be a whole number",
        ),
        ({"dict_class": "JumpReluAutoEncoder", "layer": 1}, "has no tensor W_enc"),
        ("trainer", "trainer is 'trainer': it must be an object"),
    ],
)
def test_dictionary_learning_settings_without_support_are_refused(
    trainer: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=message):
        load_sae(save_dictionary(tmp_path / "sae", trainer), 1)


def test_unset_threshold_is_a_relu(tmp_path: Path) -> None:
    sae = load_sae(save_dictionary(tmp_path / "sae", {"dict_class": "BatchTopKSAE", "layer": 1}), 1)
    resid = torch.randn(9, 32)
    assert torch.equal(
        sae.encode(resid).acts > 0,
        sae.pre_acts(resid).clamp(min=0).sort(-1, True).values[:, : sae.encode(resid).acts.shape[1]]
        > 0,
    )


# --- hostile files


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        import os

        return os.mkdir, (str(self.mark),)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "was run"
    trainer = {"dict_class": "AutoEncoderTopK", "layer": 1, "k": 8}
    folder = save_dictionary(tmp_path / "sae", trainer, {"encoder.weight": Trap(mark)})
    with pytest.raises(SourceError, match=r"ae\.pt is refused.*code in it was not run"):
        load_sae(folder, 1)
    np.savez(tmp_path / "params.npz", W_enc=np.array([Trap(mark)], dtype=object))
    with pytest.raises(SourceError, match=r"params\.npz has no tensor W_enc"):
        load_sae(tmp_path / "params.npz", 1)
    (tmp_path / "params.npz").write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(SourceError, match=r"params\.npz is damaged"):
        load_sae(tmp_path / "params.npz", 1)
    assert not mark.exists()


def _files(tmp_path: Path) -> dict[str, Path]:
    return {
        "saelens": tiny.save_saelens(tmp_path / "a", [1])
        / "blocks.1.hook_resid_post"
        / "sae_weights.safetensors",
        "sparsify": save_sparsify(tmp_path / "b") / "layers.1" / "sae.safetensors",
        "dictionary": save_dictionary(tmp_path / "c", {"dict_class": "BatchTopKSAE", "layer": 1})
        / "ae.pt",
        "gemma": save_gemma_scope(tmp_path / "d", ["layer_1/width_16k"])
        / "layer_1/width_16k"
        / "params.npz",
    }


@pytest.mark.parametrize("kind", ["saelens", "sparsify", "dictionary", "gemma"])
def test_damaged_weights_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    path = _files(tmp_path)[kind]
    data = path.read_bytes()
    assert load_sae(path, 1).spec.d_sae == 256
    cuts = [data[: int(share * len(data))] for share in (0, 0.001, 0.3, 0.999)]
    huge = (2**62).to_bytes(8, "little") + b"{" * 100
    for damaged in [
        *cuts,
        huge,
        b"\0" * 300,
        b"PK\x03\x04" + b"\0" * 300,
        b"<html>",
        b"version https://git-lfs",
    ]:
        path.write_bytes(damaged)
        with pytest.raises(SourceError) as caught:
            load_sae(path, 1)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"])
@pytest.mark.parametrize("change", ["nan", "shape", "ints", "missing", "none"])
def test_other_arrays_are_refused_in_one_line(name: str, change: str, tmp_path: Path) -> None:
    folder = save_gemma_scope(tmp_path, ["layer_1/width_16k"])
    path = folder / "layer_1/width_16k" / "params.npz"
    arrays = dict(np.load(path, allow_pickle=False))
    if change == "nan":
        arrays[name].reshape(-1)[2] = np.nan
    elif change == "shape":
        arrays[name] = arrays[name][:-1]
    elif change == "ints":
        arrays[name] = arrays[name].astype(np.int32)
    elif change == "none":
        arrays[name] = arrays[name][:0]
    else:
        del arrays[name]
    np.savez(path, **arrays)
    with pytest.raises(SourceError) as caught:
        load_sae(path, 1)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_compression_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.npz"
    np.savez_compressed(path, W_enc=np.zeros((4000, 4000), np.float32))
    with pytest.raises(SourceError, match=r"params\.npz is refused: it says it holds 64 MB"):
        load_sae(path, 1)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", "[" * 10**5, '{"architecture": NaN}', " " * (2**20 + 1)]
)
def test_damaged_configs_are_refused_in_one_line(text: str, tmp_path: Path) -> None:
    folder = tiny.save_saelens(tmp_path, [1])
    (folder / "blocks.1.hook_resid_post" / "cfg.json").write_text(text)
    with pytest.raises(SourceError) as caught:
        load_sae(folder, 1)
    assert "\n" not in str(caught.value)


def test_paths_do_not_leave_their_folder(tmp_path: Path) -> None:
    tiny.save_saelens(tmp_path / "secret", [1])
    inside = tmp_path / "inside"
    inside.mkdir()
    for ref in (f"{inside}/nothing/../x", f"{inside}/blocks.1.hook_resid_post"):
        with pytest.raises(SourceError):
            open_sae(ref)
    assert LocalFiles(inside).names() == frozenset()
    assert RegistryName("a/b", (), "c").repo == "a/b"
