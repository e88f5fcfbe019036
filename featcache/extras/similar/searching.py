"""The images of a cache that are nearest to a query, by the cosine of their features.

The search is exact: the query is compared with every image, a few megabytes of features at a time, so a million images
need one pass over the file and a number for each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache import files
from featcache.arrays import Features, Floats
from featcache.cache.reader import Cache, stored_rows
from featcache.cache.rows import TapRows
from featcache.errors import DataError, UsageError
from featcache.extras.leaks.finding import widest
from featcache.extras.leaks.vector_pairs import unit
from featcache.extras.similar.query import Query, query_of
from featcache.spec import ImageRow, Progress, Tick, silent


@dataclass(frozen=True)
class SimilarImage:
    """An image of the cache, and how similar it is to the query."""

    path: str
    label: str
    split: str
    similarity: float  # cosine of the features, -1 to 1


@dataclass(frozen=True)
class Similar:
    """The images that are nearest to a query, the nearest first."""

    cache: Path
    tap: str
    query: str
    digest: str  # of the query's bytes
    images: tuple[SimilarImage, ...]
    compared: int  # images that the query was compared with
    computed: bool  # whether the query's features had to be computed


def similar(
    cache: Cache | str | Path,
    query: str | Path,
    *,
    tap: str | None = None,
    top: int = 20,
    progress: Progress = silent,
) -> Similar:
    """Return the `top` images of a cache that are nearest to a photo, or to an image of the cache by its path.

    tap: whose features are compared, by default those of the widest last layer. An image of the cache is not compared
    with itself, but its copies are. Raises UsageError, UnknownTap, DataError if there is no such photo or its features
    are zero, UnreadableImages if it cannot be read, WeightsMissing or WeightsMismatch if they cannot be computed.
    """
    if top < 1:
        raise UsageError(f"`top` takes a number from 1; got {top}")
    opened = cache if isinstance(cache, Cache) else Cache.open(cache)
    fingerprint = opened.taps[widest(opened)].fingerprint if tap is None else opened.tap(tap).fingerprint

    def search() -> Similar:
        stored = stored_rows(opened.path, fingerprint)[fingerprint]
        return _nearest(opened, query_of(opened, stored, query), str(query), stored, top, progress)

    return files.again(search)


def _nearest(cache: Cache, query: Query, name: str, stored: TapRows, top: int, progress: Progress) -> Similar:
    rows = [row for row in cache.usable() if row.path != query.path]
    missing = [row for row in rows if row.digest not in stored.at]
    if missing:
        cache.features(missing, stored.tap.name)  # raises UnknownTap, which says how to bring the tap up to date
    direction = unit(_averaged(query.features[None]))[0]
    if not direction.any():
        raise DataError(
            f"The features of {name} in tap '{stored.tap.name}' are zero, like those of a blank photo, so no image "
            "is nearer than another. Compare another `tap`"
        )
    # Copies have one row of features.
    digests = list(dict.fromkeys(row.digest for row in rows))
    number_of = {digest: number for number, digest in enumerate(digests)}
    similarity_of_digest = _cosines(stored, digests, direction, progress)
    similarities = similarity_of_digest[[number_of[row.digest] for row in rows]]
    images = []
    for number in _largest(similarities, rows, top):
        row = rows[number]
        images.append(SimilarImage(row.path, row.label, row.split, float(similarities[number])))
    return Similar(cache.path, stored.tap.name, name, query.digest, tuple(images), len(rows), query.is_computed)


def _cosines(stored: TapRows, digests: Sequence[str], direction: Floats, progress: Progress) -> Floats:
    """Return (N,): the cosine of each image with a direction (D,) of length one."""
    cosines = np.empty(len(digests), np.float32)
    start = 0
    for block in stored.blocks(digests):
        end = start + len(block)
        cosines[start:end] = unit(_averaged(block.astype(np.float32, copy=False))) @ direction
        start = end
        progress(Tick("similar", end, len(digests)))
    return cosines


def _averaged(features: Features) -> Features:
    """Return (N, D): maps (N, h, w, C) averaged over places."""
    places = tuple(range(1, features.ndim - 1))
    return features.mean(axis=places) if places else features


def _largest(similarities: Floats, rows: Sequence[ImageRow], top: int) -> list[int]:
    """Return the numbers of the `top` images, the most similar first, and by path where they are alike."""
    if top < len(rows):
        least = np.partition(similarities, -top)[-top]
        candidates = np.flatnonzero(similarities >= least).tolist()
    else:
        candidates = list(range(len(rows)))
    candidates.sort(key=lambda number: (-similarities[number], rows[number].path))
    return candidates[:top]
