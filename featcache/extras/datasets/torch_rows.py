"""A map-style dataset of PyTorch, which asks for no base class: a length and samples by their numbers.

The class stands in a module, so that the workers of a DataLoader can unpickle it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featcache.arrays import Features
from featcache.cache.labelled import LabelledRows


class TorchRows:
    """Samples (features (D,) float32, class index). `class_names[index]` is the name of a class."""

    def __init__(self, rows: LabelledRows) -> None:
        self._rows = rows
        self.class_names = list(rows.class_names)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> tuple[Features, int]:
        """Return one sample. A DataLoader calls `__getitems__` instead."""
        if not -len(self) <= number < len(self):
            raise IndexError(f"There are {len(self)} images; got number {number}")
        [sample] = self.__getitems__([number])
        return sample

    def __getitems__(self, numbers: Sequence[int]) -> list[tuple[Features, int]]:
        """Return the samples of a batch, read from the file at once."""
        features, classes = self._rows.read(np.array(numbers, np.int64))
        return list(zip(features, classes.tolist(), strict=True))
