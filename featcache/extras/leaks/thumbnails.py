"""Images -> small greys and sizes, read by threads. Images that are gone or have changed since are left out."""

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
    """How images look, by number."""

    greys: Pixels  # (N, 64, 64)
    sizes: npt.NDArray[np.int64]  # (N, 2): width and height as shown
    seen: npt.NDArray[np.bool_]  # (N,): False for images that could not be read

    @classmethod
    def none(cls, count: int) -> Thumbnails:
        """Return thumbnails of `count` images of which none could be read."""
        shape = (count, SIDE, SIDE)
        return cls(np.zeros(shape, np.uint8), np.zeros((count, 2), np.int64), np.zeros(count, np.bool_))


def thumbnails(source: Source, rows: Sequence[ImageRow], bits: int, progress: Progress) -> Thumbnails:
    """Return how the images look. Images that cannot be read, or are no longer the cached ones, count as not seen.

    bits: how 16-bit images are read; the same as for the features.
    """
    result = Thumbnails.none(len(rows))
    last_tick = time.perf_counter()

    def read(start: int) -> int:
        end = min(start + BLOCK, len(rows))
        for number in range(start, end):
            try:
                result.greys[number], result.sizes[number] = thumbnail(read_image(source, rows[number]), SIDE, bits)
            except (Undecodable, DataError):
                continue
            result.seen[number] = True
        return end

    with ThreadPoolExecutor(num_threads(), thread_name_prefix="thumbnails") as threads:
        try:
            for done in threads.map(read, range(0, len(rows), BLOCK)):
                if time.perf_counter() - last_tick > TICK_S or done == len(rows):
                    last_tick = time.perf_counter()
                    progress(Tick("leaks", done, len(rows)))
        finally:
            # After Ctrl-C or an error: do not read the images that are still queued.
            threads.shutdown(wait=True, cancel_futures=True)
    return result
