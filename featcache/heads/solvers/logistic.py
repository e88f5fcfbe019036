"""Solve multinomial logistic regression for many regularisation strengths at once.

For each strength C the minimum over B of the convex

    F(B) = sum_i w_i loss_i(B) + penalty / 2 |B|^2        penalty = 1 / (C sum_i s_i)

where w = s / sum(s) are the sample weights s scaled to sum 1. This is scikit-learn's objective divided by C sum(s), so
the minimum is the same. The method takes a fraction of scikit-learn's time for three reasons:

- Rotation. |B| does not change when the axes rotate, and B never leaves the span of the rows of X. So B is sought along
  the principal axes of X: R - 1 <= min(N, D) columns, and one column of ones for the intercept.
- Preconditioned conjugate gradients. Along principal axes the Hessian is nearly diagonal, p (1 - p) lambda + penalty
  (after Boehning 1992, "Multinomial logistic regression algorithm"), so few steps are enough. Strengths step together,
  because one large matrix product is faster than many small ones.
- Warm starts. Strengths that are 100 times apart are solved in ascending order, each from the solution below. The
  others start between their two solved neighbours. So the result for a strength hardly depends on which others are
  requested, even where the minimum is far from zero.

Two classes are solved as K = 2 with C / 2. With v = w_1 - w_0, the minimum has w_1 = -w_0 = v / 2, so that
|w_0|^2 + |w_1|^2 = |v|^2 / 2: twice the penalty on (w_0, w_1) equals scikit-learn's penalty on v.

Cost of one step for S strengths: two products of (K S, R) with (R, N), and one pass over (K, S, N) for each try of the
line search. Shapes: N images, D features, K classes, S strengths, R columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.arrays import Classes, Floats
from featcache.heads.row_blocks import row_slices

# When to stop
TOL_SHARE = 10  # stop at tol / 10: with weak penalties the gradient is small long before the minimum
FLOAT32_TOL = 1e-5  # down to this gradient norm float32 is enough: its rounding error stays below a tenth of it
MIN_TOL = 1e-12  # rounding error of the gradient in float64
MAX_GAP = 1e-4  # of F: where classes are separable, the gradient alone stops half-way to the minimum

# In which order strengths are solved
LADDER = tuple(10.0**power for power in range(-17, 16, 2))  # always solved first, whichever strengths are requested
EASY_STRENGTH = 1e-3  # below this a strength needs no warm start from the ladder
SPACINGS = (10.0, 10**0.5, 1.0)  # after the ladder: strengths this factor apart, then those between them

# How one step is made
PRECONDITIONER_STEPS = 3  # steps between two computations of the preconditioner
MIN_CURVATURE = 0.02  # of p (1 - p) at B = 0; p (1 - p) itself vanishes where classes are separable
SLOPE_SHARE = 0.5  # the line search ends at this share of the first slope
MAX_LINE_TRIES = 20

# How much memory it takes
MIN_VARIANCE = 1e-12  # of the largest: principal axes with less variance hold only rounding error
BATCH_NUMBERS = 2**24  # numbers in one batch of strengths, or as many as X has
ARRAYS_PER_BATCH = 8  # arrays of the size of the logits in one batch
BLOCK_ROWS = 2048  # rows that are float64 at the same time


@dataclass(frozen=True)
class Solution:
    """The solution for one strength. If it has not converged, `iterations` is `max_iter`."""

    coef: Floats  # (K, D); (1, D) for two classes
    intercept: Floats  # (K,) with mean 0; (1,) for two classes
    iterations: int
    converged: bool


def logistic_path(
    X: Floats,
    index: Classes,
    strengths: Sequence[float],
    sample_weight: Floats | None = None,
    max_iter: int = 1000,
    tol: float = 1e-4,
) -> list[Solution]:
    """Return the minimum of sum_i s_i loss_i + |W|^2 / (2 C) for every strength C. Arrays have the type of X.

    X: (N, D), standardised. index: (N,) from 0 to K - 1, where every class occurs. sample_weight: s, (N,), above 0.
    A solution has converged when, for each class, the gradient of the mean loss has a Euclidean norm of at most
    tol / 10. scikit-learn compares the largest entry of that gradient, which is never larger than the norm, with tol.
    """
    s = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    problem = _rotated_problem(X, index, s / s.sum(), max(tol / TOL_SHARE, MIN_TOL))
    is_binary = problem.num_classes == 2

    # Solve the steps of the ladder too: they are the warm starts of the strengths between them.
    requested = np.asarray(strengths, np.float64)
    lowest_step = min(EASY_STRENGTH, requested.min() / 100)
    ladder = [step for step in LADDER if lowest_step < step <= requested.max()]
    order = np.unique([*requested, *ladder])

    # Two classes are solved as K = 2, where C / 2 is the same as twice the penalty.
    penalties = (2 if is_binary else 1) / (order * s.sum())
    B = np.zeros((problem.num_classes, len(order), len(problem.variances)), problem.features.dtype)
    iterations = np.full(len(order), max_iter)
    for solved, next_up in _levels(order, np.isin(order, ladder)):
        starts = _starting_points(np.log(order), B, solved, next_up)
        for part in _memory_batches(len(next_up), problem):
            at = next_up[part]
            B[:, at], iterations[at] = _descend(problem, penalties[at], starts[:, part], max_iter)

    coef: Floats = problem.rotate_back(B[..., :-1])
    # The features were centred: x coef' + intercept = (x - mean) coef' + B_last
    intercept: Floats = B[..., -1] - coef @ problem.mean
    if is_binary:
        coef = coef[1:] - coef[:1]
        intercept = intercept[1:] - intercept[:1]
    coef = coef.astype(X.dtype)
    intercept = intercept.astype(X.dtype)

    solutions = []
    for at in np.searchsorted(order, requested):
        steps = int(iterations[at])
        solutions.append(Solution(coef[:, at], intercept[:, at], steps, converged=steps < max_iter))
    return solutions


@dataclass(frozen=True)
class _LogisticProblem:
    """The features along R - 1 principal axes, with a last column of ones for the intercept."""

    features: Floats  # (N, R)
    variances: Floats  # (R,), the weighted mean square of each column
    weights: Floats  # (N,), with sum 1
    index: Classes  # (N,)
    num_classes: int
    mean: Floats  # (D,) of X
    rotate_back: Callable[[Floats], Floats]  # (K, S, R - 1) along principal axes -> (K, S, D) along features
    tol: float

    def probabilities(self, logits: Floats) -> Floats:
        """Return the softmax over the first axis, (K, S, N)."""
        # In place from the second line on, so that no further array of this size is made.
        values = logits - logits.max(axis=0)
        np.exp(values, out=values)
        values /= values.sum(axis=0)
        return np.asarray(values)

    def residual(self, probabilities: Floats) -> Floats:
        """Return the derivative of the mean loss by each logit, w (p - y) with y one-hot, (K, S, N)."""
        values = probabilities.copy()
        values[self.index, :, np.arange(len(self.index))] -= 1
        values *= self.weights
        return values


def _rotated_problem(X: Floats, index: Classes, weights: Floats, tol: float) -> _LogisticProblem:
    dtype = np.float32 if tol >= FLOAT32_TOL else np.float64
    mean = weights.astype(X.dtype) @ X
    # Both give the same axes; each decomposes the smaller of the (N, N) and the (D, D) products.
    rotate = _rotate_few_rows if len(X) < X.shape[1] else _rotate_many_rows
    features, variances, rotate_back = rotate(X, mean, weights, dtype)
    variances = np.append(variances, 1).astype(dtype)  # the column of ones
    num_classes = int(index.max()) + 1
    return _LogisticProblem(features, variances, weights.astype(dtype), index, num_classes, mean, rotate_back, tol)


_Rotation = tuple[Floats, Floats, Callable[[Floats], Floats]]


def _rotate_few_rows(X: Floats, mean: Floats, weights: Floats, dtype: type[np.floating]) -> _Rotation:
    """Find the principal axes from the (N, N) products of rows, for N < D.

    With A = sqrt(w) (X - mean) and A A' = Q diag(v) Q', the axes are V = A' Q / sqrt(v), and A V = Q sqrt(v).
    Cost: N^2 D + N^3.
    """
    root = np.sqrt(weights)[:, None]
    rows = root * (X - mean)  # A
    variances, vectors = _principal_axes(rows @ rows.T)
    spread = np.sqrt(variances)
    features = np.ones((len(X), len(variances) + 1), dtype)
    features[:, :-1] = vectors * spread / root  # the rows of X without their weights
    rows = rows.astype(dtype)
    to_rows = (vectors / spread).astype(dtype)
    # B V' = (B (Q / sqrt(v))') A, without ever making the (D, R) matrix V
    return features, variances, lambda B: _times(_times(B, to_rows.T), rows)


def _rotate_many_rows(X: Floats, mean: Floats, weights: Floats, dtype: type[np.floating]) -> _Rotation:
    """Find the principal axes V from the (D, D) covariance A'A = V diag(v) V'. Cost: 2 N D^2 + D^3."""
    covariance = np.zeros((X.shape[1], X.shape[1]))
    for block in row_slices(len(X), BLOCK_ROWS):
        root = np.sqrt(weights[block])[:, None]
        rows = root * (X[block] - mean)
        covariance += rows.T @ rows
    variances, vectors = _principal_axes(covariance)
    features = np.ones((len(X), len(variances) + 1), dtype)
    for block in row_slices(len(X), BLOCK_ROWS):
        features[block, :-1] = (X[block] - mean) @ vectors
    axes = vectors.astype(dtype)
    return features, variances, lambda B: _times(B, axes.T)


def _principal_axes(gram: Floats) -> tuple[Floats, Floats]:
    # NumPy's eigh, because SciPy's holds the GIL while other threads fit other heads.
    values, vectors = np.linalg.eigh(gram)  # in ascending order
    kept = values > max(values[-1], 0) * MIN_VARIANCE
    return values[kept], vectors[:, kept]


def _levels(order: Floats, on_ladder: npt.NDArray[np.bool_]) -> Iterator[tuple[Classes, Classes]]:
    """Yield which of the ascending strengths are solved so far, and which to solve next."""
    logs = np.log(order)
    solved = np.zeros(len(order), bool)
    # The ladder goes up one by one: a weak penalty's minimum is far from zero, but near that of the step below.
    for at in np.flatnonzero(on_ladder).tolist():
        yield np.flatnonzero(solved), np.array([at])
        solved[at] = True
    for factor in SPACINGS:
        least_distance = np.log(factor) * 0.99  # a little less, so that rounding does not skip a strength
        spread_out = solved.copy()
        for at in range(len(order)):
            is_first = not spread_out.any()
            if is_first or np.abs(logs[at] - logs[spread_out]).min() >= least_distance:
                spread_out[at] = True
        next_up = np.flatnonzero(spread_out & ~solved)
        if len(next_up):
            yield np.flatnonzero(solved), next_up
        solved[next_up] = True


def _starting_points(logs: Floats, B: Floats, solved: Classes, next_up: Classes) -> Floats:
    """Return where the next strengths start, (K, len(next_up), R): between their solved neighbours, by log strength.

    The loss is convex, so at a point between two solutions it is at most the larger of theirs.
    """
    if not len(solved):
        return B[:, next_up]
    above = np.zeros(len(next_up), int)
    if len(solved) > 1:
        above = np.clip(np.searchsorted(solved, next_up), 1, len(solved) - 1)
    # Beyond the solved strengths both neighbours are the pair at that end, and `share` is clipped to the nearer one.
    low = solved[above - 1]
    high = solved[above]
    distance = np.where(low == high, 1, logs[high] - logs[low])
    share = np.clip((logs[next_up] - logs[low]) / distance, 0, 1)
    share = share.astype(B.dtype)[:, None]
    return np.asarray((1 - share) * B[:, low] + share * B[:, high])


def _memory_batches(num_strengths: int, problem: _LogisticProblem) -> list[Classes]:
    """Return the positions 0..S-1 in parts whose arrays fit in BATCH_NUMBERS, or in as many numbers as X has."""
    per_strength = ARRAYS_PER_BATCH * problem.num_classes * len(problem.features)
    most = max(BATCH_NUMBERS, problem.features.size, per_strength)
    num_parts = -(-num_strengths * per_strength // most)
    return np.array_split(np.arange(num_strengths), num_parts)


@dataclass
class _Batch:
    """S strengths that descend together. The arrays along axes are (K, S, R), those along images (K, S, N)."""

    numbers: Classes  # (S,), positions among the strengths that `_descend` received
    penalty: Floats  # (S, R), 0 for the intercept
    B: Floats  # (K, S, R)
    logits: Floats  # (K, S, N)
    probabilities: Floats  # (K, S, N)
    gradient: Floats  # (K, S, R)
    scale: Floats  # (K, S, R), the preconditioner: the inverse of the approximate Hessian's diagonal
    direction: Floats  # (K, S, R)
    decrease: Floats  # (S,), gradient' scale gradient

    def keep(self, numbers: Classes) -> None:
        """Drop the strengths whose positions are not in `numbers`."""
        for name in ("numbers", "penalty", "decrease"):
            setattr(self, name, getattr(self, name)[numbers])
        for name in ("B", "logits", "probabilities", "gradient", "scale", "direction"):
            setattr(self, name, getattr(self, name)[:, numbers])


def _descend(problem: _LogisticProblem, penalties: Floats, B: Floats, max_iter: int) -> tuple[Floats, Classes]:
    """Return the minimum reached from B for each strength, (K, S, R), and its steps: max_iter if not converged."""
    batch = _first_batch(problem, penalties, B)
    solutions = B.copy()
    iterations = np.full(len(penalties), max_iter)
    for step in range(max_iter):
        # Of the mean loss: residual' features, (K, S, N) by (N, R). Of the penalty: penalty B.
        loss_gradient = _times(problem.residual(batch.probabilities), problem.features)
        gradient = loss_gradient + batch.B * batch.penalty
        steep = _largest_norm(problem, gradient) > problem.tol
        going = steep | (_relative_gap(problem, batch, gradient) > MAX_GAP)
        # A strength that has converged leaves, so that the rest of the batch pays nothing for it.
        if not going.all():
            ended = batch.numbers[~going]
            solutions[:, ended] = batch.B[:, ~going]
            iterations[ended] = step
            batch.keep(np.flatnonzero(going))
            gradient = gradient[:, going]
        if not going.any():
            break
        _choose_direction(problem, batch, gradient, step)
        _line_search(problem, batch)
    solutions[:, batch.numbers] = batch.B
    return solutions, iterations


def _first_batch(problem: _LogisticProblem, penalties: Floats, B: Floats) -> _Batch:
    penalty = np.repeat(penalties[:, None], B.shape[2], axis=1).astype(B.dtype)
    penalty[:, -1] = 0
    logits = _times(B, problem.features.T)
    zeros = np.zeros_like(B)
    return _Batch(
        numbers=np.arange(len(penalties)),
        penalty=penalty,
        B=B,
        logits=logits,
        probabilities=problem.probabilities(logits),
        gradient=zeros,
        scale=zeros,
        direction=zeros,
        # Infinite, so that the first direction has no share of a direction before it.
        decrease=np.full(len(penalties), np.inf, B.dtype),
    )


def _largest_norm(problem: _LogisticProblem, gradient: Floats) -> Floats:
    """Return an upper bound of the largest gradient norm of a class, (S,), for features that are not centred.

    With residual r: X'r = (X - mean)'r + mean sum(r), so |X'r| <= |(X - mean)'r| + |mean| |sum(r)|. Rotation keeps
    the norm of the first term, and sum(r) is the intercept's gradient.
    """
    along_axes = gradient[..., :-1]
    by_class = np.sqrt(np.einsum("ksr,ksr->ks", along_axes, along_axes))
    by_intercept = np.abs(gradient[..., -1])
    bound = by_class + np.linalg.norm(problem.mean) * by_intercept
    largest = np.maximum(bound, by_intercept)
    return np.asarray(largest.max(axis=0))


def _relative_gap(problem: _LogisticProblem, batch: _Batch, gradient: Floats) -> Floats:
    """Return how far F may be above its minimum, as a share of F, (S,).

    Newton's decrement estimates the gap: F(B) - F(minimum) ~ g' H^-1 g / 2, here with the approximate Hessian.
    """
    true_class = batch.probabilities[problem.index, :, np.arange(len(problem.index))]  # (N, S)
    tiny = np.finfo(true_class.dtype).tiny
    loss = -problem.weights @ np.log(np.maximum(true_class, tiny))
    objective = loss + _dot(batch.B * batch.penalty, batch.B) / 2

    gap = _dot(gradient * _inverse_hessian(problem, batch), gradient) / 2
    return np.asarray(gap / np.maximum(objective, np.finfo(loss.dtype).tiny))


def _choose_direction(problem: _LogisticProblem, batch: _Batch, gradient: Floats, step: int) -> None:
    """Set the direction by preconditioned conjugate gradients (Polak and Ribiere 1969, restarted at negative shares).

    With preconditioner M: d = -M g + share d_before, share = max(0, g' M (g - g_before) / (g_before' M g_before)).
    """
    # Directions stay conjugate only while their preconditioner stays the same, so it changes now and then.
    if step % PRECONDITIONER_STEPS == 0:
        batch.scale = _inverse_hessian(problem, batch)
    scaled = batch.scale * gradient  # M g
    scaled -= scaled.mean(axis=0)  # adding the same vector to all classes changes no probability
    decrease = _dot(gradient, scaled)  # g' M g
    share = np.maximum(0, (decrease - _dot(batch.gradient, scaled)) / batch.decrease)
    direction = share[:, None] * batch.direction - scaled
    # Where that does not go down, start again with the scaled gradient, which always does.
    upwards = _dot(gradient, direction) >= 0
    direction[:, upwards] = -scaled[:, upwards]

    batch.gradient = gradient
    batch.direction = direction
    batch.decrease = decrease


def _inverse_hessian(problem: _LogisticProblem, batch: _Batch) -> Floats:
    """Return the inverse of the approximate Hessian's diagonal, 1 / (p (1 - p) lambda + penalty), (K, S, R).

    p (1 - p) is the weighted mean over the images, at least MIN_CURVATURE of what it is at B = 0. There p is about the
    share of the class, so that is share (1 - share).
    """
    class_share = np.bincount(problem.index, problem.weights, problem.num_classes)
    mean = (batch.probabilities * (1 - batch.probabilities)) @ problem.weights
    at_zero = (class_share * (1 - class_share))[:, None].astype(mean.dtype)
    curvature = np.maximum(mean, MIN_CURVATURE * at_zero)
    return np.asarray(1 / (curvature[..., None] * problem.variances + batch.penalty))


def _line_search(problem: _LogisticProblem, batch: _Batch) -> None:
    """Move along the direction to where the slope is at most SLOPE_SHARE of the first one.

    With f(t) = F(B + t d) and a = d features', the logits change by t a, and
        f'(t)  = <w (p(t) - y), a> + penalty <B, d> + t penalty <d, d>
        f''(t) = sum_i w_i Var_p(a_i) + penalty <d, d>      (see `_curvature`)
    f is convex, so f' rises: Newton's method on f', kept inside the interval where f' changes its sign.
    """
    along = _times(batch.direction, problem.features.T)  # a, (K, S, N)
    # The terms of the penalty do not depend on t, so they are computed once.
    penalty_slope = _dot(batch.B * batch.penalty, batch.direction)
    penalty_bend = _dot(batch.direction * batch.penalty, batch.direction)
    first_slope = _dot(batch.gradient, batch.direction)

    low = np.zeros_like(first_slope)
    high = np.full_like(first_slope, np.inf)
    t = -first_slope / _curvature(problem, batch.probabilities, along, penalty_bend)
    for _ in range(MAX_LINE_TRIES):
        probabilities = problem.probabilities(batch.logits + t[:, None] * along)
        slope = _dot(problem.residual(probabilities), along) + penalty_slope + t * penalty_bend
        steep = np.abs(slope) > SLOPE_SHARE * np.abs(first_slope)
        if not steep.any():
            break
        high = np.where(steep & (slope > 0), t, high)
        low = np.where(steep & (slope <= 0), t, low)
        newton = t - slope / _curvature(problem, probabilities, along, penalty_bend)
        # Outside the interval Newton's step is worth nothing: halve the interval, or double t while it has no end.
        bounded = np.isfinite(high)
        middle = np.where(bounded, (low + np.where(bounded, high, 0)) / 2, 2 * t)
        inside = (newton > low) & (newton < high)
        next_t = np.where(inside, newton, middle)
        t = np.where(steep, next_t, t)
    else:
        # The last try has moved t once more.
        probabilities = problem.probabilities(batch.logits + t[:, None] * along)
    batch.B = batch.B + t[:, None] * batch.direction
    batch.logits = batch.logits + t[:, None] * along
    batch.probabilities = probabilities


def _curvature(problem: _LogisticProblem, probabilities: Floats, along: Floats, penalty_bend: Floats) -> Floats:
    """Return f''(t), (S,): sum_i w_i (sum_k p a^2 - (sum_k p a)^2) + penalty <d, d>, with a = `along`."""
    weighted = probabilities * along
    mean = weighted.sum(axis=0)
    # Sum over the classes first, then over the weighted images: this makes no further (K, S, N) array.
    order = ["einsum_path", (0, 1), (0, 1)]
    mean_square = np.einsum("ksn,ksn,n->s", weighted, along, problem.weights, optimize=order)
    curvature = mean_square - mean**2 @ problem.weights + penalty_bend
    return np.asarray(np.maximum(curvature, np.finfo(mean.dtype).tiny))


def _times(A: Floats, M: Floats) -> Floats:
    """Return A (K, S, n) @ M (n, m) as one matrix product, which NumPy would otherwise make K times."""
    K, S, n = A.shape
    product = A.reshape(K * S, n) @ M
    return product.reshape(K, S, M.shape[1])


def _dot(A: Floats, B: Floats) -> Floats:
    """Return the inner product for each strength, (S,)."""
    return np.asarray(np.einsum("ksn,ksn->s", A, B))
