"""/v1/models, /v1/capabilities, and the stored edit sets of /v1/steering."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from saescope.surfaces.server.service import Service
from saescope.surfaces.server.steering_body import NAME, EditSetBody

_Name = Annotated[str, Path(pattern=NAME, description="Name of an edit set.")]


class ModelRow(BaseModel):
    """A name that `model` may have."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "saescope"


class ModelList(BaseModel):
    """All names that `model` may have."""

    object: str = "list"
    data: list[ModelRow]


class StoredEdits(BaseModel):
    """A named edit set."""

    name: str
    edits: list[dict[str, Any]] = Field(description="The edits, defaults filled in.")
    fingerprint: str = Field(description="Equal edits have equal fingerprints.")


def steering_router(service: Service) -> APIRouter:
    """Return the routes about models and edit sets."""
    router = APIRouter(tags=["steering"])

    @router.get("/v1/models")
    def models() -> ModelList:
        """List the model, and the model with each stored edit set (`MODEL@NAME`)."""
        return ModelList(data=[ModelRow(id=name) for name in service.models()])

    @router.get("/v1/capabilities")
    def capabilities() -> dict[str, Any]:
        """Say which layers, ops, gates and scopes there are, and the limits."""
        return service.capabilities()

    @router.get("/v1/steering")
    def edit_sets() -> list[StoredEdits]:
        """List the stored edit sets."""
        stored = (service.edit_sets.get(name, "name") for name in service.edit_sets.names())
        return [StoredEdits(**one.to_dict()) for one in stored]

    @router.get("/v1/steering/{name}")
    def edit_set(name: _Name) -> StoredEdits:
        """Show one edit set."""
        return StoredEdits(**service.edit_sets.get(name, "name").to_dict())

    @router.put("/v1/steering/{name}")
    async def put_edit_set(name: _Name, body: EditSetBody) -> StoredEdits:
        """Store an edit set; one of this name is replaced."""
        edits = await asyncio.to_thread(service.edits_of, body.edits, "edits")
        stored = await asyncio.to_thread(service.edit_sets.put, name, edits)
        return StoredEdits(**stored.to_dict())

    @router.delete("/v1/steering/{name}", status_code=204)
    def delete_edit_set(name: _Name) -> None:
        """Remove an edit set."""
        service.edit_sets.delete(name)

    return router
