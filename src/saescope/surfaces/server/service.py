"""What the server's routes share: the model, its SAEs, the stored edit sets, the scheduler."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, final, get_args

from saescope.control.active_edits import activate
from saescope.control.edits import DEFAULT_STRENGTHS, DIRECTION_OPS, Edit, Gate, Op, Scope
from saescope.control.serving.scheduler import Closing, Scheduler
from saescope.control.serving.work import Work
from saescope.engine.lm import LM
from saescope.engine.sae import Sae
from saescope.errors import EditError
from saescope.jobs.neutral import measured_means
from saescope.jobs.reporter import SILENT
from saescope.sources.neutral_mean import NeutralMean
from saescope.sources.prompt_sets import bundled_prompts
from saescope.surfaces.server.edit_sets import EditSets, fingerprint_of
from saescope.surfaces.server.problems import Problem
from saescope.surfaces.server.steering_body import (
    MOST_EDITS,
    VERSION,
    EditBody,
    SteeringBody,
    plain_edit,
)
from saescope.version import __version__


@dataclass(frozen=True)
class RequestSteering:
    """The edits of one request, and how the reply names them."""

    edits: tuple[Edit, ...] = ()
    names: tuple[str, ...] = ()

    def receipt(self, measured: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return the reply's `steering_receipt`; None if the request asked for no edits."""
        if not self.edits:
            return None
        return {
            "version": VERSION,
            "use": list(self.names),
            "fingerprint": fingerprint_of(self.edits),
            "edits": [plain_edit(edit) for edit in self.edits],
            "measured": measured,
        }


@final
@dataclass(frozen=True)
class Service:
    """A model that is served."""

    name: str
    lm: LM
    saes: Sequence[Sae]
    edit_sets: EditSets
    scheduler: Scheduler

    def models(self) -> list[str]:
        """Return the names that `model` may have: the model, and the model with each edit set."""
        return [self.name, *(f"{self.name}@{name}" for name in self.edit_sets.names())]

    def steering(self, model: str, body: SteeringBody | None) -> RequestSteering:
        """Return the edits of a request. Raises Problem for what cannot be applied."""
        name = self._edit_set_of(model)
        names = [] if name is None else [name]
        if body is not None and not body.enabled:
            if name is not None:
                raise Problem(
                    400,
                    f"model {model!r} has edits, and steering.enabled is false: ask for "
                    f"{self.name!r}",
                    param="steering.enabled",
                )
            return RequestSteering()
        edits = [*self._stored(name, "model")] if name is not None else []
        if body is not None:
            for n, used in enumerate(body.use):
                edits += self._stored(used, f"steering.use[{n}]")
            names += body.use
            edits += self.edits_of(body.edits, "steering.edits")
        if len(edits) > MOST_EDITS:
            raise Problem(400, f"{len(edits)} edits: at most {MOST_EDITS}", param="steering")
        return RequestSteering(tuple(edits), tuple(names))

    def edits_of(self, bodies: Sequence[EditBody], where: str) -> tuple[Edit, ...]:
        """Return the edits of a request. Raises Problem, with its path, for the first invalid one.

        `project` acts about the mean residual, which is measured when it is first needed.
        """
        edits = tuple(body.edit(f"{where}[{n}]") for n, body in enumerate(bodies))
        self.check(edits, where)
        about = [
            edit.op == "project" and body.about == "mean"
            for edit, body in zip(edits, bodies, strict=True)
        ]
        layers = {edit.layer for edit, by_mean in zip(edits, about, strict=True) if by_mean}
        means = self._means(sorted(layers)) if layers else {}
        return tuple(
            replace(edit, about=means[edit.layer]) if by_mean else edit
            for edit, by_mean in zip(edits, about, strict=True)
        )

    def _means(self, layers: Sequence[int]) -> dict[int, NeutralMean]:
        [neutral] = bundled_prompts("neutral")
        try:
            return self.scheduler.call(
                lambda: measured_means(self.lm, layers, neutral.prompts, SILENT)
            )
        except Closing as error:
            raise Problem(503, str(error), kind="server_error") from error

    def check(self, edits: tuple[Edit, ...], param: str) -> None:
        """Raise Problem for the first edit that does not fit the model or its loaded SAEs."""
        for n, edit in enumerate(edits):
            try:
                activate(self.lm, self.saes, [edit], None)
            except EditError as error:
                loaded = ", ".join(str(sae.spec.layer) for sae in self.saes) or "none"
                text = f"{error} (SAEs are loaded of layers {loaded})"
                raise Problem(400, text, param=f"{param}[{n}]") from error

    def work_of(self, ids: Sequence[int], **options: Any) -> Work:
        """Return the work of one reply, refused if it cannot fit."""
        most = self.lm.max_length - len(ids)
        wanted = options["max_new_tokens"]
        if wanted > most:
            raise Problem(
                400,
                f"the prompt has {len(ids):,} tokens, and with {wanted:,} new ones more than the "
                f"model's {self.lm.max_length:,}",
                param="max_tokens",
                code="context_length_exceeded",
            )
        return Work(tuple(ids), **options)

    def capabilities(self) -> dict[str, Any]:
        """Return what can be asked of this server."""
        limits = self.scheduler.limits
        return {
            "version": __version__,
            "steering_version": VERSION,
            "model": self.name,
            "n_layers": self.lm.spec.n_layers,
            "d_model": self.lm.spec.d_model,
            "max_length": self.lm.max_length,
            "chat": bool(getattr(self.lm.tokenizer, "chat_template", None)),
            "saes": [
                {"layer": sae.spec.layer, "d_sae": sae.spec.d_sae, "k": sae.spec.k}
                for sae in self.saes
            ],
            "ops": list(get_args(Op)),
            "direction_ops": list(DIRECTION_OPS),
            "default_strengths": dict(DEFAULT_STRENGTHS),
            "gates": list(get_args(Gate)),
            "scopes": list(get_args(Scope)),
            "limits": {
                "edits_per_request": MOST_EDITS,
                "rows_per_batch": limits.max_batch,
                "waiting_requests": limits.max_waiting,
                "edit_sets_per_batch": limits.max_edit_sets,
            },
        }

    def _stored(self, name: str, param: str) -> tuple[Edit, ...]:
        edits = self.edit_sets.get(name, param, status=400).edits
        try:
            activate(self.lm, self.saes, edits, None)
        except EditError as error:
            raise Problem(400, f"edit set {name!r}: {error}", param=param) from error
        return edits

    def _edit_set_of(self, model: str) -> str | None:
        """Return the edit set that a model's name asks for; raises Problem for an unknown model."""
        if model == self.name:
            return None
        base, separator, name = model.rpartition("@")
        if separator and base == self.name and name in self.edit_sets.names():
            return name
        nearest = get_close_matches(model, self.models(), n=1, cutoff=0.0)
        raise Problem(
            404,
            f"no model {model!r}: this server has {nearest[0]!r}",
            param="model",
            code="model_not_found",
        )
