"""Small pictures inside a page: images as data, and many of them on one sheet."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featcache.arrays import Pixels
from featcache.cache.reader import Cache
from featcache.errors import DataError, ImagesChanged
from featcache.extraction.pipeline import num_threads
from featcache.images.decode import Undecodable, decode
from featcache.images.manifest import read_image
from featcache.images.sources import Source, open_source
from featcache.spec import ALL_BITS, DRAFT_VERSION, ImageRow, Preprocess, Progress, Resize, Tick, silent, with_bits

THUMBNAIL, SMALL, LARGE = 48, 112, 160  # pixels
SHEET_BYTES = 2_400_000  # most bytes of a sheet, as text
QUALITIES = (70, 50, 30, 10)
GREY = 128
PICTURE_BYTES = 24_000_000  # most bytes of all pictures on a page, as text
BLOCK = 256  # pictures at a time; their bytes are counted after each block


@dataclass(frozen=True)
class Sheet:
    """Thumbnails side by side on one picture."""

    data: str  # a data URI
    columns: int
    size: int = THUMBNAIL


def sheet(
    source: Source | None, rows: Sequence[ImageRow], bits: int = ALL_BITS, progress: Progress = silent
) -> Sheet | None:
    """Return the thumbnails of these images, in their order; missing images are grey. None if there are no images."""
    if source is None or not rows:
        return None
    # Square, because browsers limit the sides of a picture.
    columns = int(np.ceil(np.sqrt(len(rows))))
    cells = np.full((len(rows), THUMBNAIL, THUMBNAIL, 3), GREY, np.uint8)
    with ThreadPoolExecutor(num_threads()) as threads:
        all_pixels = threads.map(partial(_pixels, source, THUMBNAIL, "crop", bits), rows)
        for number, pixels in enumerate(all_pixels):
            if pixels is not None:
                cells[number] = pixels
            progress(Tick("thumbnails", number + 1, len(rows)))
    lines = int(np.ceil(len(rows) / columns))
    grid = tiled(cells, columns, lines, fill=255)
    # Photographs fit at the first quality. Images of noise hardly compress and need a lower one.
    for quality in QUALITIES:
        data = _data_uri(grid, quality)
        if len(data) <= SHEET_BYTES:
            break
    return Sheet(data, columns)


def bits_of(cache: Cache) -> int:
    """Return how many bits of 16-bit images the features were computed from; if taps differ, the fewest."""
    return min((tap.preprocess.bits for tap in cache.taps.values()), default=ALL_BITS)


def tiled(cells: Pixels, columns: int, lines: int, fill: int = 0) -> Pixels:
    """Return images (N, size, size, 3) as one image, line by line. fill: grey level of unused places."""
    num_images, size = cells.shape[:2]
    grid = np.full((lines * columns, size, size, 3), fill, np.uint8)
    grid[:num_images] = cells
    # (line, column, y, x) -> (line, y, column, x): the pixels of one line of images stand side by side.
    by_line = grid.reshape(lines, columns, size, size, 3).swapaxes(1, 2)
    return by_line.reshape(lines * size, columns * size, 3)


def picture(source: Source | None, row: ImageRow, bits: int = ALL_BITS) -> str | None:
    """Return one image as a data URI, uncropped on a square; None if it is gone or has changed."""
    if source is None:
        return None
    pixels = _pixels(source, LARGE, "pad", bits, row)
    return None if pixels is None else _data_uri(pixels, 75)


def source_of(cache: Cache, images: str | Path | None) -> Source | None:
    """Return the source of the images; None if they are gone. Raises NoImages if they are not at `images`."""
    try:
        return open_source(cache.root if images is None else images)
    except DataError:
        if images is not None:
            raise
        return None


def pictures_of(source: Source | None, rows: Sequence[ImageRow], bits: int, progress: Progress) -> list[str | None]:
    """Return a data URI for each image; None for images that cannot be read or exceed the bytes of a page."""
    if source is None:
        return [None] * len(rows)
    pictures: list[str | None] = []
    num_bytes = 0
    with ThreadPoolExecutor(num_threads(), thread_name_prefix="pictures") as threads:
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            for data in threads.map(partial(picture, source, bits=bits), block):
                num_bytes += len(data or "")
                pictures.append(data if num_bytes <= PICTURE_BYTES else None)
            progress(Tick("pictures", len(pictures), len(rows)))
            # The first images matter most, so the last ones go without a picture.
            if num_bytes > PICTURE_BYTES:
                break
    num_missing = len(rows) - len(pictures)
    return pictures + [None] * num_missing


def small_picture(source: Source, row: ImageRow) -> str | None:
    """Return one image as a smaller data URI, for a grid of many; None if it is gone or has changed."""
    pixels = _pixels(source, SMALL, "pad", ALL_BITS, row)
    return None if pixels is None else _data_uri(pixels, 60)


def _pixels(source: Source, size: int, resize: Resize, bits: int, row: ImageRow) -> Pixels | None:
    # Drafts: a JPEG decoded at a fraction of its size is good enough to look at, and much faster.
    preprocess = Preprocess(size, resize, decode=with_bits(DRAFT_VERSION, bits))
    try:
        return decode(read_image(source, row), preprocess)
    except (OSError, ImagesChanged, Undecodable):
        return None


def _data_uri(pixels: Any, quality: int) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=quality)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
