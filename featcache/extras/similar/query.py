"""What a user asks about -> its features: a photo, or an image of the cache by its path.

A photo whose bytes are in the cache has its features there. Those of other photos are computed by the network of the
tap, as `extract` would: by the one that OpenVINO kept if there is one, which starts without Keras.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featcache.arrays import Features
from featcache.backbones.build import built_for
from featcache.cache.reader import Cache
from featcache.cache.rows import TapRows
from featcache.errors import DataError, UnreadableImages, UsageError
from featcache.extraction.pipeline import read_one
from featcache.extraction.recheck import forward
from featcache.images.folder import FolderSource
from featcache.spec import Failure, ImageRow


class Query(NamedTuple):
    """An image whose neighbours are wanted."""

    features: Features  # (D,), or (h, w, C) of a tap without pooling
    digest: str
    path: str | None  # its path in the cache, if it is an image of the cache
    is_computed: bool  # False if its features were in the cache


def query_of(cache: Cache, stored: TapRows, image: str | Path) -> Query:
    """Return an image with its features of a tap. stored: the rows of that tap.

    Raises UsageError for an empty name, DataError if there is no such image, UnreadableImages if it is none.
    """
    if not str(image).strip():
        raise UsageError("`query` names the photo to compare, or an image of the cache by its path; got nothing")
    file = _file_of(cache, Path(image))
    if file is None:
        row = _row_of(cache, image)
        return Query(_stored(cache, stored, row), row.digest, row.path, is_computed=False)

    tap = stored.tap
    decoded = read_one(FolderSource(Path()), ImageRow(str(file), "", "", "", ""), tap.preprocess, [tap.view])
    own_path = _path_in(cache, file, decoded.row.digest)
    if decoded.row.digest in stored.at:
        return Query(_stored(cache, stored, decoded.row), decoded.row.digest, own_path, is_computed=False)
    if isinstance(decoded.pixels, Failure):
        raise UnreadableImages(f"{file} cannot be read: {decoded.pixels.status}, {decoded.pixels.reason}")
    [computed] = forward(tap, decoded.pixels[None], partial(built_for, tap))
    as_stored = computed.astype(tap.dtype).astype(np.float32)
    return Query(as_stored, decoded.row.digest, own_path, is_computed=True)


def _file_of(cache: Cache, path: Path) -> Path | None:
    """Return the file that a user means, here or in the folder of the images; None if there is none."""
    for place in (path, cache.root / path):
        if place.is_dir():
            raise UsageError(f"{place} is a folder. `query` takes one photo, or an image of the cache by its path")
        if place.is_file():
            return place
    return None


def _path_in(cache: Cache, file: Path, digest: str) -> str | None:
    """Return the path in the cache of a file with this digest; None if the cache has no such image, or only copies."""
    real_path = os.path.realpath(file)
    for row in cache.rows:
        if row.digest == digest and os.path.realpath(cache.root / row.path) == real_path:
            return row.path
    return None


def _row_of(cache: Cache, image: str | Path) -> ImageRow:
    """Return the image of the cache with this path. Raises DataError."""
    for row in cache.rows:
        if row.path == str(image):
            return row
    raise DataError(
        f"There is no photo {image}, neither here nor in {cache.root}, and no image with this path in {cache.path}"
    )


def _stored(cache: Cache, stored: TapRows, row: ImageRow) -> Features:
    """Return the features of an image of the cache. Raises DataError if it has none."""
    if row.digest not in stored.at:
        raise DataError(f"{row.path} has no features in tap '{stored.tap.name}' of {cache.path}, and its file is gone")
    [features] = stored.features([row.digest])
    return np.asarray(features)
