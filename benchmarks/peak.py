"""The least number of multiplications of a sweep, and what share of the machine's speed it reaches.

The speed is that of one core at one large matrix product, measured in CPU time, so that other work on the machine
counts little. Additions, square roots, reading, writing and Python are not counted: their time lowers the share.
"""

from __future__ import annotations

import time

import numpy as np
import psutil
from threadpoolctl import threadpool_limits

SIZE = 1500  # of the matrices: their product takes 0.1 to 0.3 s of one core


def peak(dtype: str, repeats: int = 5) -> float:
    """Return the multiplications of one core in a second, at its fastest of several matrix products."""
    rng = np.random.default_rng(0)
    A = rng.normal(size=(SIZE, SIZE)).astype(dtype)
    seconds: list[float] = []
    with threadpool_limits(1):
        for _ in range(repeats):
            began = time.process_time()
            A @ A
            seconds.append(time.process_time() - began)
    return SIZE**3 / min(seconds)


def cpu_time() -> float:
    """Return the CPU seconds of this process and of those that it started and that still run, such as joblib's."""
    total = 0.0
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system
    return total


def share_of_peak(multiplications: float, dtype: str, cpu_s: float) -> str:
    """Return a line about a sweep that took so many seconds of CPU time."""
    speed = peak(dtype)
    at_least = multiplications / speed
    return (
        f"at least {multiplications / 1e9:.1f} G multiplications in {dtype}: {at_least:.2f} s of a core that makes "
        f"{speed / 1e9:.0f} G/s; took {cpu_s:.2f} s of CPU time, {at_least / cpu_s:.0%} of the peak"
    )


def of_ridge(N: int, D: int, K: int, num_folds: int, num_strengths: int) -> float:
    """Return the multiplications for all folds and the fit on all N images; the standardised features differ by fold.

    The products XX' or X'X, half of them for symmetry; the reduction to tridiagonal form, 2/3 of the cube; and the
    products with solutions. If there are fewer features than images, the folds can share X'X.
    """
    columns = num_strengths * K
    fit_on, choose = N - N // num_folds, N // num_folds
    if fit_on - 1 <= D:
        per_fold = fit_on**2 * D / 2 + 2 / 3 * fit_on**3 + choose * fit_on * (D + min(fit_on, columns) + columns)
        return num_folds * per_fold + N**2 * D / 2 + 2 / 3 * N**3 + N * (N + D) * columns
    per_fold = 2 / 3 * D**3 + choose * D * (min(D, columns) + columns)
    return N * D**2 / 2 + num_folds * per_fold + 2 / 3 * D**3 + D**2 * columns


def of_ridge_leave_one_out(N: int, D: int, K: int, num_strengths: int) -> float:
    """Return the multiplications: XX' or X'X, its eigenvectors, the solutions, the weights, and all hat matrices."""
    columns = num_strengths * K
    size = min(N, D)
    eigenvectors = (2 / 3 + 1) * size**3  # the reduction, and its inverse on the eigenvectors of the tridiagonal form
    products = N * D * size / 2
    if N - 1 <= D:
        return products + eigenvectors + N**2 * (columns + num_strengths) + N * D * columns
    return products + eigenvectors + D**2 * columns + N * D * (D + columns) + N * D * num_strengths


def of_linear(N: int, D: int, K: int, num_folds: int, num_strengths: int) -> float:
    """Return the multiplications for all folds and the fit on all N images, if one step were enough for each strength.

    XX' or X'X, half of it for symmetry; its eigenvectors; and for each strength a gradient, which is two products.
    """
    total = 0.0
    for fit_on in [N - N // num_folds] * num_folds + [N]:
        size = min(fit_on, D)
        total += fit_on * D * size / 2 + (2 / 3 + 1) * size**3
        total += 2 * num_strengths * K * fit_on * size
    return total


def of_distances(N: int, D: int, num_folds: int, fitted_together: bool) -> float:
    """Return the multiplications of the distances from the other images of each fold to those that fit.

    fitted_together: and among those that fit, also on all N images, as a support vector machine needs.
    """
    fit_on, choose = N - N // num_folds, N // num_folds
    multiplications = num_folds * choose * fit_on * D
    if fitted_together:
        multiplications += (num_folds * fit_on**2 + N**2) * D // 2
    return multiplications


def of_dense(D: int, K: int, num_heads: int, num_steps: int, batch: int) -> float:
    """Return the multiplications of training linear heads: each step's logits and its gradient."""
    return 2.0 * num_steps * batch * D * K * num_heads
