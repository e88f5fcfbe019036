"""Views: fixed augmentations of an image, each cached as another tap.

"identity" is the whole image, "hflip" its mirror image, "crop-1" to "crop-30" are parts of it, and "light-1",
"strong-1", "tutorial-1" and so on are what training with that augmentation sees. What a view shows is drawn from the
SHA-256 of its number and of the image's digest, so that it is the same wherever and whenever it is computed, whatever
the size of the features or the order of the files.
"""

from __future__ import annotations

import hashlib
from math import sqrt
from typing import NamedTuple

from featcache.errors import UsageError
from featcache.images.augment import AUGMENTATIONS, augmentation_of
from featcache.spec import IDENTITY

HFLIP = "hflip"
MAX_VIEWS = 32
CROPS = tuple(f"crop-{number}" for number in range(1, MAX_VIEWS - 1))
VIEWS = (IDENTITY, HFLIP, *CROPS)
LEAST_AREA = 0.5
LEAST_ASPECT = 3 / 4  # width to height, where the whole image is 1; at most its reciprocal


class Box(NamedTuple):
    """A part of an upright image, in shares of its width and height."""

    left: float
    top: float
    right: float
    bottom: float


WHOLE_IMAGE = Box(0.0, 0.0, 1.0, 1.0)


class Frame(NamedTuple):
    """The part of an image that a view shows, and whether it is mirrored."""

    box: Box = WHOLE_IMAGE
    mirrored: bool = False


def parse_views(text: str) -> tuple[str, ...]:
    """Read "1" (the whole image), "flip" (and its mirror image), a number of views, or names with commas between.

    >>> parse_views("4")
    ('identity', 'hflip', 'crop-1', 'crop-2')
    """
    names = tuple(name.strip() for name in text.split(","))
    if text == "flip":
        return VIEWS[:2]
    if text.isdecimal() and 1 <= int(text) <= MAX_VIEWS:
        return VIEWS[: int(text)]
    if len({*names}) == len(names) and all(name in VIEWS or augmentation_of(name) for name in names):
        return names
    raise UsageError(
        f"`views` takes 1, flip, a number up to {MAX_VIEWS}, or names with commas between, each once: "
        f"{IDENTITY}, {HFLIP}, {CROPS[0]} to {CROPS[-1]}, or {', '.join(f'{name}-1' for name in AUGMENTATIONS)}; "
        f"got '{text}'"
    )


def frame_of(view: str, digest: str) -> Frame:
    """Return what a view shows of the image with this digest.

    A crop covers at least half of the image's area, and its aspect ratio is 3/4 to 4/3 times the image's. Only
    arithmetic that is the same on every machine is used.
    """
    if view == IDENTITY or augmentation_of(view):
        return Frame()
    if view == HFLIP:
        return Frame(mirrored=True)
    number = view.removeprefix("crop-")
    hashed = hashlib.sha256(f"{number}:{digest}".encode()).digest()
    # Four numbers in [0, 1), each from eight bytes of the hash
    size, shape, across, down = (int.from_bytes(hashed[at : at + 8], "big") / 2**64 for at in (0, 8, 16, 24))
    area = LEAST_AREA + (1 - LEAST_AREA) * size
    # width * height = area and aspect = width / height, so width = sqrt(area * aspect); neither side exceeds 1.
    narrowest = max(area, sqrt(area * LEAST_ASPECT))
    widest = min(1.0, sqrt(area / LEAST_ASPECT))
    width = narrowest + (widest - narrowest) * shape
    height = min(1.0, area / width)
    left = (1 - width) * across
    top = (1 - height) * down
    box = Box(left, top, left + width, top + height)
    is_mirrored = bool(hashed[31] & 1)
    return Frame(box, is_mirrored)
