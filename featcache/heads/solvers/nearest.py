"""Find the images with the largest cosine similarity, for a block of images at a time.

The neighbours are those that scikit-learn finds. Its search copies all features at unit length, and holds a gigabyte
of distances and up to two of their order; here both fit in a block. Cost: M N D for M images among N.
"""

from __future__ import annotations

import numpy as np

from featcache.arrays import Classes, Features
from featcache.heads.row_blocks import row_slices

BLOCK_BYTES = 2**25  # of similarities in memory at the same time
GROUP = 32  # columns


def nearest(X: Features, images: Features, count: int) -> Classes:
    """Return (M, count): for each image (M, D) the rows of X (N, D) that are nearest, the nearest first."""
    norms = _norms(X)
    rows = np.zeros((len(images), count), np.int64)
    for block in row_slices(len(images), _rows_in_block(X)):
        similarities = images[block] @ X.T
        similarities /= norms
        rows[block] = _largest(similarities, count)
    return rows


def nearest_others(X: Features, count: int) -> Classes:
    """Return (N, count): for each row of X (N, D) the other rows that are nearest, the nearest first."""
    norms = _norms(X)
    rows = np.zeros((len(X), count), np.int64)
    for block in row_slices(len(X), _rows_in_block(X)):
        similarities = X[block] @ X.T
        similarities /= norms
        itself = np.arange(block.start, block.stop)
        similarities[itself - block.start, itself] = -np.inf
        rows[block] = _largest(similarities, count)
    return rows


def _norms(X: Features) -> Features:
    """Return the lengths of the rows (N,), with 1 for what scikit-learn takes for zero, which is similar to nothing."""
    # The length of the other image is left out: it does not change which rows are nearest to it.
    norms: Features = np.sqrt(np.einsum("nd,nd->n", X, X))
    norms[norms < 10 * np.finfo(norms.dtype).eps] = 1
    return norms


def _rows_in_block(X: Features) -> int:
    return max(1, BLOCK_BYTES // (len(X) * X.itemsize))


def _largest(similarities: Features, count: int) -> Classes:
    """Return the columns of the largest numbers in each row, the largest first.

    Columns are looked at in groups of GROUP: `count` groups, those with the largest maxima, hold the largest numbers.
    """
    num_rows, num_columns = similarities.shape
    num_groups = num_columns // GROUP
    if num_groups <= count:
        candidates = np.broadcast_to(np.arange(num_columns), similarities.shape)
    else:
        in_groups = num_groups * GROUP  # the columns after these are in no group
        # A group has every num_groups-th column: its maximum is then found for all groups side by side.
        maxima = similarities[:, :in_groups].reshape(num_rows, GROUP, num_groups).max(axis=1)
        groups = np.argpartition(maxima, -count, axis=1)[:, -count:]
        members = groups[:, None] + num_groups * np.arange(GROUP)[:, None]  # (M, GROUP, count)
        others = np.broadcast_to(np.arange(in_groups, num_columns), (num_rows, num_columns - in_groups))
        candidates = np.hstack([members.reshape(num_rows, -1), others])

    values = np.take_along_axis(similarities, candidates, axis=1)
    largest = np.argpartition(values, -count, axis=1)[:, -count:]
    order = np.argsort(-np.take_along_axis(values, largest, axis=1), axis=1)
    columns = np.take_along_axis(candidates, np.take_along_axis(largest, order, axis=1), axis=1)
    return np.asarray(columns)
