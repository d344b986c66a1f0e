"""Names and specs of models and SAEs. Does no I/O: it knows names, not files."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from saescope.errors import SourceError

Format = Literal[
    "qwen-scope", "saelens", "sparsify", "dictionary-learning", "gemma-scope", "llama-scope"
]

QWEN_SCOPE_NOTICE = (
    "Qwen-Scope weights are under the Qwen licence (license: other, license_name: qwen); its "
    "report asks that they not be used to interfere with a model's capabilities outside "
    "scientific research."
)


class Feature(NamedTuple):
    """One feature of an SAE: its layer and its 0-based id, written `17/23991`.

    >>> import saescope as ss
    >>> feature = ss.Feature.parse("17/23991")
    >>> feature.layer, feature.id
    (17, 23991)
    >>> str(feature)
    '17/23991'
    """

    layer: int
    id: int

    def __str__(self) -> str:
        return f"{self.layer}/{self.id}"

    @classmethod
    def parse(cls, text: str) -> "Feature":
        """Read `LAYER/ID`; raises SourceError on anything else."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
        if match is None:
            raise SourceError(f"feature {text!r:.60} is not LAYER/ID, for instance 17/23991")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class ModelSpec:
    """Which model: its name or path, the revision it was read at, and its size."""

    repo: str
    revision: str | None
    n_layers: int
    d_model: int
    fingerprint: str


@dataclass(frozen=True)
class SaeSpec:
    """Which SAE: one layer of a release, its sizes, activation, and the fingerprint of its file.

    `k` is the number of active features per token of a TopK SAE, and None for an SAE with
    thresholds. `path` locates the SAE within the release if the layer alone does not.
    """

    release: str
    revision: str | None
    layer: int
    d_model: int
    d_sae: int
    k: int | None
    activation: str
    trained_on: str | None
    fingerprint: str
    format: str = "qwen-scope"
    path: str = ""


@dataclass(frozen=True)
class Release:
    """A published family of SAEs: one file per layer, all of one width and k."""

    repo: str
    model: str
    d_model: int
    d_sae: int
    k: int
    n_layers: int

    @property
    def slug(self) -> str:
        """The registry name other tools use, e.g. `qwen-scope-3-8b-base-w64k-l50`."""
        model = self.model.removeprefix("Qwen/Qwen").lower()
        return f"qwen-scope-{model}-w{self.d_sae // 1024}k-l{self.k}"

    @property
    def layer_bytes(self) -> int:
        """Size of the four fp32 tensors of one layer, in bytes."""
        return 4 * (2 * self.d_sae * self.d_model + self.d_sae + self.d_model)


def _qwen_scope(
    model: str, d_model: int, width_k: int, ks: tuple[int, ...], n_layers: int
) -> list[Release]:
    return [
        Release(
            repo=f"Qwen/SAE-Res-{model}-W{width_k}K-L0_{k}",
            model=f"Qwen/{model}",
            d_model=d_model,
            d_sae=width_k * 1024,
            k=k,
            n_layers=n_layers,
        )
        for k in ks
    ]


RELEASES: tuple[Release, ...] = (
    *_qwen_scope("Qwen3-1.7B-Base", 2048, 32, (50, 100), 28),
    *_qwen_scope("Qwen3-8B-Base", 4096, 64, (50, 100), 36),
    *_qwen_scope("Qwen3.5-2B-Base", 2048, 32, (50, 100), 24),
    *_qwen_scope("Qwen3.5-9B-Base", 4096, 64, (50, 100), 32),
    *_qwen_scope("Qwen3.5-27B", 5120, 80, (50, 100), 64),
    *_qwen_scope("Qwen3-30B-A3B-Base", 2048, 32, (50,), 48),
    *_qwen_scope("Qwen3-30B-A3B-Base", 2048, 128, (100,), 48),
    *_qwen_scope("Qwen3.5-35B-A3B-Base", 2048, 32, (50,), 40),
    *_qwen_scope("Qwen3.5-35B-A3B-Base", 2048, 128, (100,), 40),
)

_LAYER_FILE = re.compile(r"layer(\d+)\.sae\.pt")
_NAME = re.compile(r"SAE-Res-(?P<model>.+)-W(?P<width>\d+)K-L0_(?P<k>\d+)")


class SaeName(NamedTuple):
    """The parts of a name `SAE-Res-{model}-W{width}K-L0_{k}`."""

    model: str
    d_sae: int
    k: int


def parse_sae_name(name: str) -> SaeName | None:
    """The parts of a folder's or repository's name, or None if it is not a Qwen-Scope name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return SaeName(match["model"], int(match["width"]) * 1024, int(match["k"]))


def layer_file(layer: int) -> str:
    """The file name of one layer of a Qwen-Scope SAE."""
    return f"layer{layer}.sae.pt"


def layer_of(name: str) -> int | None:
    """The layer of a Qwen-Scope file, or None for any other file name."""
    match = _LAYER_FILE.fullmatch(name)
    return int(match[1]) if match else None


def find_release(name: str) -> Release | None:
    """The Qwen-Scope release with this repository id or registry name, or None."""
    for release in RELEASES:
        if name in (release.repo, release.slug):
            return release
    return None


def releases_for(model: str) -> tuple[Release, ...]:
    """Releases trained on this model, sparsest first."""
    releases = [release for release in RELEASES if release.model == model]
    return tuple(sorted(releases, key=lambda release: (release.k, release.d_sae)))


class RegistryName(NamedTuple):
    """An entry of SAELens' registry: a repository, parts of the path within it, and the model."""

    repo: str
    parts: tuple[str, ...]
    model: str


_GEMMA_SCOPE = re.compile(
    r"gemma-scope-(?P<size>2b|9b|27b)-(?P<tune>pt|it)-(?P<site>res|att|mlp)"
    r"(?P<canonical>-canonical)?"
)
_GEMMA_SCOPE_2 = re.compile(
    r"gemma-scope-2-(?P<size>270m|1b|4b|12b|27b)-(?P<tune>pt|it)"
    r"(-(?P<site>res|att|mlp|transcoders)(?P<all>-all)?)?"
)
_LLAMA_SCOPE = re.compile(r"llama_scope_lx(?P<site>[ram])_(?P<times>8|32)x")
_LLAMA_SCOPE_ID = re.compile(r"l(?P<layer>\d+)(?P<site>[ram])_(?P<times>\d+x)")
_LLAMA_SCOPE_REPO = re.compile(r"Llama3_1-8B-Base-L(X|\d+)[RAM]-\d+x")
_LLAMA = "meta-llama/Llama-3.1-8B"
_SITES = {"res": "resid_post", "att": "attn_out", "mlp": "mlp_out", "transcoders": "transcoder"}


def parse_registry_name(name: str) -> RegistryName | None:
    """A registry name, with or without an SAE's id after a slash; None for any other name."""
    release, _, sae_id = name.partition("/")
    path = tuple(part for part in sae_id.split("/") if part)
    families = (_parse_qwen_scope, _parse_gemma_scope, _parse_gemma_scope_2, _parse_llama_scope)
    for parse in families:
        if parsed := parse(release, path):
            return parsed
    return None


def _parse_qwen_scope(name: str, path: tuple[str, ...]) -> RegistryName | None:
    release = find_release(name)
    if release is None or release.slug != name:
        return None
    return RegistryName(release.repo, tuple(f"{part}.sae.pt" for part in path), release.model)


def _parse_gemma_scope(name: str, path: tuple[str, ...]) -> RegistryName | None:
    match = _GEMMA_SCOPE.fullmatch(name)
    if match is None:
        return None
    if match["canonical"]:
        path = (*path, "canonical")
    repo = f"google/{name.removesuffix('-canonical')}"
    return RegistryName(repo, path, _gemma_2(match))


def _parse_gemma_scope_2(name: str, path: tuple[str, ...]) -> RegistryName | None:
    match = _GEMMA_SCOPE_2.fullmatch(name)
    if match is None or match["site"] is None:
        return None
    folder = _SITES[match["site"]]
    if match["all"]:
        folder += "_all"
    parts = (folder, *(part for part in path if part != folder))
    repo = f"google/gemma-scope-2-{match['size']}-{match['tune']}"
    return RegistryName(repo, parts, _gemma_3(match))


def _parse_llama_scope(name: str, path: tuple[str, ...]) -> RegistryName | None:
    match = _LLAMA_SCOPE.fullmatch(name)
    if match is None:
        return None
    repo = f"fnlp/Llama3_1-8B-Base-LX{match['site'].upper()}-{match['times']}x"
    return RegistryName(repo, tuple(map(_llama_scope_folder, path)), _LLAMA)


def _llama_scope_folder(sae_id: str) -> str:
    """The folder of an SAE's id: `l15r_8x` is in `Llama3_1-8B-Base-L15R-8x`."""
    if match := _LLAMA_SCOPE_ID.fullmatch(sae_id):
        sae_id = f"L{match['layer']}{match['site'].upper()}-{match['times']}"
    return f"Llama3_1-8B-Base-{sae_id}"


def model_of(name: str) -> str | None:
    """The model that the SAEs of a release or repository were trained on, or None if unknown."""
    parts = name.partition("@")[0].split("/")
    release = find_release(parts[0]) or find_release("/".join(parts[:2]))
    if release is not None:
        return release.model
    if len(parts) > 1 and parts[0] in ("google", "fnlp"):
        parts = parts[1:]
    if match := _GEMMA_SCOPE.fullmatch(parts[0]):
        return _gemma_2(match)
    if match := _GEMMA_SCOPE_2.fullmatch(parts[0]):
        return _gemma_3(match)
    if _LLAMA_SCOPE.fullmatch(parts[0]) or _LLAMA_SCOPE_REPO.fullmatch(parts[0]):
        return _LLAMA
    return None


def _gemma_2(match: re.Match[str]) -> str:
    model = f"google/gemma-2-{match['size']}"
    return f"{model}-it" if match["tune"] == "it" else model


def _gemma_3(match: re.Match[str]) -> str:
    model = f"google/gemma-3-{match['size']}"
    if match["size"] == "270m" and match["tune"] == "pt":  # published without the suffix
        return model
    return f"{model}-{match['tune']}"


def canonical_folders(folders: Iterable[str]) -> set[str]:
    """Gemma Scope's canonical SAEs: per parent, the folder `average_l0_N` with N nearest to 100."""
    nearest: dict[str, tuple[int, str]] = {}
    for folder in folders:
        parent, _, last = folder.rpartition("/")
        match = re.fullmatch(r"average_l0_(\d+)", last)
        if match is None:
            continue
        candidate = (abs(int(match[1]) - 100), folder)
        nearest[parent] = min(nearest.get(parent, candidate), candidate)
    return {folder for _, folder in nearest.values()}
