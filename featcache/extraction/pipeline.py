"""Files -> pixels: threads read, hash and decode a bounded number of images ahead of their consumer."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from featcache.arrays import Pixels
from featcache.images.decode import Undecodable, decode_picture
from featcache.images.sources import Source
from featcache.spec import IDENTITY, Failure, ImageRow, Preprocess

MAX_THREADS = 32
AHEAD_BATCHES = 3
AHEAD_BYTES = 256 * 2**20  # of decoded pixels, however large the batch


@dataclass(frozen=True)
class Decoded:
    """One image: its row with the digest of the bytes that were decoded, and its pixels."""

    row: ImageRow
    pixels: Pixels | Failure  # of the first view
    others: tuple[Pixels, ...] = ()  # of the other views
    kinds: frozenset[str] = frozenset()  # reasons why its pixels may not look as intended: see `images.kinds`


class Decoder:
    """Yields the images in order. Threads decode them ahead; `close` stops the threads.

    At most AHEAD_BATCHES batches wait, which bounds the memory for any number of images. `batch` may change on the way.
    """

    def __init__(
        self,
        source: Source,
        rows: Iterable[ImageRow],
        preprocess: Preprocess,
        views: Sequence[str] = (IDENTITY,),
        batch: int = 32,
    ) -> None:
        self.batch = batch
        self._source = source
        self._preprocess = preprocess
        self._views = tuple(views)
        self._waiting = iter(rows)
        self._ahead: deque[Future[Decoded]] = deque()
        self._threads = ThreadPoolExecutor(num_threads(), thread_name_prefix="decode")
        self._submit()

    def __iter__(self) -> Iterator[Decoded]:
        return self

    def __next__(self) -> Decoded:
        if not self._ahead:
            raise StopIteration
        decoded = self._ahead.popleft().result()
        self._submit()
        return decoded

    def take(self) -> list[Decoded]:
        """Return the next batch. The last batch may be shorter; after it, batches are empty."""
        return list(islice(self, self.batch))

    def close(self) -> None:
        """Stop the threads and drop the images that were decoded ahead."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _submit(self) -> None:
        """Give the threads as many more images as may be decoded ahead."""
        image_bytes = 3 * self._preprocess.size**2 * len(self._views)
        max_in_memory = max(AHEAD_BYTES // image_bytes, 2 * num_threads())  # enough to keep every thread busy
        max_ahead = min(AHEAD_BATCHES * self.batch, max_in_memory)
        num_more = max(0, max_ahead - len(self._ahead))
        for row in islice(self._waiting, num_more):
            decoding = self._threads.submit(read_one, self._source, row, self._preprocess, self._views)
            self._ahead.append(decoding)


def decoded_batches(
    source: Source, rows: Iterable[ImageRow], preprocess: Preprocess, batch: int, views: Sequence[str] = (IDENTITY,)
) -> Iterator[list[Decoded]]:
    """Yield the images in order, `batch` at a time. Threads decode them ahead."""
    decoder = Decoder(source, rows, preprocess, views, batch)
    try:
        while images := decoder.take():
            yield images
    finally:
        decoder.close()


def num_threads() -> int:
    """Return the number of decoding threads: one for each core that this process may use."""
    num_cores = os.cpu_count() or 1
    # A container may have fewer cores than the machine.
    if hasattr(os, "sched_getaffinity"):
        num_cores = len(os.sched_getaffinity(0))
    return min(num_cores, MAX_THREADS)


def read_one(source: Source, row: ImageRow, preprocess: Preprocess, views: Sequence[str] = (IDENTITY,)) -> Decoded:
    """Read one image once, so that the digest describes the very bytes that are decoded."""
    digest = ""
    try:
        data = source.read(row.path)
        digest = hashlib.sha256(data).hexdigest()
        picture = decode_picture(data, preprocess, views, digest)
    except Undecodable as error:
        failure = Failure(row.path, digest, error.status, error.reason)
        return Decoded(row._replace(digest=digest), failure)
    first, *others = picture.views
    return Decoded(row._replace(digest=digest), first, tuple(others), picture.kinds)
