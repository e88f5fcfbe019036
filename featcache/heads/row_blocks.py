"""Work on many rows a block at a time, so that what is made of them never lies in memory whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from featcache.arrays import Features, Floats

ROWS = 1024


def slices(num_rows: int, rows: int | None = None) -> Iterator[slice]:
    """Yield slices that cover so many rows."""
    step = rows or ROWS
    return (slice(at, min(at + step, num_rows)) for at in range(0, num_rows, step))


def mapped(function: Callable[[Features], Floats], X: Features) -> Floats:
    """Return function(X) of a function that works row by row; one block at least is given to it."""
    if len(X) <= ROWS:
        return function(X)
    return np.concatenate([function(X[some]) for some in slices(len(X))])


def squared(rows: Floats) -> Floats:
    """Return X'X (D, D) of rows X (n, D)."""
    return np.asarray(rows.T @ rows)


def summed(function: Callable[[slice], Floats], num_rows: int) -> Floats:
    """Return the sum of a function over blocks of rows, one at least."""
    total: Floats | None = None
    for some in slices(num_rows):
        part = function(some)
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return total
