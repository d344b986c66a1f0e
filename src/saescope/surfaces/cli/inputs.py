"""Options that every command takes, and how they become a model and SAEs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from saescope.errors import PromptError, SourceError
from saescope.sources.budget import Mode, choose_mode
from saescope.sources.catalog import (
    QWEN_SCOPE_NOTICE,
    find_release,
    model_of,
    parse_sae_name,
    releases_for,
)
from saescope.sources.job_plan import JobOptions
from saescope.sources.machine import guess_device, parse_bytes
from saescope.sources.plan import plan_job
from saescope.sources.prompts import PromptSet, read_prompts
from saescope.sources.saes import SaeSource, open_sae
from saescope.store.masking import Masking
from saescope.store.runs import MANIFEST, Run
from saescope.surfaces.cli.show import note, progress

if TYPE_CHECKING:
    from saescope.engine.lm import LM
    from saescope.engine.sae import Sae


EMBEDDED_PAIR = ("saescope-tiny", "saescope-tiny-sae")
# What a manifest says of a run that was made only to compare another one with.
EXTRACT: Mapping[str, Any] = {"verb": "extract", "options": {}}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where model and SAE come from and how they are computed."""

    model: str | None = None
    "Model: a folder or a hub id, OWNER/NAME or OWNER/NAME@REVISION. Left out with --sae: the embedded pair."

    sae: str | None = None
    "SAE: a folder, a file, a hub id or a registry name, of any format that is known; a path within may follow."

    layers: str | None = None
    "Layers, as 0,17,35 or all; the middle one when left out."

    k: int | None = None
    "The SAE's own number of features a token, where neither its name nor a cfg.json says it."

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    "Compute the model in this dtype; auto takes the checkpoint's."

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    "Compute on this device; auto takes the best one there is."

    batch_tokens: int = 2048
    "Tokens in one batch at most."

    memory: str | None = None
    "Memory the job may take, as 8GiB or 500MB: the model is streamed, a block at a time, where it would take more."

    offline: bool = False
    "Fetch nothing: only local folders and the hub's cache."

    def load(self, *, decoder: bool = False, alone: Sequence[int] = ()) -> "tuple[LM, list[Sae]]":
        """The model cut after its last wanted layer, and its SAEs, without their decoders unless asked for.

        Layers `alone` are the model's, wanted without an SAE.
        """
        from saescope.engine.lm import load_lm

        model, sae = self.names()
        source, layers = self._open(sae)
        streamed = self.memory is not None and self._mode(model, sae, layers) == "streamed"
        wanted = [*layers, *alone]
        lm = load_lm(
            model,
            wanted,
            dtype=self.dtype,
            device=self.device,
            offline=self.offline,
            streamed=streamed,
        )
        return lm, _load_saes(source, layers, decoder, lm.device)

    def load_saes(self) -> "list[Sae]":
        """The SAEs alone, with their decoders, where the model runs."""
        from saescope.engine.devices import choose_device

        return _load_saes(*self._open(self.names()[1]), True, choose_device(self.device))

    def _open(self, sae: str) -> tuple[SaeSource, tuple[int, ...]]:
        source = open_sae(sae, k=self.k, offline=self.offline)
        return source, source.choose_layers(
            source.layers if self.layers == "all" else parse_layers(self.layers)
        )

    def load_model(self, layers: Sequence[int]) -> "LM":
        """The model cut after the last of these layers, without an SAE."""
        from saescope.engine.lm import load_lm

        return load_lm(
            self.model_name(), layers, dtype=self.dtype, device=self.device, offline=self.offline
        )

    def model_name(self) -> str:
        """The model, where no SAE is needed."""
        return self.model or (EMBEDDED_PAIR[0] if self.sae is None else self.names()[0])

    def asked(
        self, model: str, sae: str, layers: Sequence[int] | Literal["all"] | None
    ) -> JobOptions:
        """The job as `plan` takes it."""
        return JobOptions(
            model=model,
            sae=sae,
            layers=layers,
            k=self.k,
            dtype=self.dtype,
            device=guess_device() if self.device == "auto" else self.device,
            batch_tokens=self.batch_tokens,
            offline=self.offline,
            budget=parse_bytes(self.memory) if self.memory else None,
        )

    def _mode(self, model: str, sae: str, layers: Sequence[int]) -> Mode:
        """How the job stays within its memory; raises ResourceError, with what would fit, where it cannot."""
        planned = plan_job(self.asked(model, sae, layers))
        if planned.sizes is None or planned.budget is None:
            return "streamed"
        return choose_mode(planned.sizes, planned.budget, ("cut", "streamed"))

    def names(self) -> tuple[str, str]:
        """Model and SAE, one found from the other where it is left out; raises SourceError where it cannot be."""
        if self.model is None and self.sae is None:
            return EMBEDDED_PAIR
        if self.sae is None:
            known = releases_for(str(self.model).partition("@")[0])
            if not known:
                raise SourceError(f"no SAE is known for {self.model}: give one with --sae")
            return str(self.model), known[0].repo
        if self.model is None:
            model = model_of(self.sae.partition("@")[0])
            if model is None:
                raise SourceError(
                    f"which model belongs to {self.sae} is not known: give it with --model"
                )
            return model, self.sae
        return self.model, self.sae


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Masks:
    """Which positions count."""

    keep_pos0: Annotated[bool, Parameter(negative="")] = False
    "Count position 0 too."

    keep_sinks: Annotated[bool, Parameter(negative="")] = False
    "Count sinks too."

    sink_ratio: float = 10.0
    "A sink's norm is over this many medians of its layer."

    last: int | None = None
    "Count only this many positions at the end of each prompt: of a chat, what stands after the request."

    def masking(self) -> Masking:
        """The rules as the store applies them; raises PromptError for a ratio that makes every position a sink."""
        masking = Masking(self.keep_pos0, self.keep_sinks, self.sink_ratio, self.last)
        masking.check()
        return masking


def _load_saes(source: SaeSource, layers: Sequence[int], decoder: bool, device: Any) -> "list[Sae]":
    from saescope.engine.load import load_sae

    saes = [load_sae(source, layer, decoder=decoder, device=device) for layer in layers]
    show_licence(source)
    return saes


def show_licence(source: SaeSource) -> None:
    """Qwen-Scope's notice, where its weights are used."""
    if find_release(source.files.name) or any(map(parse_sae_name, source.files.name.split("/"))):
        note(QWEN_SCOPE_NOTICE)


def parse_layers(text: str | None) -> list[int] | None:
    """`0,17,35` as numbers; raises SourceError on anything else."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise SourceError(
            f"--layers {text!r} is neither numbers such as 0,17,35 nor all"
        ) from error


def is_run(path: str) -> bool:
    """Whether this is the directory of a run."""
    return (Path(path).expanduser() / MANIFEST).is_file()


def obtain_run(
    sets: str,
    inputs: Inputs,
    out: Path | None,
    command: Mapping[str, Any],
    *,
    compared: Masking | None = None,
    check: Callable[[Sequence[str]], object] | None = None,
    errors: bool = False,
) -> Run:
    """The run at this path, or the run of these prompt sets, computed unless it is already there.

    `command` is what its manifest will say was asked; with `errors` it keeps reconstruction errors. Where the sets are
    to be `compared` under these rules, what cannot be is refused before anything is computed.
    """
    if is_run(sets):
        return Run.open(Path(sets).expanduser())
    prompts = read_prompts(sets)
    if check:
        check([group.name for group in prompts])
    if compared and len(prompts) < 2:
        raise PromptError(f"{sets} has one set ({prompts[0].name}): add another to compare it with")
    lm, saes = inputs.load(decoder=errors)
    if compared and not compared.keep_pos0:
        from saescope.engine.tokens import refuse_single_tokens

        refuse_single_tokens(lm, prompts)
    return run_of(
        lm,
        saes,
        prompts,
        Path(sets).resolve().stem,
        inputs.batch_tokens,
        out,
        command,
        errors=errors,
    )


def run_of(
    lm: "LM",
    saes: "Sequence[Sae]",
    sets: Sequence[PromptSet],
    name: str,
    batch_tokens: int,
    out: Path | None,
    command: Mapping[str, Any],
    *,
    errors: bool = False,
) -> Run:
    """Extract these sets into `out`, or into runs/NAME-HASH, named by the hash of what makes it."""
    from saescope.engine.extract import extract, job

    if out is None:
        out = (
            Path("runs")
            / f"{name}-{job(lm, saes, sets, batch_tokens, errors=errors).fingerprint[:12]}"
        )
    with progress("features") as advance:
        return extract(
            lm,
            saes,
            sets,
            out,
            batch_tokens=batch_tokens,
            errors=errors,
            command=command,
            progress=advance,
        )
