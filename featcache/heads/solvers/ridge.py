"""Fit ridge classifiers of every strength from one reduction, with exact leave-one-out scores.

For centred features X (N, D) and centred targets Y (N, K) of -1 and 1, ridge with strength a has the coefficients

    W = (X'X + a)^-1 X'Y  = Q (T + a)^-1 Q' X'Y      with X'X = Q T Q'     if N > D + 1    ("primal")
    W = X' (XX' + a)^-1 Y = X' Q (T + a)^-1 Q' Y     with XX' = Q T Q'     if N <= D + 1   ("dual")

so one reduction to a tridiagonal T, O(min(N, D)^3), serves every a: see `tridiagonal`. Leaving one out needs the
diagonal of a matrix for every a, and takes the eigenvectors for that. Sample weights w multiply each row of X and Y by
sqrt(w). Multiplications in the dual: N^2 D / 2 for XX', 2/3 N^3 for T, and for M other images and A strengths
M N D + M N^2 + M N A K, or N^2 A K + N D A K if the coefficients are kept.

Leaving image i out changes its residual e_i to e_i / (1 - h_i), where h is the diagonal of the hat matrix that turns
Y into predictions (PRESS, Allen 1974, https://doi.org/10.2307/1267500). big_vision's few-shot evaluator and
scikit-learn's RidgeCV use the same two identities.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from featcache.arrays import Classes, Features, Floats
from featcache.heads.estimators import make_classifier, set_coefficients
from featcache.heads.folds import Fold, FoldResult, evaluate, failure, invalid_parameters, result_from_scores
from featcache.heads.grids import Params
from featcache.heads.row_blocks import map_rows, row_slices, sum_blocks
from featcache.heads.solvers.tridiagonal import Tridiagonal

MIN_EIGENVALUE = 1e-11  # of the largest, with alpha: smaller ones are only rounding error
MIN_REMAINING = 1e-9  # of 1 - hat: what is left of 1 below it is only rounding error


@dataclass(frozen=True)
class _RidgeProblem:
    """Centred, weighted least squares in double precision. X stays as it is; its rows are centred block by block."""

    X: Features  # (N, D), neither centred nor weighted
    root: Floats  # (N, 1), square roots of the sample weights
    Y: Floats  # (N, K), centred and weighted
    Y_mean: Floats  # (K,)
    mean: Floats  # (D,) of X

    @property
    def dual(self) -> bool:
        """Return whether the centred images span fewer dimensions than there are features, or as many."""
        return bool(len(self.X) - 1 <= self.X.shape[1])

    @property
    def is_weighted(self) -> bool:
        """Return whether some images count more than others."""
        return bool((self.root != 1).any())

    def centred(self, features: Features) -> Floats:
        """Return features (n, D) minus the mean of X."""
        return np.asarray(features.astype(np.float64) - self.mean)

    def rows(self, block: slice = slice(None)) -> Floats:
        """Return rows of X, centred and weighted."""
        return np.asarray(self.root[block] * self.centred(self.X[block]))

    @cached_property
    def all_rows(self) -> Floats:
        """All rows of X, centred and weighted. For the dual, where they are few."""
        return self.rows()

    def gram(self) -> Floats:
        """Return XX' (N, N) or X'X (D, D), the smaller of the two."""
        if self.dual:
            return np.asarray(self.all_rows @ self.all_rows.T)

        def products(block: slice) -> Floats:
            rows = self.rows(block)
            return np.asarray(rows.T @ rows)

        return sum_blocks(products, len(self.X))

    def right_side(self) -> Floats:
        """Return the right side of the linear system: Y (N, K) or X'Y (D, K)."""
        if self.dual:
            return self.Y
        return sum_blocks(lambda block: self.rows(block).T @ self.Y[block], len(self.X))

    def map_blocks(self, function: Callable[[Floats], Floats]) -> Floats:
        """Return function(rows of X, centred and weighted), computed block by block."""
        return np.concatenate([function(self.rows(block)) for block in row_slices(len(self.X))])

    def weights(self, solutions: Floats) -> Floats:
        """Return the weights (D, m) that solutions (N or D, m) of the linear system stand for."""
        return np.asarray(self.all_rows.T @ solutions) if self.dual else solutions

    def products(self, features: Features) -> Floats:
        """Return the array (n, N or D) whose product with a solution is the scores of features (n, D)."""
        centred = self.centred(features)
        return np.asarray(centred @ self.all_rows.T) if self.dual else centred


def fit(head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None, seed: int) -> Iterator[FoldResult]:
    """Yield the result of each strength, fitted on the fold."""
    began = time.perf_counter()
    classes = np.unique(fold.y)
    problem = _centred_problem(fold.X, fold.y, class_weight)
    classifiers = [make_classifier(head, params, class_weight, seed) for params in grid]
    refusals = [invalid_parameters(classifier) for classifier in classifiers]
    alphas = []
    for classifier, refusal in zip(classifiers, refusals, strict=True):
        if refusal is None:
            alphas.append(float(classifier.alpha))
    solutions = _solve_and_predict(problem, alphas, fold)
    seconds_each = (time.perf_counter() - began) / len(grid)

    for classifier, refusal in zip(classifiers, refusals, strict=True):
        if refusal is not None:
            yield refusal
            continue
        if classifier.alpha not in solutions:  # many weights fit as well; return the ones that scikit-learn chooses
            yield evaluate(classifier.fit(fold.X, fold.y), fold, time.perf_counter())
            continue
        weights, scores = solutions[classifier.alpha]
        if fold.keep:
            set_coefficients(classifier, classes, *_coefficients(problem, weights))
        kept = classifier if fold.keep else None
        result = result_from_scores(kept, scores, classes, time.perf_counter())
        yield replace(result, seconds=seconds_each)


def _solve_and_predict(
    problem: _RidgeProblem, alphas: Sequence[float], fold: Fold
) -> dict[float, tuple[Floats, Floats]]:
    """Return, for every strength, the weights (D, K) and the scores (M, K) of the other images.

    Strengths that are 0, or so small that the linear system is singular, are left out. Every product is made once for
    all strengths, whose columns lie side by side. If the fold does not keep its classifiers, the weights are (0, K).
    """
    can_share = not problem.dual and not problem.is_weighted
    gram = fold.products() if fold.products is not None and can_share else problem.gram()
    system = Tridiagonal(gram)
    right_side = system.into(problem.right_side())
    by_alpha: dict[float, Floats] = {}
    for alpha in alphas:
        if alpha > 0:
            with suppress(np.linalg.LinAlgError):
                by_alpha[alpha] = system.solve(alpha, right_side)
    if not by_alpha:
        return {}
    turned = np.concatenate([*by_alpha.values()], axis=1)  # (T + a)^-1 Q' B, (N or D, A K)

    weights: Floats = np.zeros((0, turned.shape[1]))
    if fold.keep:
        weights = problem.weights(system.out_of(turned))
        scores = map_rows(lambda features: problem.centred(features) @ weights, fold.others)
    elif len(fold.others) < turned.shape[1]:
        # Q goes to the side with fewer vectors.
        scores = map_rows(lambda features: system.rows_into(problem.products(features)) @ turned, fold.others)
    else:
        solutions = system.out_of(turned)
        scores = map_rows(lambda features: problem.products(features) @ solutions, fold.others)
    scores = scores + np.tile(problem.Y_mean, len(by_alpha))

    weights_by_alpha = np.split(weights, len(by_alpha), axis=1)
    scores_by_alpha = np.split(scores, len(by_alpha), axis=1)
    return dict(zip(by_alpha, zip(weights_by_alpha, scores_by_alpha, strict=True), strict=True))


def leave_one_out(grid: Sequence[Params], X: Features, y: Classes, class_weight: str | None) -> Iterator[FoldResult]:
    """Yield each strength fitted on all images, with each image's scores when fitted on all the others.

    Balanced class weights are computed once, from all images.
    """
    began = time.perf_counter()
    problem = _centred_problem(X, y, class_weight)
    classes = np.unique(y)
    classifiers = [make_classifier("ridge", params, class_weight) for params in grid]
    refusals = [invalid_parameters(classifier) for classifier in classifiers]
    alphas = []
    for classifier, refusal in zip(classifiers, refusals, strict=True):
        if refusal is None:
            alphas.append(float(classifier.alpha))
    solutions = _solve_and_leave_one_out(problem, alphas)
    seconds_each = (time.perf_counter() - began) / len(grid)

    for classifier, refusal in zip(classifiers, refusals, strict=True):
        if refusal is not None:
            yield refusal
            continue
        if classifier.alpha not in solutions:
            # Without its value in the message, all such strengths share a line of the sweep's output.
            yield failure(ValueError("alpha is too small for leave-one-out: rounding errors would decide"))
            continue
        weights, scores = solutions[classifier.alpha]
        set_coefficients(classifier, classes, *_coefficients(problem, weights))
        result = result_from_scores(classifier, scores, classes, time.perf_counter())
        yield replace(result, seconds=seconds_each)


def _solve_and_leave_one_out(problem: _RidgeProblem, alphas: Sequence[float]) -> dict[float, tuple[Floats, Floats]]:
    """Return, for every strength, the weights (D, K) and the scores (N, K) of each image without itself.

    Strengths so small that rounding errors would decide are left out. As above, the strengths lie side by side.
    """
    gram = problem.gram()
    # Centring takes the direction of `root` from the rows, so X'X and XX' know nothing of the intercept, which adds
    # w_i / sum(w) to the diagonal of the hat matrix.
    direction = problem.root / np.linalg.norm(problem.root)  # (N, 1)
    shift = np.trace(gram) / len(gram)
    if problem.dual:
        gram += shift * (direction @ direction.T)  # an eigenvalue that is known, in place of zero
    values, vectors = np.linalg.eigh(gram)  # s (R,), V or Q
    values = np.maximum(values, 0)  # rounding makes negative ones
    strengths = np.array([alpha for alpha in alphas if values.min() + alpha > MIN_EIGENVALUE * values.max()])  # (A,)
    if not strengths.size:
        return {}

    # With B = X'Y or Y, the right side, the solutions are V (1 / (s + a)) V' B. Then
    #   primal  Y - X W = Y - X V (1 / (s + a)) V' B,   1 - hat = 1 - direction^2 - (X V)^2 (1 / (s + a))
    #   dual    Y - X W = a solutions,   1 - hat = a (Q^2 (1 / (s + a)) - direction^2 / (shift + a))
    # The diagonal of P diag(d) P' is (P^2) d, without the (N, N) product. In the dual both sides of the quotient have
    # the factor a. Without it nothing is lost where a is small.
    shrunk = 1 / (values[:, None] + strengths)  # (R, A)
    projected = vectors.T @ problem.right_side()  # V' B, (R, K)
    turned = shrunk[:, :, None] * projected[:, None]  # (R, A, K)
    solutions = vectors @ turned.reshape(len(values), -1)  # (N or D, A K)
    weights = problem.weights(solutions)  # (D, A K)
    if problem.dual:
        residual = solutions
        remaining = vectors**2 @ shrunk - direction**2 / (shift + strengths)  # (N, A)
    else:
        residual = np.tile(problem.Y, len(strengths)) - problem.map_blocks(lambda rows: rows @ weights)
        remaining = 1 - direction**2 - problem.map_blocks(lambda rows: (rows @ vectors) ** 2 @ shrunk)

    # e / (1 - h) as above; dividing by sqrt(w) takes the weight of the row away again.
    by_alpha: dict[float, tuple[Floats, Floats]] = {}
    num_classes = problem.Y.shape[1]
    for number, alpha in enumerate(strengths.tolist()):
        columns = slice(number * num_classes, (number + 1) * num_classes)
        left = remaining[:, number : number + 1]
        if not problem.dual and left.min() < MIN_REMAINING:  # an image alone shows some direction
            continue
        scores = (problem.Y - residual[:, columns] / left) / problem.root + problem.Y_mean
        by_alpha[alpha] = weights[:, columns], scores
    return by_alpha


def _coefficients(problem: _RidgeProblem, weights: Floats) -> tuple[Floats, Floats]:
    """Return coef (K, D) and intercept (K,) for features that are not centred: (x - mean) W + Y_mean."""
    coef = weights.T
    return coef, problem.Y_mean - coef @ problem.mean


def _centred_problem(X: Features, y: Classes, class_weight: str | None) -> _RidgeProblem:
    from sklearn.preprocessing import LabelBinarizer
    from sklearn.utils.class_weight import compute_sample_weight

    Y = LabelBinarizer(pos_label=1, neg_label=-1).fit_transform(y).astype(np.float64)
    weights = compute_sample_weight(class_weight, y).astype(np.float64)
    total = weights.sum()
    # Centring by the weighted means takes the intercept out of the problem: at the minimum it is what they leave.
    mean = sum_blocks(lambda block: weights[block] @ X[block], len(X)) / total
    Y_mean = weights @ Y / total
    root = np.sqrt(weights)[:, None]
    return _RidgeProblem(X, root, root * (Y - Y_mean), Y_mean, mean)
