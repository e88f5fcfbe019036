"""Compare many vectors pair by pair: the nearest neighbours, and every pair above a threshold.

At most one block of rows is compared with all others at a time, so memory grows with N and not with N x N.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.arrays import Classes, Floats
from featcache.heads.row_blocks import row_slices

BLOCK = 512  # rows that are compared with all others at once: 40 MB at 20,000 images
LEAST_NORM = 1e-6


@dataclass(frozen=True)
class Vectors:
    """Images as unit vectors, and the same images in other symmetries.

    The similarity of images i and j is the largest of plain[i] @ other[j] over `others`. All are (N, D) float32.
    """

    plain: Floats
    others: tuple[Floats, ...]

    def __len__(self) -> int:
        return len(self.plain)

    def only(self, rows: Classes) -> Vectors:
        """Return the vectors of these images."""
        return Vectors(self.plain[rows], tuple(other[rows] for other in self.others))

    def similarities(self, rows: Classes | slice, first: int = 0) -> Floats:
        """Return (n, N - first): the similarity of these images to all images from number `first` on."""
        plain = self.plain[rows]
        best: Floats = plain @ self.others[0][first:].T
        for other in self.others[1:]:
            np.maximum(best, plain @ other[first:].T, out=best)
        return best


@dataclass(frozen=True)
class Pairs:
    """Pairs of images, a < b, most similar first, each (M,). cut: number of pairs that were left out."""

    a: Classes
    b: Classes
    similarity: Floats
    cut: int = 0

    def only(self, kept: npt.NDArray[np.bool_]) -> Pairs:
        """Return the pairs where `kept`, (M,), is true."""
        return Pairs(self.a[kept], self.b[kept], self.similarity[kept], self.cut)


def unit(vectors: Floats, least: float = LEAST_NORM, out: Floats | None = None) -> Floats:
    """Return the vectors at length one, (N, D) float32; vectors no longer than `least` become zero.

    out: where to put them, which may be `vectors`.
    """
    units = np.empty(vectors.shape, np.float32) if out is None else out
    for block in row_slices(len(vectors), BLOCK):
        norms = np.linalg.norm(vectors[block], axis=1, keepdims=True)
        # Dividing by infinity makes short vectors zero: similar to nothing, and no NaN.
        units[block] = vectors[block] / np.where(norms > least, norms, np.inf)
    return units


def neighbours(vectors: Vectors, count: int) -> Floats:
    """Return (N, count): similarities of each image to its nearest others, nearest first. Takes N x N floats."""
    similar = vectors.similarities(slice(None))
    np.fill_diagonal(similar, -np.inf)  # no image is its own neighbour
    nearest_first = -np.sort(-similar, axis=1)
    return np.asarray(nearest_first[:, :count])


def pairs_over(vectors: Vectors, threshold: float, most: int) -> Pairs:
    """Return the pairs at least as similar as the threshold; if there are more than `most`, the most similar ones."""
    blocks: list[tuple[Classes, Classes, Floats]] = []
    held, cut = 0, 0
    for start in range(0, len(vectors), BLOCK):
        # Images before this block have met it already, so it is compared with itself and with those after it.
        similar = vectors.similarities(slice(start, start + BLOCK), start)
        similar[np.tril_indices(len(similar))] = -np.inf  # so that each pair comes once, and no image with itself
        a, b = np.nonzero(similar >= threshold)
        blocks.append((a + start, b + start, similar[a, b]))
        held += len(a)
        # Only at twice the limit, so that not every block sorts all pairs again.
        if held > 2 * most:
            # Keep the best so far. What is less similar than the last of them can never be among the best.
            a, b, similarity = _most_similar(blocks, most)
            blocks = [(a, b, similarity)]
            threshold = max(threshold, float(similarity[-1]))
            cut += held - most
            held = most
    a, b, similarity = _most_similar(blocks, most)
    return Pairs(a, b, similarity, cut + held - len(a))


def _most_similar(blocks: list[tuple[Classes, Classes, Floats]], most: int) -> tuple[Classes, Classes, Floats]:
    a, b, similarity = map(np.concatenate, zip(*blocks, strict=True))
    # By similarity, then by number, so that ties are cut in the same way every time.
    order = np.lexsort((b, a, -similarity))[:most]
    return a[order], b[order], similarity[order]
