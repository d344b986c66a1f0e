"""Short names for the types of NumPy arrays that pass between files."""

from typing import Any

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Float32s = npt.NDArray[np.float32]
Ints = npt.NDArray[np.integer[Any]]
Indices = npt.NDArray[np.intp]
