"""The arrays that pass between rooms, by shape and type."""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Features = npt.NDArray[np.float32]  # (N, D)
Classes = npt.NDArray[np.int64]  # (N,)
Pixels = npt.NDArray[np.uint8]  # (H, W, 3) or (N, H, W, 3)
