"""Send any number of images through a model in batches of a fixed size, halved when memory runs out."""

from __future__ import annotations

import numpy as np

from featcache.arrays import Features, Pixels
from featcache.errors import EnvironmentFault, is_out_of_memory


class Batched:
    """Computes images in batches of one size. The last batch is filled up, so that one compiled shape serves all."""

    def __init__(self, name: str, batch: int) -> None:
        self.name = name
        self.batch = batch

    def compute(self, batch: Pixels) -> list[Features]:
        """Return one array per layer for exactly `self.batch` images."""
        raise NotImplementedError

    def resized(self, batch: int) -> None:
        """Prepare for batches of another size."""

    def forward(self, batch: Pixels) -> list[Features]:
        """Return one float32 array per layer for any number of images from 1.

        If memory runs out, the batch is halved for good and the same images are tried again. Raises EnvironmentFault
        if memory cannot hold one image.
        """
        outputs: list[list[Features]] = []
        start = 0
        while start < len(batch):
            images = batch[start : start + self.batch]
            padding = np.zeros((self.batch - len(images), *images.shape[1:]), np.uint8)
            try:
                arrays = self.compute(np.concatenate([images, padding]))
            except Exception as error:
                self._halve(error)
            else:
                outputs.append([array[: len(images)] for array in arrays])
                start += len(images)
        return [np.concatenate(arrays) for arrays in zip(*outputs, strict=True)]

    def _halve(self, error: Exception) -> None:
        """Halve the batch if memory ran out. Raises any other error again."""
        if not is_out_of_memory(error):
            raise error
        if self.batch == 1:
            raise EnvironmentFault(
                f"{self.name} has no memory for even one image. Use `device='cpu'`, a smaller `size` or backbone"
            ) from error
        self.batch //= 2
        self.resized(self.batch)
