"""Features of any images, through a cache: rows that it has are read, missing rows are computed and added.

The table of images in the cache stays as it is, with its labels and splits: only the taps get more rows. A new cache
gets a table without images. A later `extract` of the same images finds their rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.arrays import Features
from featcache.cache.reader import Cache, stored_rows
from featcache.errors import NoImages
from featcache.extraction.extract_options import Options
from featcache.extraction.image_table import readable_rows
from featcache.extraction.starter import WarmEngines
from featcache.extraction.workflow import Extraction, open_extraction
from featcache.images.manifest import unlabelled
from featcache.images.sources import Source
from featcache.spec import Failure, ImageRow, Tap, silent

CHANGED = "it changed while it was read"


@dataclass(frozen=True)
class ImageFeatures:
    """The features of N images, and why some have none."""

    taps: tuple[Tap, ...]  # none if no image has features
    widths: tuple[int, ...]  # numbers per image in each tap
    array: Features  # (N, D) float32: the taps beside one another; NaN in the rows of images without features
    failures: Mapping[str, Failure]  # {path: why that image has no features}


def look_up(
    source: Source, paths: Sequence[str], options: Options, out: Path, warm: WarmEngines | None = None
) -> ImageFeatures:
    """Return the features of images of a source, in the order of their paths, which may repeat.

    out: the cache. warm: engines of earlier calls, to use and to add to.
    Raises what `extract` raises, but not for images that cannot be used.
    """
    images = unlabelled(source, paths)
    extraction = open_extraction(images, out, options, None, silent, keeps_table=True, warm=warm)
    try:
        cache = extraction.run()
    except NoImages:  # none can be used, and the cache had no features before
        return _nothing(len(paths), extraction.failures())

    assert extraction.first_plan is not None
    taps = tuple(extraction.first_plan.taps.values())
    rows = _rows_with_features(extraction, cache, taps)
    reasons = extraction.failures()
    failures: dict[str, Failure] = {}
    for path in set(paths) - {row.path for row in rows}:
        failures[path] = reasons.get(path, Failure(path, "", "unreadable", CHANGED))
    if not rows:
        return _nothing(len(paths), failures)

    name_by_fingerprint = {tap.fingerprint: tap.name for tap in cache.taps.values()}
    arrays: list[Features] = []
    for tap in taps:
        features = cache.features(rows, name_by_fingerprint[tap.fingerprint])
        arrays.append(features.reshape(len(rows), -1))
    widths = tuple(features.shape[1] for features in arrays)
    # One more row, of NaN: images without features get it.
    joined = np.full((len(rows) + 1, sum(widths)), np.nan, np.float32)
    np.concatenate(arrays, axis=1, out=joined[:-1])
    number_of = {row.path: number for number, row in enumerate(rows)}
    numbers = [number_of.get(path, len(rows)) for path in paths]
    return ImageFeatures(taps, widths, joined[numbers], failures)


def _nothing(num_images: int, failures: Mapping[str, Failure]) -> ImageFeatures:
    return ImageFeatures((), (), np.empty((num_images, 0), np.float32), failures)


def _rows_with_features(extraction: Extraction, cache: Cache, taps: Sequence[Tap]) -> list[ImageRow]:
    """Return the images that have a row in each of these taps, with the digests of the bytes that were read."""
    stored = stored_rows(cache.path)
    rows = readable_rows(extraction.images, extraction.findings)
    for fingerprint in [tap.fingerprint for tap in taps]:
        if fingerprint not in stored:
            return []
        with_row = stored[fingerprint].at
        rows = [row for row in rows if row.digest in with_row]
    return rows
