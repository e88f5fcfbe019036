"""Random changes of an image for training: turned, moved, sheared, zoomed, mirrored, in other colours.

What is drawn for a view such as "light-3" comes from the SHA-256 of its name and of the image's digest, so that one
view of one image is the same whenever it is computed: features of views can be cached, and training can be resumed.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from PIL import Image

from featcache.arrays import Floats, Pixels


@dataclass(frozen=True)
class Augmentation:
    """The largest changes; each is drawn evenly between its negative and itself."""

    rotation: float = 0.0  # degrees
    shift: float = 0.0  # of the side of the image, across and down
    shear: float = 0.0  # radians
    zoom: float = 0.0  # 0.2: from 0.8 to 1.2, across and down apart
    colour: float = 0.0  # brightness, contrast and saturation: 0.2: from 0.8 to 1.2
    border: str = "reflect"  # what lies beyond the image: its mirror image, or its outermost pixels ("edge")


AUGMENTATIONS: dict[str, Augmentation] = {
    "light": Augmentation(rotation=10, shift=0.05, zoom=0.1, colour=0.1),
    "strong": Augmentation(rotation=30, shift=0.1, shear=0.2, zoom=0.3, colour=0.4),
    # rotation_range=30, width_shift_range, height_shift_range, shear_range and zoom_range of 0.2, horizontal_flip, as
    # Keras meant them when that was written: shear in radians, fill_mode "nearest"
    "tutorial": Augmentation(rotation=30, shift=0.2, shear=0.2, zoom=0.2, border="edge"),
}
_VIEW = re.compile(r"(?P<name>[a-z]+)-(?P<number>\d{1,9})")


def augmentation_of(view: str) -> Augmentation | None:
    """Return what a view such as "light-3" is drawn from, None if it is no such view."""
    match = _VIEW.fullmatch(view)
    return AUGMENTATIONS.get(match["name"]) if match else None


def augmented(pixels: Pixels, view: str, digest: str) -> Pixels:
    """Return a view of an image (S, S, 3) with this digest; every other view returns it as it is."""
    limits = augmentation_of(view)
    if limits is None:
        return pixels
    return changed(pixels, limits, draws_of(view, digest))


def draws_of(view: str, digest: str) -> list[float]:
    """Return the ten numbers from -1 to 1 that decide a view of the image, each from four bytes of a hash."""
    hashed = hashlib.sha512(f"{view}:{digest}".encode()).digest()
    return [int.from_bytes(hashed[at : at + 4], "big") / 2**31 - 1 for at in range(0, 40, 4)]


def changed(pixels: Pixels, limits: Augmentation, draws: list[float]) -> Pixels:
    """Return an image (S, S, 3), changed by shares of the limits.

    draws: of rotation, shift (across, down), shear, zoom (across, down); mirrored if negative; of brightness, contrast
    and saturation.
    """
    moved = _moved(pixels, limits, draws)
    if draws[6] < 0:
        moved = moved[:, ::-1]
    if limits.colour:
        moved = _coloured(moved, limits.colour, draws[7:])
    return np.ascontiguousarray(moved)


def _moved(pixels: Pixels, limits: Augmentation, draws: list[float]) -> Pixels:
    """Turn, shear, zoom and move an image about its middle, as Keras' ImageDataGenerator composes them."""
    side = len(pixels)
    turn = draws[0] * limits.rotation * pi / 180
    lean = draws[3] * limits.shear
    zoom_x = 1 + draws[4] * limits.zoom
    zoom_y = 1 + draws[5] * limits.zoom
    rotation = np.array([[cos(turn), -sin(turn)], [sin(turn), cos(turn)]])
    shear = np.array([[1, -sin(lean)], [0, cos(lean)]])
    matrix = rotation @ shear @ np.diag([zoom_x, zoom_y])
    shift = rotation @ (np.array(draws[1:3]) * limits.shift * side)

    # Pillow has no such borders: put them around first, wider than any of the changes above can reach.
    border = side - 1
    widths = ((border, border), (border, border), (0, 0))
    wide = np.pad(pixels, widths, mode=limits.border)  # type: ignore[call-overload]

    # The place p of the result shows the place matrix p + offset of the image, with the middle as the fixed point.
    middle = (side - 1) / 2
    offset = middle + shift - matrix @ [middle, middle] + border
    # Pillow maps the middles of pixels: x + 0.5
    offset = offset + 0.5 - matrix @ [0.5, 0.5]
    data = (matrix[0, 0], matrix[0, 1], offset[0], matrix[1, 0], matrix[1, 1], offset[1])
    moved = Image.fromarray(wide).transform(
        (side, side), Image.Transform.AFFINE, data, resample=Image.Resampling.BILINEAR
    )
    return np.asarray(moved)


def _coloured(pixels: Pixels, limit: float, draws: list[float]) -> Pixels:
    """Change brightness, saturation and contrast, in this order, as share of the distance from black, grey and mean."""
    brightness, contrast, saturation = (np.float32(1 + limit * draw) for draw in draws)
    values = pixels.astype(np.float32) * brightness
    luma = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue
    grey: Floats = values @ luma
    mean = grey.mean()
    grey = grey[..., None]
    values = grey + saturation * (values - grey)
    values = mean + contrast * (values - mean)
    return np.asarray(np.clip(np.rint(values), 0, 255), dtype=np.uint8)
