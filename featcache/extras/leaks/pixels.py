"""Do two images show the same? Their pixels are compared, as 64 x 64 greys without what is smooth in them.

hashes         8 x 8 lowest frequencies of the cosine transform, of which pHash keeps the signs. Kept as numbers, their
               similarity is a correlation. Mirroring changes signs, turning by 90 degrees swaps the axes, too
whole          correlation of the whole images in the best of their 8 symmetries
cropped        correlation of the middle of one image with the other, at the best of 49 scales and all places:
               crops, and the next photograph of a series

What is smooth is taken away (a Gaussian of 3 pixels), because a bright disc on black correlates with every other one.
On photographs of flowers the same ones got 0.83 and more, the most similar of different ones 0.54.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import product
from typing import TypeVar

import numpy as np
from PIL import Image
from scipy.fft import dctn, irfft2, rfft2
from scipy.ndimage import gaussian_filter1d
from threadpoolctl import threadpool_limits

from featcache.arrays import Classes, Floats, Pixels
from featcache.extraction.pipeline import num_threads
from featcache.extras.leaks.similar import Vectors, unit

SIDE = 64
LOW = 8  # frequencies along each axis
SMOOTH = 3.0
MIDDLE = 40  # pixels of what is looked for in the other image
SCALES = tuple(2.0 ** (step / 6) for step in range(-3, 4))  # 0.71 to 1.41
FLAT = 1.0  # standard deviation in grey levels below which an image shows nothing
ROUGH = 0.25  # the same of what is not smooth: below, it is rounding
ALIKE = 2.0  # grey levels by which two images that show nothing may differ
BLOCK = 64  # pairs at once
T = TypeVar("T")
SYMMETRIES = tuple(product((False, True), (False, True), (False, True)))  # axes swapped, upside down, mirrored


def hashes(greys: Pixels) -> Vectors:
    """Return the hashes of (N, 64, 64) greys, in all symmetries."""
    found = np.concatenate([_low(greys[at : at + 4096]) for at in range(0, len(greys), 4096)])
    signs = np.where(np.arange(LOW) % 2, -1, 1).astype(np.float32)
    others = []
    for swapped, upside_down, mirrored in SYMMETRIES:
        other = found.transpose(0, 2, 1) if swapped else found
        other = other * (signs[:, None] if upside_down else 1) * (signs if mirrored else 1)
        others.append(np.ascontiguousarray(other.reshape(len(found), -1)))
    return Vectors(others[0], tuple(others))


def _low(greys: Pixels) -> Floats:
    halved = greys.reshape(len(greys), SIDE // 2, 2, SIDE // 2, 2).mean(axis=(2, 4), dtype=np.float32)
    shown = halved.std(axis=(1, 2)) > FLAT
    low = dctn(halved, axes=(1, 2), norm="ortho")[:, :LOW, :LOW]
    low[:, 0, 0] = 0  # how bright it is
    low[~shown] = 0
    return unit(low.reshape(len(low), -1)).reshape(-1, LOW, LOW)


def outlines(greys: Pixels) -> Vectors:
    """Return (N, 64, 64) greys without what is smooth, in all symmetries: their similarity is what `whole` gives."""
    found = _sharp(greys.astype(np.float32))
    others = [np.ascontiguousarray(_turned(found, *how).reshape(len(found), -1)) for how in SYMMETRIES]
    return Vectors(others[0], tuple(others))


def whole(greys: Pixels, a: Classes, b: Classes) -> tuple[Floats, Classes]:
    """Return for pairs (M,) of (N, 64, 64) greys how well they agree, and in which symmetry: none if it can be.

    Two images that show nothing agree if they are equally bright.
    """

    def compared(some: slice) -> tuple[Floats, Classes]:
        first, second = greys[a[some]].astype(np.float32), greys[b[some]].astype(np.float32)
        left, right = _sharp(first), _sharp(second)
        found = np.stack([np.einsum("phw,phw->p", left, _turned(right, *how)) for how in SYMMETRIES])
        best = np.where(found[0] > found.max(axis=0) - 0.02, 0, found.argmax(axis=0))
        flat = (first.std(axis=(1, 2)) < FLAT) & (second.std(axis=(1, 2)) < FLAT)
        same = np.abs(first - second).mean(axis=(1, 2)) < ALIKE
        return np.where(flat, same, np.take_along_axis(found, best[None], 0)[0]), np.where(flat, 0, best)

    values, which = zip(*_in_threads(compared, len(a)), strict=True)
    return np.concatenate(values), np.concatenate(which)


def cropped(greys: Pixels, a: Classes, b: Classes) -> Floats:
    """Return for pairs (M,) of (N, 64, 64) greys how well the middle of either agrees with a part of the other."""

    def compared(some: slice) -> Floats:
        first, second = greys[a[some]].astype(np.float32), greys[b[some]].astype(np.float32)
        return np.maximum(_sought(first, second), _sought(second, first))

    return np.concatenate(_in_threads(compared, len(a)))


def _in_threads(work: Callable[[slice], T], count: int) -> list[T]:
    parts = [slice(at, at + BLOCK) for at in range(0, max(count, 1), BLOCK)]
    with threadpool_limits(1), ThreadPoolExecutor(num_threads()) as threads:  # products this small gain nothing by more
        return list(threads.map(work, parts))


def _turned(images: Floats, swapped: bool, upside_down: bool, mirrored: bool) -> Floats:
    images = images.transpose(0, 2, 1) if swapped else images
    return images[:, :: -1 if upside_down else 1, :: -1 if mirrored else 1]


def _sharp(images: Floats) -> Floats:
    """Return images (P, h, w) without what is smooth, each of mean zero and length one, or zero if nothing is left."""
    rest = _rough(images)
    rest -= rest.mean(axis=(1, 2), keepdims=True)
    count = rest.shape[1] * rest.shape[2]
    return unit(rest.reshape(len(rest), count), ROUGH * count**0.5).reshape(rest.shape)


def _rough(images: Floats) -> Floats:
    smooth_rows, smooth_columns = (_smoother(side) for side in images.shape[1:])
    return np.asarray(images - smooth_rows @ images @ smooth_columns.T, np.float32)


@cache
def _smoother(side: int) -> Floats:
    """Return (side, side): what smooths a column. As products of matrices it is ten times as fast as a filter."""
    return np.asarray(gaussian_filter1d(np.eye(side), SMOOTH, axis=0), np.float32)


def _sought(where: Floats, what: Floats) -> Floats:
    """Return (P,): the best normalised correlation of the middle of `what` with any part of `where`."""
    rough = _rough(where)
    spectra, spread = rfft2(rough, axes=(1, 2)), _spread(rough)
    best = np.full(len(where), -1, np.float32)
    places = slice(0, SIDE - MIDDLE + 1)
    for high, wide in product(SCALES, SCALES):
        template = _sharp(_middle(high) @ what @ _middle(wide).T)
        moved = irfft2(spectra * np.conj(rfft2(template, (SIDE, SIDE), axes=(1, 2))), (SIDE, SIDE), axes=(1, 2))
        np.maximum(best, (moved[:, places, places] / spread).max(axis=(1, 2)), out=best)
    return best


def _spread(images: Floats) -> Floats:
    """Return the length that each part of MIDDLE x MIDDLE pixels has around its mean, (P, 25, 25)."""
    sums, squares = (_boxes(values) for values in (images, images * images))
    varying = squares - sums * sums / MIDDLE**2
    return np.sqrt(np.maximum(varying, FLAT * MIDDLE**2)).astype(np.float32)


def _boxes(values: Floats) -> Floats:
    summed = np.pad(values.astype(np.float64), ((0, 0), (1, 0), (1, 0))).cumsum(axis=1).cumsum(axis=2)
    rows = summed[:, MIDDLE:] - summed[:, :-MIDDLE]
    return np.asarray(rows[:, :, MIDDLE:] - rows[:, :, :-MIDDLE])


@cache
def _middle(scale: float) -> Floats:
    """Return (MIDDLE, 64): what resizes a column to `scale` of its length and takes the middle."""
    length = round(SIDE * scale)
    eye = Image.fromarray(np.eye(SIDE, dtype=np.float32))
    resized = np.asarray(eye.resize((SIDE, length), Image.Resampling.BILINEAR))
    start = (length - MIDDLE) // 2
    return resized[start : start + MIDDLE]
