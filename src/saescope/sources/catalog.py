"""Names and specs of models and SAEs. Does no I/O: it knows names, not files."""

import re
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


def _qwen_scope(model: str, d_model: int, width_k: int, ks: tuple[int, ...], n_layers: int) -> list[Release]:
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


def releases_for(model: str) -> tuple[Release, ...]:
    """Releases trained on this model, sparsest first."""
    return tuple(sorted((r for r in RELEASES if r.model == model), key=lambda r: (r.k, r.d_sae)))
