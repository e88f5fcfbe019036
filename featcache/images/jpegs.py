"""Small JPEGs of a few images, to look at in a notebook. Reading them is bounded in number and in time."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence

from featcache.arrays import Pixels
from featcache.errors import ImagesChanged
from featcache.images.decode import Undecodable, decode
from featcache.notebook import MOST_PICTURES, Thumbnail
from featcache.spec import DRAFT_VERSION, ImageRow, Preprocess

SIDE = 112  # pixels
QUALITY = 75
LONGEST_S = 1.0  # after that no further image is read: a cell should show its value at once


def pictures(read: Callable[[ImageRow], bytes], rows: Sequence[ImageRow]) -> list[Thumbnail]:
    """Return the first images, uncropped, each with its label and path; what cannot be read is left out.

    read: returns the bytes of an image.
    """
    preprocess = Preprocess(SIDE, "pad", decode=DRAFT_VERSION)
    began = time.monotonic()
    readable: list[Thumbnail] = []
    for row in rows[:MOST_PICTURES]:
        if time.monotonic() - began > LONGEST_S:
            break
        try:
            pixels = decode(read(row), preprocess)
        except (OSError, ImagesChanged, Undecodable):
            continue
        readable.append(Thumbnail(_jpeg(pixels), f"{row.label}: {row.path}" if row.label else row.path))
    return readable


def spread(rows: Sequence[ImageRow], count: int = MOST_PICTURES) -> list[ImageRow]:
    """Return `count` of the rows, evenly spaced, because neighbours are often of one class or one burst."""
    if len(rows) <= count:
        return list(rows)
    return [rows[number * len(rows) // count] for number in range(count)]


def _jpeg(pixels: Pixels) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
