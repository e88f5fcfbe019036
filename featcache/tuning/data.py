"""Images as training batches: decoded once and kept while they fit, decoded again for every epoch if not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from featcache.arrays import Classes, Pixels
from featcache.assembly.certificate import load_pixels
from featcache.extraction.pipeline import num_threads
from featcache.images.sources import Source
from featcache.spec import ImageRow, Preprocess

KEEP_BYTES = 512 * 2**20


@dataclass
class ImageSet:
    """Labelled images of one split."""

    source: Source
    rows: Sequence[ImageRow]
    labels: Classes  # (N,)
    preprocess: Preprocess
    _kept: Pixels | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, order: Classes, size: int) -> Iterator[tuple[Pixels, Classes]]:
        """Yield (n, size, size, 3) uint8 and (n,) labels in this order; threads decode one batch ahead."""
        chunks = [order[at : at + size] for at in range(0, len(order), size)]
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(num_threads()) as threads:
            self._keep(threads)
            coming = ahead.submit(self._pixels, chunks[0], threads)
            for number, chunk in enumerate(chunks):
                pixels = coming.result()
                if number + 1 < len(chunks):
                    coming = ahead.submit(self._pixels, chunks[number + 1], threads)
                yield pixels, self.labels[chunk]

    def _keep(self, threads: Executor) -> None:
        needed = len(self.rows) * self.preprocess.size**2 * 3
        if self._kept is None and needed <= KEEP_BYTES:
            self._kept = load_pixels(self.source, self.rows, self.preprocess, threads)

    def _pixels(self, at: Classes, threads: Executor) -> Pixels:
        if self._kept is not None:
            return self._kept[at]
        return load_pixels(self.source, [self.rows[number] for number in at], self.preprocess, threads)


def in_order(images: ImageSet) -> Classes:
    """Return 0..N-1."""
    return np.arange(len(images))
