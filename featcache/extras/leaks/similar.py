"""All pairs of many vectors, block by block: the neighbours of some, and every pair above a threshold.

Never more than a block of rows is compared at once, so memory grows with N, not with N x N.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.arrays import Classes, Floats

BLOCK = 512  # rows that are compared with all others at once: 40 MB at 20,000 images
LEAST_NORM = 1e-6


@dataclass(frozen=True)
class Vectors:
    """Images as unit vectors, and the same images in other symmetries.

    The similarity of images i and j is the largest of one[i] @ other[j] over `others`. All are (N, D) float32.
    """

    one: Floats
    others: tuple[Floats, ...]

    def __len__(self) -> int:
        return len(self.one)

    def only(self, rows: Classes) -> Vectors:
        """Return some of the images."""
        return Vectors(self.one[rows], tuple(other[rows] for other in self.others))

    def similarities(self, rows: Classes | slice, first: int = 0) -> Floats:
        """Return (n, N - first): how similar these images are to all from `first` on."""
        found: Floats = self.one[rows] @ self.others[0][first:].T
        for other in self.others[1:]:
            np.maximum(found, self.one[rows] @ other[first:].T, out=found)
        return found


@dataclass(frozen=True)
class Pairs:
    """Pairs of images, a < b, most similar first, each (M,). cut: how many more there were."""

    a: Classes
    b: Classes
    similarity: Floats
    cut: int = 0

    def only(self, kept: npt.NDArray[np.bool_]) -> Pairs:
        """Return those of them that are kept, (M,)."""
        return Pairs(self.a[kept], self.b[kept], self.similarity[kept], self.cut)


def unit(vectors: Floats, least: float = LEAST_NORM) -> Floats:
    """Return the vectors at length one, (N, D) float32; those that are not longer than `least` become zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > least, norms, np.inf), np.float32)


def neighbours(vectors: Vectors, count: int) -> Floats:
    """Return (N, count): how similar the most similar others of each image are, most similar first. Of few images."""
    found = vectors.similarities(slice(None))
    np.fill_diagonal(found, -np.inf)
    return np.asarray(-np.sort(-found, axis=1)[:, :count])


def pairs_over(vectors: Vectors, threshold: float, most: int) -> Pairs:
    """Return the pairs at least as similar as the threshold; where there are more, the `most` similar ones."""
    found: list[tuple[Classes, Classes, Floats]] = []
    held, cut = 0, 0
    for start in range(0, len(vectors), BLOCK):
        similar = vectors.similarities(slice(start, start + BLOCK), start)
        similar[np.tril_indices(len(similar))] = -np.inf  # each pair once
        a, b = np.nonzero(similar >= threshold)
        found.append((a + start, b + start, similar[a, b]))
        held += len(a)
        if held > 2 * most:
            kept = _best(found, most)
            cut, held, threshold = cut + held - most, most, max(threshold, float(kept[2][-1]))
            found = [kept]
    a, b, values = _best(found, most)
    return Pairs(a, b, values, cut + held - len(a))


def _best(found: list[tuple[Classes, Classes, Floats]], most: int) -> tuple[Classes, Classes, Floats]:
    a, b, similar = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((b, a, -similar))[:most]
    return a[order], b[order], similar[order]
