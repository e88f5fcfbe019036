"""From which similarity on are two images too similar to be different ones? A threshold set from the data.

Different images have neighbours, too: the more images, and the more alike they are, the more similar. Beyond an image's
5th neighbour the number of neighbours falls off exponentially in z = artanh(similarity), as extremes do (Hill 1975;
Weissman 1978), at a rate that is measured between its 5th and its 15th. It is measured among 100 images, drawn at
random, so that copies do not count as different images: of 20 copies of each of 100 images there is one. Of those that
look the same as another one in the draw only the first stays. The four nearest are not used, for they may still be
copies, and the twentieth of images with the nearest 5th count as if theirs were as far as that of the next.

    expected(z) = N^2 / 2n * 5 * mean over n images of exp((z_5 - z) / rate)        pairs of different images beyond z

The threshold is where as many are expected as one accepts: the median over eleven draws. On 1,420 photographs of
flowers, where 142 pairs of different ones were expected, 134 were beyond it by features and 163 by hashes; where one
was, none. On 398 of ants and bees, where 40 were, 12 and 26. Among random vectors it is fewer than expected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits

from featcache.arrays import Classes, Floats
from featcache.extras.leaks.similar import Vectors, neighbours

FIRST, LAST = 5, 15  # ranks of the neighbours that are looked at
LEAST_IMAGES = 2 * (LAST + 1)  # with fewer nearly all are neighbours
DRAWN = 100  # or half of the images, if that is less
DRAWS = 11
LEAST_LEFT = LAST + FIRST  # images in a draw without copies
TRUSTED = 0.95  # share of images whose 5th neighbours are taken as they are
NEARLY_ONE = 1 - 1e-6
LEAST_RATE = 1e-6


@dataclass(frozen=True)
class Tail:
    """How the similarities of different images fall off."""

    rate: float  # in z
    level: float  # log of the number of pairs expected beyond z = 0

    def threshold(self, expected: float) -> float:
        """Return the similarity beyond which so many pairs of different images are expected, above 0.

        >>> tail = Tail(rate=0.1, level=16.0)
        >>> round(tail.threshold(expected=1), 3), round(tail.threshold(expected=100), 3)
        (0.922, 0.814)
        """
        return float(np.tanh(max(0.0, self.rate * (self.level - np.log(expected)))))


@dataclass(frozen=True)
class Tails:
    """What several draws say."""

    draws: tuple[Tail, ...]

    def threshold(self, expected: float) -> float:
        """Return the similarity beyond which so many pairs of different images are expected."""
        return float(np.median([tail.threshold(expected) for tail in self.draws]))


def draws_of(numbers: Classes, looks: Callable[[Classes], Vectors], same: float) -> list[Classes]:
    """Return random draws of images, by number, without those that look the same as one before; none of few images.

    looks: gives the images of these numbers; same: the similarity from which they look the same.
    """
    if len(numbers) < LEAST_IMAGES:
        return []
    size = min(DRAWN, max(LEAST_IMAGES, len(numbers) // 2))
    drawn = [numbers[np.random.default_rng(seed).permutation(len(numbers))[:size]] for seed in range(DRAWS)]
    with threadpool_limits(1):  # products this small gain nothing by more
        before = [np.tril(looks(rows).similarities(slice(None)), -1).max(axis=1) for rows in drawn]
    left = [rows[nearest < same] for rows, nearest in zip(drawn, before, strict=True)]
    return [rows for rows in left if len(rows) >= LEAST_LEFT]


def tails_of(draws: Sequence[Classes], count: int, looks: Callable[[Classes], Vectors]) -> Tails | None:
    """Return how the similarities of different images fall off among `count`, or None where too few tell."""
    with threadpool_limits(1):
        found = [_tail(neighbours(looks(rows), LAST), count) for rows in draws]
    tails = tuple(tail for tail in found if tail is not None)
    return Tails(tails) if tails else None


def _tail(nearest: Floats, count: int) -> Tail | None:
    """Return what one draw says. nearest: (n, LAST), how similar the nearest of the draw are, the nearest first."""
    z = np.arctanh(np.clip(nearest.astype(np.float64), -NEARLY_ONE, NEARLY_ONE))
    first = z[:, FIRST - 1]
    cap = np.quantile(first, TRUSTED)
    spacings = (z[:, FIRST - 1 : LAST - 1] - z[:, LAST - 1 :])[first <= cap].mean()
    rate = float(spacings / _expected_spacing())
    if rate < LEAST_RATE:
        return None
    beyond = logsumexp(np.minimum(first, cap) / rate) - np.log(len(z))
    return Tail(rate, float(np.log(count**2 / (2 * len(z)) * FIRST) + beyond))


def _expected_spacing() -> float:
    """Return how far the ranks from FIRST on lie above LAST in the mean, where the rate is one."""
    return float(np.mean([sum(1 / rank for rank in range(at, LAST)) for at in range(FIRST, LAST)]))
