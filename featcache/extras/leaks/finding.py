"""Cache -> images that show the same, above all across splits: byte-for-byte copies by digest, others by `search`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from shlex import quote

import numpy as np

from featcache.arrays import Features
from featcache.cache.reader import Cache
from featcache.errors import FeatcacheError, ShapeMismatch, UnknownTap, UsageError
from featcache.extras.leaks.results import KINDS, Leaks, Pair
from featcache.extras.leaks.search import SearchResult, search
from featcache.extras.leaks.thumbnails import Thumbnails, thumbnails
from featcache.images.groups import crossing_groups
from featcache.images.sources import open_source
from featcache.spec import ImageRow, Progress, silent
from featcache.sweeps.tap_data import MEMORY_SHARE, physical_memory
from featcache.text import counted

log = logging.getLogger(__name__)

BLOCK = 1024  # rows of features that are read at a time
Copies = Mapping[str, Sequence[ImageRow]]  # {digest: the images with these bytes}


def leaks(
    cache: Cache | str | Path,
    *,
    tap: str | None = None,
    threshold: float | str = "auto",
    images: str | Path | None = None,
    progress: Progress = silent,
) -> Leaks:
    """Return the pairs of images that show the same, exact copies and others, within and across splits.

    tap: whose features are compared, by default the widest last layer; maps are averaged over places.
    threshold: similarity of features from which a pair is a candidate; "auto" sets it from the data (see `search`).
    images: where the images lie now, if the folder has moved; without the images, features decide alone.
    Nothing is written. Raises UnknownTap, UsageError, ShapeMismatch if features are not finite.
    """
    cache = cache if isinstance(cache, Cache) else Cache.open(cache)
    fixed_threshold = _parsed_threshold(threshold)
    name = cache.tap(tap).name if tap else widest(cache)
    rows = cache.usable()
    copies: dict[str, list[ImageRow]] = {}
    for row in rows:
        copies.setdefault(row.digest, []).append(row)
    # Only one image of each content is compared by features and pixels: copies of bytes are pairs already.
    distinct = [copies_of_image[0] for copies_of_image in copies.values()]

    laps = _Laps()
    log.info("Reading the features of %d images", len(distinct))
    features = features_of(cache, distinct, name)
    laps("reading features")
    looks, notes = _thumbnails(cache, distinct, images, cache.taps[name].preprocess.bits, progress)
    laps("reading images")
    log.info("Comparing the features of %d images", len(distinct))
    splits = [row.split for row in distinct]
    result = search(features, looks, splits, fixed_threshold, laps)

    pairs = [*_exact_pairs(copies), *_similar_pairs(result, distinct, copies)]
    all_splits = {row.split for row in rows}
    guarded = next((split for split in ("test", "val") if split in all_splits), "")
    digest_of_path = {row.path: row.digest for row in rows}
    digests: dict[str, str] = {}
    for pair in pairs:
        digests[pair.a] = digest_of_path[pair.a]
        digests[pair.b] = digest_of_path[pair.b]
    # If an image could not be read, its copies were not looked at either.
    unseen = 0
    for number in np.flatnonzero(~looks.seen):
        unseen += len(copies[distinct[number].digest])
    return Leaks(
        cache=cache.path,
        tap=name,
        images=len(rows),
        pairs=tuple(sorted(pairs, key=lambda pair: _order(pair, guarded))),
        guarded=guarded,
        thresholds=result.thresholds,
        unseen=unseen,
        notes=(*notes, *result.notes),
        seconds=dict(laps.seconds),
        digests=digests,
        crossing_groups=crossing_groups(rows),
    )


def widest(cache: Cache, names: Sequence[str] = ()) -> str:
    """Return the tap to compare: the widest last layer, else the widest tap. Raw pixels come last.

    names: the taps to choose from; by default all with vectors, or if there are none, all with maps.
    """
    first_row = cache.usable()[:1]
    if not first_row:
        extract = f"featcache extract IMAGES -o {quote(str(cache.path))}"
        raise UsageError(f"{cache.path} has no images with features. Extract some: {extract}")
    names = names or cache.vectors
    if not names:
        names = [name for name, tap in cache.taps.items() if tap.pooling == "none"]
    if not names:
        raise UnknownTap(
            f"Every tap of {cache.path} lacks some images. Bring it up to date: repeat the featcache extract that made "
            "it"
        )

    def worth(name: str) -> tuple[bool, bool, int]:
        tap = cache.taps[name]
        return tap.backbone.name != "pixels", tap.layer == "top", cache.features(first_row, name).size

    return max(names, key=worth)


class _Laps:
    """A stopwatch: call it with the name of each step that has just ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    def __call__(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] = round(now - self._began, 3)
        self._began = now


def _parsed_threshold(threshold: float | str) -> float | None:
    """Return the threshold as a number, or None for "auto". Raises UsageError."""
    if threshold == "auto":
        return None
    try:
        value = float(threshold)
    except ValueError:
        value = np.nan
    if not 0 < value <= 1:
        raise UsageError(f"`threshold` takes auto or a similarity above 0 and up to 1; got {threshold}")
    return value


def features_of(cache: Cache, rows: Sequence[ImageRow], name: str) -> Features:
    """Return (N, D) float32; maps are averaged over places. Raises UsageError, ShapeMismatch if one is not finite."""
    width = cache.features(rows[:1], name).shape[-1]
    size = len(rows) * width * 4
    if size > physical_memory() * MEMORY_SHARE:
        raise UsageError(
            f"The features of tap '{name}' take {size / 1e9:.2g} GB, more than a quarter of the memory. Choose a "
            "narrower tap"
        )
    # In blocks, because maps take many times the memory of their averages.
    features = np.empty((len(rows), width), np.float32)
    for start in range(0, len(rows), BLOCK):
        block = cache.features(rows[start : start + BLOCK], name)
        if block.ndim > 2:
            places = tuple(range(1, block.ndim - 1))  # all axes but images and channels
            block = block.mean(axis=places)
        features[start : start + BLOCK] = block
    is_finite = np.isfinite(features).all(axis=1)
    bad = np.flatnonzero(~is_finite)
    if len(bad):
        raise ShapeMismatch(
            f"Tap '{name}' has features that are not finite, in {counted(len(bad), 'row')} such as {rows[bad[0]].path}"
        )
    return features


def _thumbnails(
    cache: Cache, rows: Sequence[ImageRow], images: str | Path | None, bits: int, progress: Progress
) -> tuple[Thumbnails, list[str]]:
    """Return how the images look, and a note for the user if images are gone."""
    where = cache.root if images is None else images
    try:
        source = open_source(where)
    except FeatcacheError as error:
        if images is not None:
            raise
        return Thumbnails.none(len(rows)), [f"Only features are compared: {' '.join(str(error).split())}"]
    looks = thumbnails(source, rows, bits, progress)
    num_missing = len(rows) - int(looks.seen.sum())
    notes: list[str] = []
    if num_missing:
        notes.append(
            f"{num_missing} of {len(rows)} images are not in {where} any more, or have changed: only their features "
            "are compared"
        )
    return looks, notes


def _exact_pairs(copies: Copies) -> Iterator[Pair]:
    """Yield the pairs of byte-for-byte copies.

    Each copy is paired only with the first one of every split: this names every image and every crossing, and n copies
    do not make n^2 pairs.
    """
    for rows in copies.values():
        split_of = {row.path: row.split for row in rows}
        first_paths = [row.path for row in _first_of_each_split(rows)]
        pairs: set[tuple[str, str]] = set()
        for path, first_path in product(split_of, first_paths):
            if path != first_path:
                pairs.add((min(path, first_path), max(path, first_path)))
        for a, b in sorted(pairs):
            yield Pair(a, b, "exact", 1.0, 1.0, (split_of[a], split_of[b]))


def _similar_pairs(result: SearchResult, distinct: Sequence[ImageRow], copies: Copies) -> Iterator[Pair]:
    """Yield the pairs of a search. An image with copies is paired once for every split that it is in."""
    for match in result.matches:
        rows_a = _first_of_each_split(copies[distinct[match.a].digest])
        rows_b = _first_of_each_split(copies[distinct[match.b].digest])
        for rows in product(rows_a, rows_b):
            first, second = sorted(rows, key=lambda row: row.path)
            splits = (first.split, second.split)
            yield Pair(first.path, second.path, match.kind, match.similarity, match.agreement, splits)


def _first_of_each_split(rows: Sequence[ImageRow]) -> list[ImageRow]:
    firsts: dict[str, ImageRow] = {}
    for row in rows:
        firsts.setdefault(row.split, row)
    return list(firsts.values())


def _order(pair: Pair, guarded: str) -> tuple[bool, bool, int, float, str, str]:
    """Return the sort key: pairs that contaminate first, then others that cross, then by kind."""
    contaminates = pair.crosses and guarded in pair.splits
    return not contaminates, not pair.crosses, KINDS.index(pair.kind), -pair.similarity, pair.a, pair.b
