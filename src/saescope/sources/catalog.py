"""Names and specs of models and SAEs. Does no I/O: it knows names, not files."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from saescope.errors import SourceError

QWEN_SCOPE_NOTICE = (
    "Qwen-Scope weights are under the Qwen licence (license: other, license_name: qwen); its report asks that they "
    "not be used to interfere with a model's capabilities outside scientific research."
)


class Feature(NamedTuple):
    """One SAE dimension: a layer and a 0-based id, written `17/23991`."""

    layer: int
    id: int

    def __str__(self) -> str:
        return f"{self.layer}/{self.id}"

    @classmethod
    def parse(cls, text: str) -> "Feature":
        """Read `LAYER/ID`; raises SourceError on anything else."""
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if match is None:
            raise SourceError(f"feature {text!r} is not LAYER/ID, for instance 17/23991")
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
    """Which SAE: one layer of a release, its sizes, its activation, and the file it came from.

    k is its own number of features a token, where it has one: with a threshold instead the number varies. `path` is
    where in the release it lies, as far as the layer alone does not say it.
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
    """One published family of SAEs: a file a layer, all of one width and k."""

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
    """What the grammar `SAE-Res-{model}-W{width}K-L0_{k}` says."""

    model: str
    d_sae: int
    k: int


def parse_sae_name(name: str) -> SaeName | None:
    """Read one path component or repository name by the grammar; None where it does not follow it."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return SaeName(match["model"], int(match["width"]) * 1024, int(match["k"]))


def layer_file(layer: int) -> str:
    """The file of one layer of a Qwen-Scope SAE."""
    return f"layer{layer}.sae.pt"


def layer_of(name: str) -> int | None:
    """The layer a file name stands for, or None if it is no layer file."""
    match = _LAYER_FILE.fullmatch(name)
    return int(match[1]) if match else None


def find_release(name: str) -> Release | None:
    """The release of this repository id or registry name, if it is one we know."""
    return next((r for r in RELEASES if name in (r.repo, r.slug)), None)


class RegistryName(NamedTuple):
    """What a registry name of SAELens stands for: a repository, parts of the path within, and the model."""

    repo: str
    parts: tuple[str, ...]
    model: str


_GEMMA_SCOPE = re.compile(
    r"gemma-scope-(?P<size>2b|9b|27b)-(?P<tune>pt|it)-(?P<site>res|att|mlp)(?P<canonical>-canonical)?"
)
_GEMMA_SCOPE_2 = re.compile(
    r"gemma-scope-2-(?P<size>270m|1b|4b|12b|27b)-(?P<tune>pt|it)(-(?P<site>res|att|mlp|transcoders)(?P<all>-all)?)?"
)
_LLAMA_SCOPE = re.compile(r"llama_scope_lx(?P<site>[ram])_(?P<times>8|32)x")
_LLAMA_SCOPE_REPO = re.compile(r"Llama3_1-8B-Base-L(X|\d+)[RAM]-\d+x")
_LLAMA = "meta-llama/Llama-3.1-8B"
_SITES = {"res": "resid_post", "att": "attn_out", "mlp": "mlp_out", "transcoders": "transcoder"}


def parse_registry_name(name: str) -> RegistryName | None:
    """What a registry name, perhaps with an SAE's id after a slash, stands for; None where it follows no grammar."""
    release, _, rest = name.partition("/")
    inner = tuple(filter(None, rest.split("/")))
    if known := next((r for r in RELEASES if r.slug == release), None):
        return RegistryName(known.repo, tuple(f"{part}.sae.pt" for part in inner), known.model)
    if match := _GEMMA_SCOPE.fullmatch(release):
        repo = f"google/{release.removesuffix('-canonical')}"
        return RegistryName(
            repo, (*inner, "canonical") if match["canonical"] else inner, str(model_of(release))
        )
    if (match := _GEMMA_SCOPE_2.fullmatch(release)) and match["site"]:
        folder = _SITES[match["site"]] + ("_all" if match["all"] else "")
        repo = f"google/gemma-scope-2-{match['size']}-{match['tune']}"
        return RegistryName(
            repo, (folder, *(part for part in inner if part != folder)), str(model_of(release))
        )
    if match := _LLAMA_SCOPE.fullmatch(release):
        ids = [
            re.sub(r"^l(\d+)([ram])_(\d+x)$", lambda m: f"L{m[1]}{m[2].upper()}-{m[3]}", part)
            for part in inner
        ]
        repo = f"fnlp/Llama3_1-8B-Base-LX{match['site'].upper()}-{match['times']}x"
        return RegistryName(repo, tuple(f"Llama3_1-8B-Base-{part}" for part in ids), _LLAMA)
    return None


def model_of(name: str) -> str | None:
    """The model a release, or a repository of Gemma or Llama Scope, was trained on; None where no name says it."""
    parts = name.partition("@")[0].split("/")
    if release := find_release(parts[0]) or find_release("/".join(parts[:2])):
        return release.model
    last = name.partition("@")[0].removeprefix("google/").removeprefix("fnlp/").split("/")[0]
    if match := _GEMMA_SCOPE.fullmatch(last):
        return f"google/gemma-2-{match['size']}{'-it' if match['tune'] == 'it' else ''}"
    if match := _GEMMA_SCOPE_2.fullmatch(last):
        small = match["size"] == "270m" and match["tune"] == "pt"  # published without the suffix
        return f"google/gemma-3-{match['size']}{'' if small else '-' + match['tune']}"
    return _LLAMA if _LLAMA_SCOPE.fullmatch(last) or _LLAMA_SCOPE_REPO.fullmatch(last) else None


def canonical_folders(folders: Iterable[str]) -> set[str]:
    """Of folders `…/average_l0_N`, in each parent the one with N nearest to 100: Gemma Scope's canonical SAEs."""
    found: dict[str, tuple[int, str]] = {}
    for folder in folders:
        above, _, last = folder.rpartition("/")
        if match := re.fullmatch(r"average_l0_(\d+)", last):
            found[above] = min(found.get(above, (10**9, "")), (abs(int(match[1]) - 100), folder))
    return {folder for _, folder in found.values()}


def releases_for(model: str) -> tuple[Release, ...]:
    """Releases trained on this model, sparsest first."""
    return tuple(sorted((r for r in RELEASES if r.model == model), key=lambda r: (r.k, r.d_sae)))
