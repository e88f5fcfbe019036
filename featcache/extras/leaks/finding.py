"""Cache -> images that show the same, above all across splits: copies of bytes by digest, others by `search`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from featcache.arrays import Features
from featcache.cache.reader import Cache
from featcache.errors import FeatcacheError, ShapeMismatch, UnknownTap, UsageError
from featcache.extras.leaks.results import KINDS, Leaks, Pair
from featcache.extras.leaks.search import Found, search
from featcache.extras.leaks.thumbnails import Thumbnails, thumbnails
from featcache.images.groups import crossing_groups
from featcache.images.sources import open_source
from featcache.spec import ImageRow, Progress, silent
from featcache.sweeps.tasks import SHARE, physical_memory
from featcache.text import counted

log = logging.getLogger(__name__)

BLOCK = 1024  # rows of features that are read at a time
Contents = Mapping[str, Sequence[ImageRow]]  # {digest: its images}


def leaks(
    cache: Cache | str | Path,
    *,
    tap: str | None = None,
    threshold: float | str = "auto",
    images: str | Path | None = None,
    progress: Progress = silent,
) -> Leaks:
    """Return the pairs of images that show the same, exact copies and others, within and across splits.

    tap: whose features are compared, by default the widest last layer; maps are averaged over places. threshold: of the
    similarity of features, instead of "auto", which sets it from the data (see `search`). images: where the images lie
    now, if the folder has moved; where they are gone, features decide alone. Nothing is written.
    Raises UnknownTap, UsageError, ShapeMismatch for features that are not finite.
    """
    cache = cache if isinstance(cache, Cache) else Cache.open(cache)
    given = _given(threshold)
    name = cache.tap(tap).name if tap else widest(cache)
    rows = cache.usable()
    contents: dict[str, list[ImageRow]] = {}
    for row in rows:
        contents.setdefault(row.digest, []).append(row)
    distinct = [some[0] for some in contents.values()]
    laps = _Laps()
    log.info("Reading the features of %d images", len(distinct))
    features = features_of(cache, distinct, name)
    laps("reading features")
    seen, notes = _seen(cache, distinct, images, cache.taps[name].preprocess.bits, progress)
    laps("reading images")
    log.info("Comparing the features of %d images", len(distinct))
    found = search(features, seen, [row.split for row in distinct], given, laps)
    pairs = [*_copies(contents), *_pairs(found, distinct, contents)]
    guarded = next((name for name in ("test", "val") if any(row.split == name for row in rows)), "")
    digest_of_path = {row.path: row.digest for row in rows}
    return Leaks(
        cache=cache.path,
        tap=name,
        images=len(rows),
        pairs=tuple(sorted(pairs, key=lambda pair: _order(pair, guarded))),
        guarded=guarded,
        thresholds=found.thresholds,
        unseen=sum(len(contents[row.digest]) for row, there in zip(distinct, seen.seen, strict=True) if not there),
        notes=(*notes, *found.notes),
        seconds=dict(laps.seconds),
        digests={path: digest_of_path[path] for pair in pairs for path in (pair.a, pair.b)},
        crossing_groups=crossing_groups(rows),
    )


def widest(cache: Cache, names: Sequence[str] = ()) -> str:
    """Return the tap that is compared: the widest last layer, else the widest one; raw pixels last, maps if need be.

    names: the taps to choose from, by default all.
    """
    some = cache.usable()[:1]
    if not some:
        raise UsageError(f"{cache.path} has no images with features. Extract some: featcache extract")
    names = names or cache.vectors or tuple(name for name, tap in cache.taps.items() if tap.pooling == "none")
    if not names:
        raise UnknownTap(f"{cache.path} lacks images in every tap. Bring it up to date: featcache extract")

    def worth(name: str) -> tuple[bool, bool, int]:
        tap = cache.taps[name]
        return tap.backbone.name != "pixels", tap.layer == "top", cache.features(some, name).size

    return max(names, key=worth)


class _Laps:
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    def __call__(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step], self._began = round(now - self._began, 3), now


def _given(threshold: float | str) -> float | None:
    if threshold == "auto":
        return None
    try:
        value = float(threshold)
    except ValueError:
        value = np.nan
    if not 0 < value <= 1:
        raise UsageError(f"--threshold takes auto or a similarity above 0 and up to 1; got {threshold}")
    return value


def features_of(cache: Cache, rows: Sequence[ImageRow], name: str) -> Features:
    """Return (N, D), averaged over places where a tap has maps. Raises ShapeMismatch, UsageError."""
    width = cache.features(rows[:1], name).shape[-1]
    if (size := len(rows) * width * 4) > physical_memory() / SHARE:
        raise UsageError(
            f"The features of tap '{name}' take {size / 1e9:.2g} GB, more than a quarter of the memory. Name a "
            "narrower one: --tap"
        )
    found = np.empty((len(rows), width), np.float32)
    for at in range(0, len(rows), BLOCK):
        some = cache.features(rows[at : at + BLOCK], name)
        found[at : at + BLOCK] = some.mean(axis=tuple(range(1, some.ndim - 1))) if some.ndim > 2 else some
    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(bad):
        raise ShapeMismatch(
            f"Tap '{name}' has features that are not finite, in {counted(len(bad), 'row')} such as {rows[bad[0]].path}"
        )
    return found


def _seen(
    cache: Cache, rows: Sequence[ImageRow], images: str | Path | None, bits: int, progress: Progress
) -> tuple[Thumbnails, list[str]]:
    """Return what the images look like, and what is to be said of those that are gone."""
    try:
        source = open_source(cache.root if images is None else images)
    except FeatcacheError as error:
        if images is not None:
            raise
        return Thumbnails.none(len(rows)), [f"Only features are compared: {' '.join(str(error).split())}"]
    found = thumbnails(source, rows, bits, progress)
    lost = len(rows) - int(found.seen.sum())
    where = cache.root if images is None else images
    said = f"{lost} of {len(rows)} images are not in {where} any more, or are others now: only features are compared"
    return found, [said] if lost else []


def _copies(contents: Contents) -> Iterator[Pair]:
    """Yield copies of bytes. Of many each is paired with the first of every split, which tells as much."""
    for rows in contents.values():
        split_of = {row.path: row.split for row in rows}
        firsts = {row.split: row.path for row in reversed(rows)}.values()
        for a, b in sorted({(min(pair), max(pair)) for pair in product(split_of, firsts)}):
            if a != b:
                yield Pair(a, b, "exact", 1.0, 1.0, (split_of[a], split_of[b]))


def _pairs(found: Found, distinct: Sequence[ImageRow], contents: Contents) -> Iterator[Pair]:
    """Yield what was found; of contents that are there more than once the first of every split."""
    firsts = [list({row.split: row for row in reversed(contents[one.digest])}.values()) for one in distinct]
    for match in found.matches:
        for a, b in product(firsts[match.a], firsts[match.b]):
            first, second = sorted((a, b), key=lambda row: row.path)
            splits = (first.split, second.split)
            yield Pair(first.path, second.path, match.kind, match.similarity, match.agreement, splits)


def _order(pair: Pair, guarded: str) -> tuple[bool, bool, int, float, str, str]:
    contaminates = pair.crosses and guarded in pair.splits
    return not contaminates, not pair.crosses, KINDS.index(pair.kind), -pair.similarity, pair.a, pair.b
