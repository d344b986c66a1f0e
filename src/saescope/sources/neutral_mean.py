"""The mean residual over neutral text, about which edits act."""

import hashlib
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from saescope.errors import SourceError


@final
@dataclass(frozen=True, eq=False, repr=False)
class NeutralMean:
    """The mean μ of the residual after `layer` over neutral text, and the spread about it.

    `values` (d_model,) become a read-only float32 copy. `spread` is the root mean square distance
    of residuals from μ over the same positions. Raises SourceError for values that are not 1-D or
    not finite, and for a spread that is not above 0.

    >>> import numpy as np
    >>> import saescope as ss
    >>> mean = ss.NeutralMean(2, np.array([3.0, 4.0]), spread=1.5, positions=120, source="notes")
    >>> mean.norm, mean.to_dict()["positions"]
    (5.0, 120)
    """

    layer: int
    values: npt.NDArray[Any]
    spread: float
    positions: int
    "Number of positions that the mean is over."

    source: str = ""
    "Which texts they belong to."

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float32)
        values.flags.writeable = False
        object.__setattr__(self, "values", values)
        name = f"mean residual of layer {self.layer}"
        if values.ndim != 1 or not np.isfinite(values).all():
            raise SourceError(f"{name}: it must be one vector of finite numbers")
        if not 0 < self.spread < np.inf:
            raise SourceError(f"{name}: its spread must be above 0 and finite, got {self.spread}")
        if self.layer < 0 or self.positions < 1:
            raise SourceError(
                f"{name}: it needs a layer from 0 on and at least one position, "
                f"got {self.positions} positions"
            )

    def __repr__(self) -> str:
        return (
            f"NeutralMean({self.layer}, norm {self.norm:.4g}, spread {self.spread:.4g}, "
            f"{self.positions} positions, sha256 {self._digest[:16]})"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NeutralMean) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def norm(self) -> float:
        """The mean's Euclidean length, computed in float64."""
        return float(np.linalg.norm(self.values.astype(np.float64)))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict: everything but the values, of which it has the SHA-256."""
        return {
            "source": self.source,
            "positions": self.positions,
            "norm": self.norm,
            "spread": self.spread,
            "sha256": self._digest,
        }

    @property
    def _digest(self) -> str:
        return hashlib.sha256(self.values.tobytes()).hexdigest()

    @property
    def _key(self) -> tuple[object, ...]:
        return self.layer, self.values.tobytes(), self.spread, self.positions, self.source
