"""The field `steering` of a request. Version 1. Nothing in it is ignored: what cannot be applied
is refused."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from saescope.control.about import About, about_name
from saescope.control.edits import Edit, Gate, Op, Scope, edit_from_values
from saescope.errors import EditError, SourceError
from saescope.surfaces.server.problems import Problem

VERSION = 1
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MOST_EDITS = 256


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class EditBody(_Strict):
    """One change to the residual after a layer, along a feature's decoder column."""

    feature: str = Field(description="The feature to edit, LAYER/ID.", examples=["2/412"])
    op: Op = Field("scale", description="What is done with the feature.")
    strength: int | float | None = Field(
        None, description="How much, in the op's own units; null is the op's default."
    )
    gate: Gate = Field("relu", description="Which rule decides whether the feature is active.")
    scope: Scope = Field("all", description="Positions to edit.")
    skip_sinks: bool = Field(True, description="Leave attention sinks unedited.")
    about: About = Field(
        "mean",
        description="project only: remove what differs from the mean residual over neutral text, "
        "or all of the direction's component (zero).",
    )
    when: str | None = Field(
        None,
        description="Edit only positions where another feature is active.",
        examples=["1/30 > 0.5"],
    )

    def edit(self, path: str) -> Edit:
        """Return the edit, about zero. Raises Problem naming `path` if it has an invalid value."""
        try:
            return edit_from_values(self.model_dump(exclude={"about"}))
        except (EditError, SourceError) as error:
            raise Problem(400, str(error), param=path) from error


class SteeringBody(_Strict):
    """Edits of one request."""

    version: Literal[1] = Field(1, description="Version of this object.")
    use: Annotated[list[Annotated[str, Field(pattern=NAME)]], Field(max_length=16)] = Field(
        default=[], description="Names of stored edit sets, applied together."
    )
    edits: Annotated[list[EditBody], Field(max_length=MOST_EDITS)] = Field(
        default=[], description="Edits of this request only."
    )
    enabled: bool = Field(True, description="false: as if `steering` were not there.")
    trace: bool = Field(
        False, description="Add to the receipt what happened at each generated token."
    )


class EditSetBody(_Strict):
    """A named set of edits."""

    edits: Annotated[list[EditBody], Field(min_length=1, max_length=MOST_EDITS)]


def plain_edit(edit: Edit) -> dict[str, Any]:
    """Return an edit as it is applied, defaults filled in."""
    return {
        "feature" if edit.feature is not None else "direction": edit.name,
        "op": edit.op,
        "strength": edit.amount,
        "gate": edit.gate,
        "scope": edit.scope,
        "skip_sinks": edit.skip_sinks,
        "about": about_name(edit),
        "when": None if edit.condition is None else str(edit.condition),
    }


def canonical(values: Sequence[Mapping[str, Any]]) -> str:
    """Return the text that an edit set's fingerprint is made of."""
    return json.dumps(list(values), sort_keys=True, separators=(",", ":"))
