"""Any number of images through something that computes a fixed number at once, fewer of them when memory runs out."""

from __future__ import annotations

import numpy as np

from featcache.arrays import Features, Pixels
from featcache.errors import EnvironmentFault

# How TensorFlow, JAX, PyTorch, OpenVINO and Python call it, in the name or the message of what they raise
OUT_OF_MEMORY = ("resourceexhausted", "resource_exhausted", "outofmemory", "out of memory", "memoryerror", "bad_alloc")


class Batched:
    """Computes images in batches of one size, the last filled up: one compiled shape serves all."""

    def __init__(self, name: str, batch: int) -> None:
        self.name, self.batch = name, batch

    def compute(self, batch: Pixels) -> list[Features]:
        """Return one array per layer for exactly `self.batch` images."""
        raise NotImplementedError

    def resized(self, batch: int) -> None:
        """Get ready for batches of another size."""

    def forward(self, batch: Pixels) -> list[Features]:
        """Return one float32 array per layer for any number of images from 1.

        Out of memory, the size is halved for good and the same images are tried again; EnvironmentFault at one image.
        """
        done: list[list[Features]] = []
        start = 0
        while start < len(batch):
            some = batch[start : start + self.batch]
            filled = np.concatenate([some, np.zeros((self.batch - len(some), *some.shape[1:]), np.uint8)])
            try:
                done.append([array[: len(some)] for array in self.compute(filled)])
            except Exception as error:
                self._halve(error)
            else:
                start += len(some)
        return [np.concatenate(arrays) for arrays in zip(*done, strict=True)]

    def _halve(self, error: Exception) -> None:
        said = f"{type(error).__name__} {error}".lower()
        if not any(words in said for words in OUT_OF_MEMORY):
            raise error
        if self.batch == 1:
            raise EnvironmentFault(
                f"{self.name} has no memory for even one image. Use --device cpu, a smaller --size or backbone"
            ) from error
        self.batch //= 2
        self.resized(self.batch)
