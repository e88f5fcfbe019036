"""Solve (A + a) X = B for many numbers a from one reduction of A to tridiagonal form.

A symmetric matrix is A = Q T Q' with T tridiagonal, so (A + a)^-1 B = Q (T + a)^-1 Q' B, and each a costs only n
operations per column of B. For a matrix of 749 x 749 the reduction takes 20 ms of one core; all eigenvalues and
eigenvectors, which start from the same reduction, take 80 ms, and one Cholesky factorisation takes 7 ms.

LAPACK's dsytrd makes Q as a product of n - 1 reflections, which dormqr applies: n^2 multiplications per column.
Golub and Van Loan 2013, Matrix Computations, section 8.3.1.
"""

from __future__ import annotations

import numpy as np

from featcache.arrays import Floats

BLOCK = 64  # columns that LAPACK works on at a time, for which it needs room


class Tridiagonal:
    """A symmetric matrix A (n, n) in double precision as Q T Q'."""

    def __init__(self, A: Floats) -> None:
        from scipy.linalg.lapack import dsytrd

        # SciPy holds the GIL here, so that other threads wait; NumPy's eigh would not, but takes four times as long.
        reflectors, self._diagonal, beside, self._factors, _ = dsytrd(A, lower=1, lwork=BLOCK * len(A))
        self._beside = beside if beside.size else np.zeros(1)  # SciPy takes no empty array
        # Reflection j leaves the first j + 1 entries alone, so that none of them touches the first.
        self._reflectors = np.asfortranarray(reflectors[1:, :-1])

    def solve(self, alpha: float, B: Floats) -> Floats:
        """Return (T + alpha)^-1 B for B (n, m). Raises LinAlgError unless T + alpha is positive definite."""
        from scipy.linalg.lapack import dptsv

        *_, solution, info = dptsv(self._diagonal + alpha, self._beside, B)
        if info:
            raise np.linalg.LinAlgError(f"the matrix plus {alpha:g} is not positive definite")
        return np.asarray(solution)

    def into(self, B: Floats) -> Floats:
        """Return Q' B for B (n, m)."""
        return self._times(B, "L", "T")

    def out_of(self, B: Floats) -> Floats:
        """Return Q B for B (n, m)."""
        return self._times(B, "L", "N")

    def rows_into(self, B: Floats) -> Floats:
        """Return B Q for B (m, n)."""
        return self._times(B, "R", "N")

    def _times(self, B: Floats, side: str, transposed: str) -> Floats:
        from scipy.linalg.lapack import dormqr

        product = np.array(B, order="F")
        if not len(self._factors) or not B.size:  # a matrix of one number has no reflections
            return product
        reflected = product[1:] if side == "L" else product[:, 1:]
        room = BLOCK * max(reflected.shape)
        reflected[...], _, _ = dormqr(side, transposed, self._reflectors, self._factors, reflected, room)
        return product
