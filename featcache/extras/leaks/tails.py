"""Set a threshold from the data: beyond which similarity are two images too similar to be different ones?

Different images have neighbours, too, and the more images there are, the more similar the nearest ones get. With
z = artanh(similarity), the number of an image's neighbours beyond z falls off exponentially as z grows, which is how
extremes of most distributions behave (Hill 1975; Weissman 1978). So the rate of the fall is measured where there are
enough neighbours (ranks 5 to 15) and extended to where there are none.

Let z_k be the z of an image's k-th nearest neighbour. If the number beyond z falls off as exp(-z / rate), the spacings
are independent and E[z_k - z_(k+1)] = rate / k (Renyi 1953), hence

    E[z_k - z_15] = rate * (1/k + 1/(k+1) + .. + 1/14)

and the rate is the mean of z_k - z_15 over k = 5..14 and all images, divided by the mean of those sums.

An image of a draw of n has 5 neighbours beyond its z_5, and thus 5 exp((z_5 - z) / rate) of its n pairs lie beyond z.
All N images make N^2 / 2 pairs, so the pairs of different images expected beyond z are

    expected(z) = N^2 / 2n * 5 * mean over the n images of exp((z_5 - z) / rate)

The threshold is the similarity at which this number is as large as the caller accepts; of eleven draws the median is
taken. Copies must not count as different images, hence three precautions: a draw has only 100 images, so that of 20
copies of each of 100 images it holds about one each; of images in a draw that look the same only the first is kept;
and the four nearest neighbours are not used, since they may still be copies. Also, the z_5 of the 5 % of images with
the nearest 5th neighbours are lowered to the 95th percentile.

Measured on 1,420 photographs of flowers: where 142 pairs of different ones were expected, 134 were beyond the threshold
by features and 163 by hashes; where one was expected, there was none. On 398 photographs of ants and bees, where 40
were expected, there were 12 and 26. Among random vectors there are fewer than expected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits

from featcache.arrays import Classes, Floats
from featcache.extras.leaks.vector_pairs import Vectors, neighbours

FIRST, LAST = 5, 15  # ranks of the neighbours from which the rate is measured
LEAST_IMAGES = 2 * (LAST + 1)  # among fewer images nearly all are neighbours
DRAW_SIZE = 100  # images in a draw, or half of the images if that is less
DRAWS = 11
LEAST_LEFT = LAST + FIRST  # images that a draw must keep once its copies are out
TRUSTED = 0.95  # share of images whose 5th neighbours are used as they are
NEARLY_ONE = 1 - 1e-6
LEAST_RATE = 1e-6


@dataclass(frozen=True)
class Tail:
    """How the number of similar pairs of different images falls off."""

    rate: float  # in z
    level: float  # log of the number of pairs expected beyond z = 0

    def threshold(self, expected: float) -> float:
        """Return the similarity, above 0, beyond which `expected` pairs of different images are expected.

        >>> tail = Tail(rate=0.1, level=16.0)
        >>> round(tail.threshold(expected=1), 3), round(tail.threshold(expected=100), 3)
        (0.922, 0.814)
        """
        # expected = exp(level - z / rate), solved for z
        z = self.rate * (self.level - np.log(expected))
        return float(np.tanh(max(0.0, z)))


@dataclass(frozen=True)
class Tails:
    """The tails of several draws."""

    draws: tuple[Tail, ...]

    def threshold(self, expected: float) -> float:
        """Return the similarity beyond which `expected` pairs of different images are expected."""
        return float(np.median([tail.threshold(expected) for tail in self.draws]))


def draws_of(numbers: Classes, looks: Callable[[Classes], Vectors], same: float) -> list[Classes]:
    """Return random draws of images, by number, each without images that look the same as an earlier one of the draw.

    looks: returns the vectors of the images with these numbers. same: the similarity from which two images look the
    same. Returns no draws if there are too few images.
    """
    if len(numbers) < LEAST_IMAGES:
        return []
    size = min(DRAW_SIZE, max(LEAST_IMAGES, len(numbers) // 2))
    draws: list[Classes] = []
    with threadpool_limits(1):  # products this small gain nothing from more threads
        for seed in range(DRAWS):
            order = np.random.default_rng(seed).permutation(len(numbers))
            rows = numbers[order[:size]]
            # Below the diagonal are an image's similarities to the images before it; elsewhere tril puts 0.
            nearest_before = np.tril(looks(rows).similarities(slice(None)), -1).max(axis=1)
            different = rows[nearest_before < same]
            if len(different) >= LEAST_LEFT:
                draws.append(different)
    return draws


def tails_of(draws: Sequence[Classes], count: int, looks: Callable[[Classes], Vectors]) -> Tails | None:
    """Return the tails of these draws from `count` images, or None if no draw has one."""
    tails: list[Tail] = []
    with threadpool_limits(1):
        for rows in draws:
            tail = _tail(neighbours(looks(rows), LAST), count)
            if tail is not None:
                tails.append(tail)
    return Tails(tuple(tails)) if tails else None


def _tail(nearest: Floats, count: int) -> Tail | None:
    """Return the tail of one draw from `count` images, or None if it is too steep to measure.

    nearest: (n, LAST), similarities of each image of the draw to its nearest neighbours, the nearest first.
    """
    # A similarity of exactly 1 would be infinite in z.
    z = np.arctanh(np.clip(nearest.astype(np.float64), -NEARLY_ONE, NEARLY_ONE))
    num_images = len(z)
    z_first, z_last = z[:, FIRST - 1], z[:, LAST - 1 :]  # (n,) and (n, 1): column k - 1 holds z_k
    spacings = z[:, FIRST - 1 : LAST - 1] - z_last  # (n, 10): z_k - z_15
    # Images whose 5th neighbour is still so near may have five copies. They do not count for the rate.
    cap = np.quantile(z_first, TRUSTED)
    is_trusted = z_first <= cap

    # The rate: the mean of z_k - z_15, in units of what Renyi's formula gives for rate 1.
    spacings_at_rate_1: list[float] = []
    for k in range(FIRST, LAST):
        spacings_at_rate_1.append(sum(1 / rank for rank in range(k, LAST)))
    rate = float(spacings[is_trusted].mean() / np.mean(spacings_at_rate_1))
    if rate < LEAST_RATE:
        return None

    # The level: log expected(0). In logs, because exp(z_5 / rate) overflows for a steep tail.
    log_mean = logsumexp(np.minimum(z_first, cap) / rate) - np.log(num_images)
    num_pairs_per_image = count**2 / (2 * num_images)
    return Tail(rate, float(np.log(num_pairs_per_image * FIRST) + log_mean))
