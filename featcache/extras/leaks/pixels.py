"""Do two images show the same? Compare their pixels: 64 x 64 greys, less what is smooth in them.

hashes     the 8 x 8 lowest frequencies of the cosine transform. pHash (Zauner 2010) keeps their signs; here they stay
           numbers, so that the similarity of two hashes is a correlation. All 8 symmetries of an image come from one
           transform: the k-th cosine is even or odd about the middle of the axis with k, so mirroring an axis changes
           the sign of its odd frequencies, and swapping the axes transposes the table
whole      the correlation of the whole images, in the best of the 8 symmetries
cropped    the largest correlation of the middle of one image with any part of the other, over 7 x 7 scales: for crops,
           and for the next photograph of a series

The smooth part (a Gaussian of 3 pixels) is subtracted, because otherwise every bright disc on black correlates with
every other. On photographs of flowers, pairs that show the same had correlations of 0.83 and more; the most similar
pair of different images had 0.54.
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
from featcache.extras.leaks.vector_pairs import Vectors, unit

SIDE = 64
LOW = 8  # frequencies along each axis
SMOOTH = 3.0  # pixels, standard deviation of the Gaussian
MIDDLE = 40  # pixels, side of the middle that is searched for in the other image
SCALES = tuple(2.0 ** (step / 6) for step in range(-3, 4))  # 0.71 to 1.41
FLAT = 1.0  # standard deviation in grey levels below which an image shows nothing
ROUGH = 0.25  # the same for the image less its smooth part: below, it is rounding
ALIKE = 2.0  # grey levels by which two images that show nothing may differ
UPRIGHT_BONUS = 0.02  # correlation that a turned image must gain before it counts as turned
HASH_BLOCK = 4096  # images at once
BLOCK = 64  # pairs at once
T = TypeVar("T")
SYMMETRIES = tuple(product((False, True), (False, True), (False, True)))  # axes swapped, upside down, mirrored


def hashes(greys: Pixels) -> Vectors:
    """Return the hashes of (N, 64, 64) greys, in all symmetries."""
    blocks: list[Floats] = []
    for start in range(0, len(greys), HASH_BLOCK):  # so that the memory of the transform is bounded
        blocks.append(_low_frequencies(greys[start : start + HASH_BLOCK]))
    low = np.concatenate(blocks)
    # The k-th cosine is odd about the middle of the axis if k is odd: mirroring changes its sign.
    is_odd = np.arange(LOW) % 2 == 1
    mirror_signs = np.where(is_odd, -1, 1).astype(np.float32)
    symmetries: list[Floats] = []
    for swapped, upside_down, mirrored in SYMMETRIES:
        turned = low.transpose(0, 2, 1) if swapped else low
        if upside_down:
            turned = turned * mirror_signs[:, None]
        if mirrored:
            turned = turned * mirror_signs
        symmetries.append(np.ascontiguousarray(turned.reshape(len(low), -1)))
    return Vectors(symmetries[0], tuple(symmetries))


def _low_frequencies(greys: Pixels) -> Floats:
    """Return (N, 8, 8): the lowest frequencies, at length one; zero for images that show nothing."""
    # 32 x 32 pixels, as in pHash, are enough for the lowest frequencies.
    half = SIDE // 2
    squares = greys.reshape(len(greys), half, 2, half, 2)
    halved = squares.mean(axis=(2, 4), dtype=np.float32)
    is_flat = halved.std(axis=(1, 2)) <= FLAT
    low = dctn(halved, axes=(1, 2), norm="ortho")[:, :LOW, :LOW]
    low[:, 0, 0] = 0  # the mean brightness says nothing about what an image shows
    low[is_flat] = 0
    vectors = unit(low.reshape(len(low), -1))
    return vectors.reshape(-1, LOW, LOW)


def outlines(greys: Pixels) -> Vectors:
    """Return (N, 64, 64) greys less their smooth part, in all symmetries. Their similarity is what `whole` returns."""
    sharp = _sharp(greys.astype(np.float32))
    symmetries: list[Floats] = []
    for how in SYMMETRIES:
        turned = _turned(sharp, *how)
        symmetries.append(np.ascontiguousarray(turned.reshape(len(sharp), -1)))
    return Vectors(symmetries[0], tuple(symmetries))


def whole(greys: Pixels, a: Classes, b: Classes) -> tuple[Floats, Classes]:
    """Return the agreement of pairs of (N, 64, 64) greys, (M,), and the number of its symmetry, (M,).

    Symmetry 0 is the image as it is; another one must agree clearly better. Two images that show nothing agree if they
    are equally bright.
    """

    def compared(block: slice) -> tuple[Floats, Classes]:
        first = greys[a[block]].astype(np.float32)
        second = greys[b[block]].astype(np.float32)
        left, right = _sharp(first), _sharp(second)
        # Of mean zero and length one, so the product of two images is their correlation. (8, P)
        correlations = np.stack([np.einsum("phw,phw->p", left, _turned(right, *how)) for how in SYMMETRIES])
        # The best of eight is higher by chance alone: a turned image must gain something to count.
        is_upright = correlations[0] > correlations.max(axis=0) - UPRIGHT_BONUS
        symmetry = np.where(is_upright, 0, correlations.argmax(axis=0))
        agreement = np.take_along_axis(correlations, symmetry[None], 0)[0]

        # The correlation of images that show nothing is zero or rounding: compare their brightness.
        both_flat = (first.std(axis=(1, 2)) < FLAT) & (second.std(axis=(1, 2)) < FLAT)
        equally_bright = np.abs(first - second).mean(axis=(1, 2)) < ALIKE
        return np.where(both_flat, equally_bright, agreement), np.where(both_flat, 0, symmetry)

    agreements, symmetries = zip(*_in_threads(compared, len(a)), strict=True)
    return np.concatenate(agreements), np.concatenate(symmetries)


def cropped(greys: Pixels, a: Classes, b: Classes) -> Floats:
    """Return (M,): how well the middle of either image of a pair agrees with a part of the other."""

    def compared(block: slice) -> Floats:
        first = greys[a[block]].astype(np.float32)
        second = greys[b[block]].astype(np.float32)
        # Either image may be the crop.
        return np.maximum(_best_match(first, second), _best_match(second, first))

    return np.concatenate(_in_threads(compared, len(a)))


def _in_threads(work: Callable[[slice], T], count: int) -> list[T]:
    blocks = [slice(at, at + BLOCK) for at in range(0, max(count, 1), BLOCK)]
    # One thread in each product: the threads here already use all cores, and products this small gain nothing more.
    with threadpool_limits(1), ThreadPoolExecutor(num_threads()) as threads:
        return list(threads.map(work, blocks))


def _turned(images: Floats, swapped: bool, upside_down: bool, mirrored: bool) -> Floats:
    if swapped:
        images = images.transpose(0, 2, 1)
    if upside_down:
        images = images[:, ::-1]
    if mirrored:
        images = images[:, :, ::-1]
    return images


def _sharp(images: Floats) -> Floats:
    """Return images (P, h, w) less their smooth part, of mean zero and length one, or zero if nothing is left."""
    rest = _rough(images)
    rest -= rest.mean(axis=(1, 2), keepdims=True)
    num_pixels = rest.shape[1] * rest.shape[2]
    # The length of a vector of mean zero is its standard deviation times the root of its size.
    least_length = ROUGH * num_pixels**0.5
    return unit(rest.reshape(len(rest), num_pixels), least_length).reshape(rest.shape)


def _rough(images: Floats) -> Floats:
    """Return images (P, h, w) less their smooth part."""
    _, height, width = images.shape
    # A Gaussian is separable: smooth along the columns, then along the rows.
    smooth = _smoother(height) @ images @ _smoother(width).T
    return np.asarray(images - smooth, np.float32)


@cache
def _smoother(side: int) -> Floats:
    """Return the matrix, (side, side), that smooths a column: ten times as fast as a filter."""
    return np.asarray(gaussian_filter1d(np.eye(side), SMOOTH, axis=0), np.float32)


def _best_match(scenes: Floats, templates: Floats) -> Floats:
    """Return (P,): the best normalised correlation of the middle of each template with any part of its scene.

    Normalised correlation at one place is <template, part> / |part - its mean|, for a template t of mean zero and
    length one: the mean of the part drops out of the product. All places come from one Fourier transform
    (Lewis 1995, Fast normalized cross-correlation).
    """
    rough = _rough(scenes)
    spectra = rfft2(rough, axes=(1, 2))
    part_lengths = _part_lengths(rough)
    best = np.full(len(scenes), -1, np.float32)
    # A part that starts later would wrap around the border, because the transform is periodic.
    places = slice(0, SIDE - MIDDLE + 1)
    for height_scale, width_scale in product(SCALES, SCALES):
        template = _sharp(_middle(height_scale) @ templates @ _middle(width_scale).T)
        # Padded with zeros to the size of the scene, so that one product of spectra compares all places.
        spectrum = rfft2(template, (SIDE, SIDE), axes=(1, 2))
        products = irfft2(spectra * np.conj(spectrum), (SIDE, SIDE), axes=(1, 2))
        correlations = products[:, places, places] / part_lengths
        np.maximum(best, correlations.max(axis=(1, 2)), out=best)
    return best


def _part_lengths(images: Floats) -> Floats:
    """Return the length, around its mean, of every part of MIDDLE x MIDDLE pixels, (P, 25, 25)."""
    sums = _box_sums(images)
    sums_of_squares = _box_sums(images * images)
    # sum (x - mean)^2 = sum x^2 - (sum x)^2 / n
    squared_lengths = sums_of_squares - sums * sums / MIDDLE**2
    # A floor for flat parts, so that dividing by their length does not scale up rounding.
    squared_lengths = np.maximum(squared_lengths, FLAT * MIDDLE**2)
    return np.sqrt(squared_lengths).astype(np.float32)


def _box_sums(values: Floats) -> Floats:
    """Return the sum over every box of MIDDLE x MIDDLE pixels, (P, 25, 25), from a table of running sums."""
    num_images, height, width = values.shape
    # A line of zeros before the first, so that the box at the border is a difference like all others. float64, because
    # differences of large running sums lose digits.
    padded = np.zeros((num_images, height + 1, width + 1))
    padded[:, 1:, 1:] = values
    running = padded.cumsum(axis=1).cumsum(axis=2)
    rows = running[:, MIDDLE:] - running[:, :-MIDDLE]
    return np.asarray(rows[:, :, MIDDLE:] - rows[:, :, :-MIDDLE])


@cache
def _middle(scale: float) -> Floats:
    """Return the matrix, (MIDDLE, 64), that resizes a column to `scale` of its length and takes the middle."""
    length = round(SIDE * scale)
    # What a linear resize does to the columns of the identity is its matrix.
    identity = Image.fromarray(np.eye(SIDE, dtype=np.float32))
    resized = np.asarray(identity.resize((SIDE, length), Image.Resampling.BILINEAR))
    start = (length - MIDDLE) // 2
    return resized[start : start + MIDDLE]
