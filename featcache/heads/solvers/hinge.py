"""Solve linear support vector machines for many strengths and all classes at once (the method is in `descent`).

For each strength C and each class against the rest, y = 1 or -1, the minimum over B of

    F(B) = 1 / N sum_i c_i max(0, 1 - y_i f_i)^2 + penalty / 2 |B|^2        penalty = 1 / (C N)

where f = X B, and c are class weights. This is the objective of liblinear for the squared hinge loss, divided by C N.
liblinear penalises the intercept like the weight of a feature that is 1 everywhere (Fan et al. 2008, "LIBLINEAR"), so
that feature is appended before the axes rotate. Of more than two classes, c_i is the weight of the class for its own
images and 1 for the rest: also as in liblinear.

The classes do not depend on each other: K classes and S strengths are K S problems of one score each. F is a quadratic
wherever no image crosses its margin, so that the slope along a direction, which the line search finds the zero of, is
piecewise linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from featcache.arrays import Classes, Floats
from featcache.heads.solvers.axes import rotated
from featcache.heads.solvers.descent import Solution, descend, solve_path

FLOAT32_ROUNDINGS = 5  # float32 is enough for tolerances of so many times its rounding error of the gradient
MIN_TOL = 1e-12  # rounding error of the gradient in float64


def hinge_path(
    X: Floats,
    index: Classes,
    strengths: Sequence[float],
    class_weight: Floats | None = None,
    max_iter: int = 1000,
    tol: float = 1e-4,
) -> list[Solution]:
    """Return the minimum of sum_i c_i max(0, 1 - y_i f_i)^2 + |B|^2 / (2 C) for every C and class, in float64.

    X: (N, D). index: (N,) from 0 to K - 1, where every class occurs. class_weight: (K,), above 0.
    A solution has converged when, for each class, the norm of the gradient is at most `tol` of what it is at B = 0,
    times the share of the class or of the rest, whichever is smaller: as in liblinear.
    """
    N = len(X)
    num_classes = int(index.max()) + 1
    is_binary = num_classes == 2
    class_weight = np.ones(num_classes) if class_weight is None else np.asarray(class_weight, np.float64)
    own_class = np.array([1]) if is_binary else np.arange(num_classes)
    is_own = index == own_class[:, None]  # (K, N)
    num_own = is_own.sum(axis=1)
    smaller_share = np.minimum(num_own, N - num_own) / N
    weight_of_rest = class_weight[0] if is_binary else 1
    weights = np.where(is_own, class_weight[own_class][:, None], weight_of_rest) / N
    signs = np.where(is_own, 1, -1)

    # At B = 0 every margin is missed by 1, so the gradient is -[X, 1]' pull.
    pull = 2 * weights * signs
    first_norm = np.hypot(np.linalg.norm(pull.astype(X.dtype) @ X, axis=1), pull.sum(axis=1))
    tols = np.maximum(tol * smaller_share, MIN_TOL) * first_norm
    # Its terms are rounded one by one, and the sum once more.
    norm_of_terms = np.sqrt(pull**2 @ (np.einsum("nd,nd->n", X, X) + 1))
    rounding = np.finfo(np.float32).eps * (norm_of_terms + first_norm)
    dtype = np.float32 if (tols >= FLOAT32_ROUNDINGS * rounding).all() else np.float64

    def rows(block: slice) -> Floats:
        block_rows = X[block]
        return np.hstack([block_rows, np.ones((len(block_rows), 1), X.dtype)])

    axes = rotated(rows, X.shape[1] + 1, np.full(N, 1 / N), dtype)
    loss = SquaredHingeLoss(signs.astype(dtype), weights.astype(dtype), tols)

    def descend_from(in_batch: Floats, starts: Floats) -> tuple[Floats, Classes]:
        K, S, R = starts.shape
        problems = loss.keep(np.repeat(np.arange(K), S))
        penalty = np.tile(1 / (in_batch * N), K)[:, None]
        B, iterations = descend(axes, problems, penalty, starts.reshape(1, K * S, R), max_iter)
        return B.reshape(K, S, R), iterations.reshape(K, S).max(axis=0)

    B, iterations = solve_path(np.asarray(strengths, np.float64), len(own_class), axes, descend_from, grows=False)
    coef = axes.back(B).astype(np.float64)  # with the intercept last

    solutions = []
    for number, steps in enumerate(iterations.tolist()):
        solution = Solution(coef[:, number, :-1], coef[:, number, -1], steps, converged=steps < max_iter)
        solutions.append(solution)
    return solutions


@dataclass(frozen=True)
class SquaredHingeLoss:
    """The squared hinge of P classes against the rest. Arrays are (1, P, N); the state is 1 - y f, or 0 beyond it."""

    signs: Floats  # y, (P, N)
    weights: Floats  # c / N, (P, N)
    tols: Floats  # (P,), for the norm of the gradient
    shift_invariant: bool = False

    def state(self, logits: Floats) -> Floats:
        """Return by how much each image misses its margin, max(0, 1 - y f)."""
        missing = self.signs * logits
        np.subtract(1, missing, out=missing)
        return np.maximum(missing, 0, out=missing)

    def residual(self, state: Floats) -> Floats:
        """Return -2 c / N y max(0, 1 - y f)."""
        values = state * self.signs
        values *= -2 * self.weights
        return np.asarray(values)

    def value(self, state: Floats) -> Floats:
        """Return 1 / N sum_i c_i max(0, 1 - y f)^2, (P,)."""
        return np.asarray(np.einsum("pn,pn,pn->p", state[0], state[0], self.weights))

    def mean_curvature(self, state: Floats) -> Floats:
        """Return twice the weighted share of the images that miss their margin, (1, P)."""
        return np.asarray(2 * np.einsum("kpn,pn->kp", state > 0, self.weights))

    def curvature_at_zero(self) -> Floats:
        """Return twice the sum of the weights, (1, P): at B = 0 every image misses its margin."""
        return np.asarray(2 * self.weights.sum(axis=1)[None])

    def curvature_along(self, state: Floats, along: Floats) -> Floats:
        """Return 2 / N sum_i c_i a_i^2 over the images that miss their margin, (P,), with a = `along`."""
        missing = along[0] * (state[0] > 0)
        return np.asarray(2 * np.einsum("pn,pn,pn->p", missing, missing, self.weights))

    def is_steep(self, gradient: Floats) -> npt.NDArray[np.bool_]:
        """Return whether the norm of the gradient is over its tolerance, (P,)."""
        return np.asarray(np.linalg.norm(gradient[0], axis=1) > self.tols)

    def keep(self, numbers: Classes) -> SquaredHingeLoss:
        """Return the loss of these problems alone."""
        return replace(self, signs=self.signs[numbers], weights=self.weights[numbers], tols=self.tols[numbers])
