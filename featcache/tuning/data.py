"""Images as training batches: decoded once and kept while they fit, decoded again for every epoch if not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featcache.arrays import Classes, Pixels
from featcache.assembly.certificate import load_pixels
from featcache.spec import ImageRow, Preprocess

KEEP_BYTES = 512 * 2**20


@dataclass
class ImageSet:
    """Labelled images of one split."""

    root: Path
    rows: Sequence[ImageRow]
    labels: Classes  # (N,)
    preprocess: Preprocess
    _kept: Pixels | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, order: Classes, size: int) -> Iterator[tuple[Pixels, Classes]]:
        """Yield (n, size, size, 3) uint8 and (n,) labels in this order, decoding one batch ahead."""
        self._keep()
        chunks = [order[at : at + size] for at in range(0, len(order), size)]
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self._pixels, chunks[0])
            for number, chunk in enumerate(chunks):
                pixels = coming.result()
                if number + 1 < len(chunks):
                    coming = ahead.submit(self._pixels, chunks[number + 1])
                yield pixels, self.labels[chunk]

    def _keep(self) -> None:
        needed = len(self.rows) * self.preprocess.size**2 * 3
        if self._kept is None and needed <= KEEP_BYTES:
            self._kept = load_pixels(self.root, self.rows, self.preprocess)

    def _pixels(self, at: Classes) -> Pixels:
        if self._kept is not None:
            return self._kept[at]
        return load_pixels(self.root, [self.rows[number] for number in at], self.preprocess)


def in_order(images: ImageSet) -> Classes:
    """Return 0..N-1."""
    return np.arange(len(images))
