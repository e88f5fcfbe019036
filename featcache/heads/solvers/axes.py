"""Rotate features to their principal axes, where the Hessians of linear heads are nearly diagonal.

A penalty |B|^2 does not change when the axes rotate, and the minimum never leaves the span of the rows. So a linear
head is sought along R <= min(N, D) axes. Shapes: N images, D features, R axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from featcache.arrays import Floats
from featcache.heads.row_blocks import row_slices

MIN_VARIANCE = 1e-12  # of the largest: principal axes with less variance hold only rounding error
BLOCK_ROWS = 2048  # rows that are weighted at the same time
SMALL_PRODUCT = 1_000_000  # multiplications; OpenBLAS copies the operands of larger products first
LEAST_ROWS = 16  # of a small product; with fewer the calls cost more than the copies

ReadRows = Callable[[slice], Floats]  # (n, D), shifted or extended as the head needs


@dataclass(frozen=True)
class Rotated:
    """Features along their principal axes, perhaps with a last column of ones."""

    features: Floats  # (N, R)
    variances: Floats  # (R,), the weighted mean square of each column
    back: Callable[[Floats], Floats]  # coefficients (K, S, R), without the column of ones, -> (K, S, D)


def rotated(
    rows: ReadRows, width: int, weights: Floats, dtype: type[np.floating], *, add_ones: bool = False
) -> Rotated:
    """Return the rows, of D = width columns, along their principal axes.

    weights: (N,), with sum 1. add_ones: whether a last column of ones follows the axes; its mean square is 1.
    """
    # Both give the same axes; each decomposes the smaller of the (N, N) and the (D, D) products.
    rotate = _rotate_few_rows if len(weights) < width else _rotate_many_rows
    features, variances, back = rotate(rows, width, weights, dtype, int(add_ones))
    if add_ones:
        variances = np.append(variances, 1)
    return Rotated(features, variances.astype(dtype), back)


_Rotation = tuple[Floats, Floats, Callable[[Floats], Floats]]


def _rotate_few_rows(rows: ReadRows, width: int, weights: Floats, dtype: type[np.floating], num_ones: int) -> _Rotation:
    """Find the principal axes from the (N, N) products of rows, for N < D.

    With A = sqrt(w) X and A A' = Q diag(v) Q', the axes are V = A' Q / sqrt(v), and X V = Q sqrt(v) / sqrt(w).
    Cost: N^2 D + N^3.
    """
    root = np.sqrt(weights)[:, None]
    weighted = root * rows(slice(None))  # A
    variances, vectors = _principal_axes(weighted @ weighted.T)
    spread = np.sqrt(variances)
    features = np.ones((len(weights), len(variances) + num_ones), dtype)
    features[:, : len(variances)] = vectors * spread / root
    weighted = weighted.astype(dtype)
    to_rows = (vectors / spread).astype(dtype)
    # B V' = (B (Q / sqrt(v))') A, without ever making the (D, R) matrix V
    return features, variances, lambda B: times(times(B, to_rows.T), weighted)


def _rotate_many_rows(
    rows: ReadRows, width: int, weights: Floats, dtype: type[np.floating], num_ones: int
) -> _Rotation:
    """Find the principal axes V from the (D, D) covariance A'A = V diag(v) V'. Cost: 2 N D^2 + D^3.

    Products are made in `dtype`. In float32 the axes are principal up to rounding, and that is enough: no minimum
    depends on which orthogonal axes it is sought along.
    """
    root = np.sqrt(weights)[:, None].astype(dtype)
    covariance = np.zeros((width, width))
    for block in row_slices(len(weights), BLOCK_ROWS):
        weighted = root[block] * rows(block)
        covariance += weighted.T @ weighted
    _, vectors = _principal_axes(covariance)
    axes = vectors.astype(dtype)
    features = np.ones((len(weights), axes.shape[1] + num_ones), dtype)
    # Not the eigenvalues, of which rounding may make the small ones negative.
    variances = np.zeros(axes.shape[1])
    for block in row_slices(len(weights), BLOCK_ROWS):
        along_axes = rows(block) @ axes
        features[block, : len(variances)] = along_axes
        variances += np.square(root[block] * along_axes).sum(axis=0)
    return features, variances, lambda B: times(B, axes.T)


def _principal_axes(gram: Floats) -> tuple[Floats, Floats]:
    # NumPy's eigh, because SciPy's holds the GIL while other threads fit other heads.
    values, vectors = np.linalg.eigh(gram)  # in ascending order
    kept = np.abs(values) > max(values[-1], 0) * MIN_VARIANCE  # of float32 products, small ones may be negative
    return values[kept], vectors[:, kept]


def times(A: Floats, M: Floats) -> Floats:
    """Return A (K, S, n) @ M (n, m) as one matrix product, which NumPy would otherwise make K times."""
    K, S, n = A.shape
    product = A.reshape(K * S, n) @ M
    return product.reshape(K, S, M.shape[1])


def scores(B: Floats, features: Floats) -> Floats:
    """Return the scores (K, S, N) of images along their axes (N, R), for coefficients B (K, S, R).

    For few problems OpenBLAS takes longer to copy the features than to multiply them. It does not copy small operands,
    so then images are multiplied a few at a time.
    """
    K, S, R = B.shape
    num_rows = SMALL_PRODUCT // B.size
    if num_rows < LEAST_ROWS:
        return times(B, features.T)
    columns = np.ascontiguousarray(B.reshape(K * S, R).T)
    product = np.empty((K * S, len(features)), features.dtype)
    for block in row_slices(len(features), num_rows):
        product[:, block] = (features[block] @ columns).T
    return product.reshape(K, S, len(features))
