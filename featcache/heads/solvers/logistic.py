"""Solve multinomial logistic regression for many regularisation strengths at once (the method is in `descent`).

For each strength C the minimum over B of

    F(B) = sum_i w_i loss_i(B) + penalty / 2 |B|^2        penalty = 1 / (C sum_i s_i)

where loss is the cross-entropy of the softmax and w = s / sum(s) are the sample weights s scaled to sum 1. This is
scikit-learn's objective divided by C sum(s), so the minimum is the same. The intercept, the last column of B, is not
penalised: so the features are centred, and a column of ones stands beside their axes.

Two classes are solved as K = 2 with C / 2. With v = w_1 - w_0, the minimum has w_1 = -w_0 = v / 2, so that
|w_0|^2 + |w_1|^2 = |v|^2 / 2: twice the penalty on (w_0, w_1) equals scikit-learn's penalty on v.

Shapes: N images, D features, K classes, S strengths, R columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.arrays import Classes, Floats
from featcache.heads.solvers.axes import rotated
from featcache.heads.solvers.descent import Solution, descend, solve_path

TOL_SHARE = 10  # stop at tol / 10: with weak penalties the gradient is small long before the minimum
FLOAT32_TOL = 1e-5  # down to this gradient norm float32 is enough: its rounding error stays below a tenth of it
MIN_TOL = 1e-12  # rounding error of the gradient in float64


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
    Intercepts of more than two classes have mean 0.
    """
    s = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    weights = s / s.sum()
    tol = max(tol / TOL_SHARE, MIN_TOL)
    dtype = np.float32 if tol >= FLOAT32_TOL else np.float64
    mean: Floats = weights.astype(X.dtype) @ X
    axes = rotated(lambda block: X[block] - mean, X.shape[1], weights, dtype, add_ones=True)
    num_classes = int(index.max()) + 1
    is_binary = num_classes == 2
    loss = SoftmaxLoss(index, num_classes, weights.astype(dtype), float(np.linalg.norm(mean)), tol)

    def descend_from(in_batch: Floats, starts: Floats) -> tuple[Floats, Classes]:
        # Two classes are solved as K = 2, where C / 2 is the same as twice the penalty.
        penalties = (2 if is_binary else 1) / (in_batch * s.sum())
        penalty = np.repeat(penalties[:, None], len(axes.variances), axis=1)
        penalty[:, -1] = 0  # the intercept
        return descend(axes, loss, penalty, starts, max_iter)

    # Where classes are separable, weights grow with the logarithm of C.
    B, iterations = solve_path(np.asarray(strengths, np.float64), num_classes, axes, descend_from, grows=True)
    coef: Floats = axes.back(B[..., :-1])
    # The features were centred: x coef' + intercept = (x - mean) coef' + B_last
    intercept: Floats = B[..., -1] - coef @ mean
    if is_binary:
        coef = coef[1:] - coef[:1]
        intercept = intercept[1:] - intercept[:1]
    coef = coef.astype(X.dtype)
    intercept = intercept.astype(X.dtype)

    solutions = []
    for number, steps in enumerate(iterations.tolist()):
        solutions.append(Solution(coef[:, number], intercept[:, number], steps, converged=steps < max_iter))
    return solutions


@dataclass(frozen=True)
class SoftmaxLoss:
    """The cross-entropy of the softmax over K classes, the same for every strength. Its state are probabilities."""

    index: Classes  # (N,)
    num_classes: int
    weights: Floats  # (N,), with sum 1
    mean_norm: float  # of the features' mean
    tol: float
    shift_invariant: bool = True

    def state(self, logits: Floats) -> Floats:
        """Return the softmax over the first axis, (K, S, N)."""
        # In place from the second line on, so that no further array of this size is made.
        values = logits - logits.max(axis=0)
        np.exp(values, out=values)
        values /= values.sum(axis=0)
        return np.asarray(values)

    def residual(self, state: Floats) -> Floats:
        """Return w (p - y) with y one-hot, (K, S, N)."""
        values = state.copy()
        values[self.index, :, np.arange(len(self.index))] -= 1
        values *= self.weights
        return values

    def value(self, state: Floats) -> Floats:
        """Return the mean of -log p of the true class, (S,)."""
        true_class = state[self.index, :, np.arange(len(self.index))]  # (N, S)
        tiny = np.finfo(true_class.dtype).tiny
        return np.asarray(-self.weights @ np.log(np.maximum(true_class, tiny)))

    def mean_curvature(self, state: Floats) -> Floats:
        """Return the weighted mean of p (1 - p), (K, S)."""
        return np.asarray((state * (1 - state)) @ self.weights)

    def curvature_at_zero(self) -> Floats:
        """Return share (1 - share), (K, 1): once the intercepts are found, p is about the share of the class."""
        share = np.bincount(self.index, self.weights, self.num_classes)
        return (share * (1 - share))[:, None].astype(self.weights.dtype)

    def curvature_along(self, state: Floats, along: Floats) -> Floats:
        """Return sum_i w_i Var_p(a_i) = sum_i w_i sum_k p (a - sum_k p a)^2 with a = `along`, (S,)."""
        weighted = state * along
        # The mean first: sum_k p a^2 - (sum_k p a)^2 may be below 0 by rounding.
        centred = along - weighted.sum(axis=0)
        np.multiply(centred, centred, out=weighted)
        weighted *= state
        return np.asarray(weighted.sum(axis=0) @ self.weights)

    def is_steep(self, gradient: Floats) -> npt.NDArray[np.bool_]:
        """Return whether an upper bound of the largest gradient norm of a class, for features not centred, is over tol.

        With residual r: X'r = (X - mean)'r + mean sum(r), so |X'r| <= |(X - mean)'r| + |mean| |sum(r)|. Rotation keeps
        the norm of the first term, and sum(r) is the intercept's gradient.
        """
        along_axes = gradient[..., :-1]
        by_class = np.sqrt(np.einsum("ksr,ksr->ks", along_axes, along_axes))
        by_intercept = np.abs(gradient[..., -1])
        largest = np.maximum(by_class + self.mean_norm * by_intercept, by_intercept)
        return np.asarray(largest.max(axis=0) > self.tol)

    def keep(self, numbers: Classes) -> SoftmaxLoss:
        """Return the loss itself: it does not depend on the strength."""
        return self
