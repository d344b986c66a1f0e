"""Named edit sets: ordinary edits files in the server's folder."""

import hashlib
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, final

from saescope.control.edits import Edit, EditSet
from saescope.control.edits_file import read_edits, write_edits
from saescope.errors import EditError
from saescope.surfaces.server.problems import Problem
from saescope.surfaces.server.steering_body import NAME, canonical, plain_edit

_SUFFIX = ".toml"
_NEAREST = 3


@dataclass(frozen=True)
class NamedEdits:
    """A stored edit set."""

    name: str
    edits: tuple[Edit, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as the API shows it."""
        edits = [plain_edit(edit) for edit in self.edits]
        return {"name": self.name, "edits": edits, "fingerprint": fingerprint_of(self.edits)}


def fingerprint_of(edits: tuple[Edit, ...]) -> str:
    """Return what tells edits from other ones: equal edits have equal fingerprints."""
    text = canonical([plain_edit(edit) for edit in edits])
    for edit in edits:
        if edit.direction is not None:
            text += hashlib.sha256(edit.direction.values.tobytes()).hexdigest()
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@final
class EditSets:
    """The edit sets of one server: `NAME.toml` in its folder, for one model and SAE."""

    def __init__(self, folder: Path, model: str, sae: str) -> None:
        self.folder = folder
        self._model, self._sae = model, sae

    def names(self) -> list[str]:
        """Return the names of all stored sets, in order."""
        if not self.folder.is_dir():
            return []
        names = (path.stem for path in self.folder.glob(f"*{_SUFFIX}") if path.is_file())
        return sorted(name for name in names if re.match(NAME, name))

    def get(self, name: str, param: str, status: int = 404) -> NamedEdits:
        """Return a set. Raises Problem, with the nearest names, if there is none."""
        if name not in self.names():
            nearest = get_close_matches(name, self.names(), n=_NEAREST, cutoff=0.4)
            hint = f"nearest: {', '.join(nearest)}" if nearest else "GET /v1/steering lists them"
            raise Problem(
                status, f"no edit set {name!r}: {hint}", param=param, code="edit_set_not_found"
            )
        try:
            return NamedEdits(name, read_edits(self.folder / f"{name}{_SUFFIX}").edits)
        except EditError as error:
            raise Problem(500, f"edit set {name!r}: {error}", kind="server_error") from error

    def put(self, name: str, edits: tuple[Edit, ...]) -> NamedEdits:
        """Store a set, replacing the one of this name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_edits(EditSet(self._model, self._sae, edits), self.folder / f"{name}{_SUFFIX}")
        return NamedEdits(name, edits)

    def delete(self, name: str) -> None:
        """Remove a set; raises Problem if there is none."""
        self.get(name, "name")
        (self.folder / f"{name}{_SUFFIX}").unlink(missing_ok=True)
