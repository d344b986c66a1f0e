"""Which model and SAEs a request uses, and how they are computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from saescope.arguments import Count, Layer
from saescope.errors import SourceError
from saescope.jobs.named_features import NamedFeature, check_features
from saescope.jobs.reporter import Reporter
from saescope.sources.budget import MODES, Mode, choose_mode
from saescope.sources.catalog import (
    QWEN_SCOPE_NOTICE,
    find_release,
    model_of,
    parse_sae_name,
    releases_for,
)
from saescope.sources.files import open_files
from saescope.sources.job_plan import JobOptions
from saescope.sources.machine import guess_device, parse_bytes
from saescope.sources.prompts import Prompt
from saescope.sources.references import name_in_catalog, plain_ref
from saescope.sources.saes import SaeSource, open_sae

if TYPE_CHECKING:
    import torch

    from saescope.engine.lm import LM
    from saescope.engine.sae import Sae

BYTES_PER_TOKEN = 4  # of prompts, before there is a tokenizer
EMBEDDED_MODEL, EMBEDDED_SAE = "saescope-tiny", "saescope-tiny-sae"
LayerChoice = tuple[Layer, ...] | Literal["all"] | None


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """A model and its SAEs. Default: the embedded pair."""

    model: str | None = None
    "Model: a folder, a hub id (OWNER/NAME or OWNER/NAME@REVISION) or its address."

    sae: str | None = None
    "SAE: a folder, a file, a hub id (a path inside may follow), its address or a registry name."

    layers: LayerChoice = None
    "Layers, such as 0,17,35, or all. Default: the middle layer."

    k: Count | None = None
    "k of a TopK SAE, if it is in neither its name nor its config."

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    "Dtype of the model; auto takes the checkpoint's."

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    "Device; auto takes the best one available."

    batch_tokens: Count = 2048
    "Maximum number of tokens per batch."

    memory: str | None = None
    "Memory budget, such as 8GiB or 500MB. The model is streamed block by block if it needs more."

    offline: bool = False
    "Download nothing: use only local folders and the hub's cache."

    hash_files: bool = False
    "Record the SHA-256 of large local files too, so that verify --full can compare every byte."

    def __post_init__(self) -> None:
        """Replace addresses of the hub by plain ids, so that equal inputs are equal."""
        for field in ("model", "sae"):
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, plain_ref(value))

    @property
    def layer_list(self) -> tuple[int, ...] | None:
        """Explicitly listed layers; None for the default and for `all`."""
        return self.layers if isinstance(self.layers, tuple) else None

    def names(self) -> tuple[str, str]:
        """Return model and SAE, one inferred from the other; raises SourceError if it cannot be."""
        if self.model is None and self.sae is None:
            return EMBEDDED_MODEL, EMBEDDED_SAE
        if self.sae is None:
            return str(self.model), _sae_for(str(self.model))
        return self.model or _model_for(self.sae), self.sae

    def model_name(self) -> str:
        """Return the model of a job that may need no SAE."""
        if self.sae is None:
            return self.model or EMBEDDED_MODEL
        return self.names()[0]

    def load(
        self,
        reporter: Reporter,
        *,
        decoder: bool = False,
        model_layers: Sequence[int] = (),
        prompts: Sequence[Prompt] = (),
        generates: bool = False,
        features: Sequence[NamedFeature] = (),
    ) -> "tuple[LM, list[Sae]]":
        """Load the model, cut after its last requested layer, and its SAEs.

        `decoder` also loads the SAEs' decoders. `model_layers` are layers needed without an SAE.
        A memory budget is compared with what these `prompts` need; a model that `generates` is
        never streamed. Raises ResourceError, with what would fit, if nothing fits the budget, and
        SaescopeError before loading if the SAEs lack one of the `features`.
        """
        _, sae = self.names()
        source, layers = self._open_sae(sae, features)
        streamed = self.memory is not None and self._mode(prompts, generates) == "streamed"
        lm = self.load_model([*layers, *model_layers], reporter, streamed=streamed)
        return lm, _load_saes(source, layers, reporter, decoder=decoder, device=lm.device)

    def load_model(
        self, layers: Sequence[int], reporter: Reporter, *, streamed: bool = False
    ) -> "LM":
        """Load the model alone, cut after the last of these layers."""
        from saescope.engine.lm import load_lm

        with reporter.progress(f"loading {self.model_name()}"):
            return load_lm(
                self.model_name(),
                layers,
                dtype=self.dtype,
                device=self.device,
                offline=self.offline,
                streamed=streamed,
            )

    def model_layers(self) -> tuple[int, ...]:
        """Return the requested layers of a model that is used without an SAE.

        Raises SourceError for a layer that the model does not have.
        """
        from saescope.engine.config import read_config

        files = open_files(self.model_name(), offline=self.offline)
        n_layers = int(read_config(files).text.num_hidden_layers)
        if self.layers == "all":
            return tuple(range(n_layers))
        layers = tuple(sorted(set(self.layer_list or ((n_layers - 1) // 2,))))
        if layers[-1] >= n_layers:
            raise SourceError(f"{files.name} has layers 0-{n_layers - 1}, not {layers[-1]}")
        return layers

    def load_saes(self, reporter: Reporter, features: Sequence[NamedFeature] = ()) -> "list[Sae]":
        """Load the SAEs alone, with their decoders, on the device of the model."""
        from saescope.engine.devices import choose_device

        source, layers = self._open_sae(self.names()[1], features)
        device = choose_device(self.device)
        return _load_saes(source, layers, reporter, decoder=True, device=device)

    def job_options(self, prompts: Sequence[Prompt] = ()) -> JobOptions:
        """Return what `plan` computes sizes from, for these prompts."""
        model, sae = self.names()
        lengths = [max(1, len(p.display_text.encode()) // BYTES_PER_TOKEN) for p in prompts]
        return JobOptions(
            model=model,
            sae=sae,
            layers=self.layers,
            k=self.k,
            dtype=self.dtype,
            device=guess_device() if self.device == "auto" else self.device,
            batch_tokens=self.batch_tokens,
            offline=self.offline,
            budget=parse_bytes(self.memory) if self.memory else None,
            tokens=sum(lengths) if lengths else None,
            longest=max(lengths, default=None),
        )

    def _open_sae(
        self, sae: str, features: Sequence[NamedFeature]
    ) -> tuple[SaeSource, tuple[int, ...]]:
        source = open_sae(sae, k=self.k, offline=self.offline)
        requested = source.layers if self.layers == "all" else self.layer_list
        layers = source.choose_layers(requested)
        check_features(source, layers, self.k, features)
        return source, layers

    def _mode(self, prompts: Sequence[Prompt], generates: bool) -> Mode:
        """Choose how to stay within the memory budget."""
        from saescope.engine.plan import plan_job

        plan = plan_job(self.job_options(prompts))
        modes = MODES[:1] if generates else MODES[1:]
        if plan.sizes is None or plan.budget is None:
            return modes[-1]
        return choose_mode(plan.sizes, plan.budget, modes)


def show_licence(source: SaeSource, reporter: Reporter) -> None:
    """Show Qwen-Scope's notice if these are its weights."""
    path = source.files.name.split("/")
    if find_release(source.files.name) or any(parse_sae_name(part) for part in path):
        reporter.note(QWEN_SCOPE_NOTICE)


def _sae_for(model: str) -> str:
    releases = releases_for(name_in_catalog(model))
    if not releases:
        raise SourceError(f"no SAE is known for {model}: pass sae= too")
    return releases[0].repo


def _model_for(sae: str) -> str:
    model = model_of(name_in_catalog(sae))
    if model is None:
        raise SourceError(f"cannot infer the model of {sae}: pass model= too")
    return model


def _load_saes(
    source: SaeSource,
    layers: Sequence[int],
    reporter: Reporter,
    *,
    decoder: bool,
    device: "torch.device",
) -> "list[Sae]":
    from saescope.engine.load import load_sae

    saes = [load_sae(source, layer, decoder=decoder, device=device) for layer in layers]
    show_licence(source, reporter)
    return saes
