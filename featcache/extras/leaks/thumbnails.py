"""Images -> small greys and sizes, read by threads; those that are gone, or others by now, are left out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.arrays import Pixels
from featcache.errors import DataError
from featcache.extraction.pipeline import num_threads
from featcache.extras.leaks.pixels import SIDE
from featcache.images.decode import Undecodable, thumbnail
from featcache.images.manifest import read_image
from featcache.images.sources import Source
from featcache.spec import ImageRow, Progress, Tick

BLOCK = 32  # images that a thread reads at a time
TICK_S = 0.1


@dataclass(frozen=True)
class Thumbnails:
    """What images look like, by number."""

    greys: Pixels  # (N, 64, 64)
    sizes: npt.NDArray[np.int64]  # (N, 2): width and height as shown
    seen: npt.NDArray[np.bool_]  # (N,): False for images that could not be read

    @classmethod
    def none(cls, count: int) -> Thumbnails:
        """Return those of images that nobody has seen."""
        shape = (count, SIDE, SIDE)
        return cls(np.zeros(shape, np.uint8), np.zeros((count, 2), np.int64), np.zeros(count, np.bool_))


def thumbnails(source: Source, rows: Sequence[ImageRow], bits: int, progress: Progress) -> Thumbnails:
    """Return what the images look like; whatever cannot be read, or is not what was cached, is not seen.

    bits: of 16-bit images, as the features were made of them.
    """
    found = Thumbnails.none(len(rows))
    said = time.perf_counter()

    def read(start: int) -> int:
        for number in range(start, min(start + BLOCK, len(rows))):
            try:
                found.greys[number], found.sizes[number] = thumbnail(read_image(source, rows[number]), SIDE, bits)
                found.seen[number] = True
            except (Undecodable, DataError):
                continue
        return min(start + BLOCK, len(rows))

    with ThreadPoolExecutor(num_threads(), thread_name_prefix="thumbnails") as threads:
        try:
            for done in threads.map(read, range(0, len(rows), BLOCK)):
                if time.perf_counter() - said > TICK_S or done == len(rows):
                    said = time.perf_counter()
                    progress(Tick("leaks", done, len(rows)))
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
    return found
