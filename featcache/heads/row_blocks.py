"""Work on many rows one block at a time, so that no intermediate array is as long as the features."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from featcache.arrays import Features, Floats

ROWS = 1024


def row_slices(num_rows: int, rows: int | None = None) -> Iterator[slice]:
    """Yield slices of `rows` rows that together cover `num_rows`; the last may be shorter."""
    step = rows or ROWS
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def map_rows(function: Callable[[Features], Floats], X: Features) -> Floats:
    """Return function(X), computed block by block. The function treats each row by itself; X may be empty."""
    if len(X) <= ROWS:
        return function(X)
    return np.concatenate([function(X[block]) for block in row_slices(len(X))])


def sum_blocks(function: Callable[[slice], Floats], num_rows: int) -> Floats:
    """Return the sum of function(block) over all blocks of at least one row."""
    total: Floats | None = None
    for block in row_slices(num_rows):
        term = function(block)
        total = term if total is None else np.add(total, term, out=total)
    assert total is not None
    return total
