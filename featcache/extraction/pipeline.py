"""Files -> pixels: read, hash and decode on threads, a bounded number of images ahead of who consumes them."""

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
AHEAD_BYTES = 256 * 2**20  # of decoded pixels, whatever the batch


@dataclass(frozen=True)
class Decoded:
    """One image as it was read: its row with the digest of the bytes that were decoded, and its pixels."""

    row: ImageRow
    pixels: Pixels | Failure  # of the first view
    others: tuple[Pixels, ...] = ()  # of the other views
    kinds: frozenset[str] = frozenset()  # what of it is shown otherwise than it may be meant: see `images.kinds`


class Decoder:
    """Yields the images in order, decoded by threads that work ahead; `close` stops them.

    At most AHEAD_BATCHES batches wait, which bounds the memory whatever the number of images; `batch` may be
    changed on the way.
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
        self._source, self._preprocess, self._views = source, preprocess, tuple(views)
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
        """Return the next batch; the last one is shorter, then they are empty."""
        return list(islice(self, self.batch))

    def close(self) -> None:
        """Stop the threads; what was decoded ahead is dropped."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _submit(self) -> None:
        fitting = AHEAD_BYTES // (3 * self._preprocess.size**2 * len(self._views))
        room = min(AHEAD_BATCHES * self.batch, max(fitting, 2 * num_threads())) - len(self._ahead)
        self._ahead.extend(self._threads.submit(self._one, row) for row in islice(self._waiting, max(0, room)))

    def _one(self, row: ImageRow) -> Decoded:
        return read_one(self._source, row, self._preprocess, self._views)


def decoded_batches(
    source: Source, rows: Iterable[ImageRow], preprocess: Preprocess, batch: int, views: Sequence[str] = (IDENTITY,)
) -> Iterator[list[Decoded]]:
    """Yield the images in order, `batch` at a time, decoded by threads that work ahead."""
    decoder = Decoder(source, rows, preprocess, views, batch)
    try:
        while batch_of := decoder.take():
            yield batch_of
    finally:
        decoder.close()


def num_threads() -> int:
    """Return how many threads decode: one for each core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_THREADS)


def read_one(source: Source, row: ImageRow, preprocess: Preprocess, views: Sequence[str] = (IDENTITY,)) -> Decoded:
    """Read one file once: the bytes that are hashed are the bytes that are decoded."""
    digest = ""
    try:
        data = source.read(row.path)
        digest = hashlib.sha256(data).hexdigest()
        (pixels, *others), kinds = decode_picture(data, preprocess, views, digest)
    except Undecodable as error:
        return Decoded(row._replace(digest=digest), Failure(row.path, digest, error.status, error.reason))
    return Decoded(row._replace(digest=digest), pixels, tuple(others), kinds)
