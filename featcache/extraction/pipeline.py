"""Files -> batches of pixels: read, hash and decode on threads, a bounded number of batches ahead."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from featcache.arrays import Pixels
from featcache.images.decode import Undecodable, decode
from featcache.spec import Failure, ImageRow, Preprocess

NUM_THREADS = 4
LOOKAHEAD = 4  # batches decoded ahead of the backbone: bounds the memory, whatever the number of images


@dataclass(frozen=True)
class Decoded:
    """One image as it was read: its row with the digest of the bytes that were decoded, and its pixels."""

    row: ImageRow
    pixels: Pixels | Failure


def decoded_batches(
    root: Path, rows: Sequence[ImageRow], preprocess: Preprocess, batch: int
) -> Iterator[list[Decoded]]:
    """Yield the images in order, `batch` at a time, decoded by threads that work ahead."""
    threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="decode")
    try:
        waiting = iter(rows)
        ahead: deque[Future[Decoded]] = deque()
        while True:
            room = (LOOKAHEAD + 1) * batch - len(ahead)
            ahead.extend(threads.submit(read_one, root, row, preprocess) for row in islice(waiting, room))
            if not ahead:
                return
            yield [ahead.popleft().result() for _ in range(min(batch, len(ahead)))]
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def read_one(root: Path, row: ImageRow, preprocess: Preprocess) -> Decoded:
    """Read one file once: the bytes that are hashed are the bytes that are decoded."""
    try:
        data = (root / row.path).read_bytes()
    except OSError as error:
        return Decoded(row, Failure(row.path, "", "unreadable", error.strerror or str(error)))
    row = row._replace(digest=hashlib.sha256(data).hexdigest())
    try:
        return Decoded(row, decode(data, preprocess))
    except Undecodable as error:
        return Decoded(row, Failure(row.path, row.digest, error.status, error.reason))
