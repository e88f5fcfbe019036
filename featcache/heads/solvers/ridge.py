"""Ridge of every strength from one decomposition, with exact leave-one-out.

With centred features X (N, D) and targets Y (N, K) of -1 and 1, and X'X = V diag(s) V', the coefficients for strength
a are V (V'X'Y / (s + a)); with fewer images than features, X'Q (Q'Y / (s + a)) of XX' = Q diag(s) Q'. The residuals
of leaving one image out are e_i / (1 - h_i), h the diagonal of the hat matrix (Allen 1974, PRESS), which big_vision's
few-shot evaluator and RidgeCV use too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from featcache.arrays import Classes, Features, Floats
from featcache.heads.estimators import make_classifier, set_coefficients
from featcache.heads.folds import Fold, FoldResult, evaluate, failure, invalid_parameters, result_from_scores
from featcache.heads.grids import Params
from featcache.heads.row_blocks import mapped, squared, summed

WORTH_EIGENVALUES = 6  # as many solutions of a linear system take as long (870 x 870: 73 and 12 ms)
LEAST = 1e-8  # of the largest eigenvalue: strengths below it leave nothing of a residual but rounding


@dataclass(frozen=True)
class _Problem:
    """Centred, weighted least squares in double precision."""

    X: Features
    root: Floats  # (N, 1), of the weights
    Y: Floats  # (N, K), centred and weighted
    Y_mean: Floats  # (K,)
    mean: Floats  # (D,)

    @property
    def dual(self) -> bool:
        """Return whether there are fewer images than features."""
        return bool(len(self.X) < self.X.shape[1])

    def centred(self, some: Features) -> Floats:
        """Return features (n, D) without their mean."""
        return np.asarray(some.astype(np.float64) - self.mean)

    def rows(self, some: slice = slice(None)) -> Floats:
        """Return rows of X, centred and weighted."""
        return np.asarray(self.root[some] * self.centred(self.X[some]))

    def gram(self) -> Floats:
        """Return XX' (N, N), or X'X (D, D) if that is smaller."""
        if self.dual:
            rows = self.rows()
            return np.asarray(rows @ rows.T)
        return summed(lambda some: squared(self.rows(some)), len(self.X))

    def right(self) -> Floats:
        """Return what the system is solved for: Y, or X'Y."""
        return self.Y if self.dual else summed(lambda some: self.rows(some).T @ self.Y[some], len(self.X))


def fit(head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None, seed: int) -> Iterator[FoldResult]:
    """Yield each strength, fitted on the fold."""
    began = time.perf_counter()
    problem = _problem(fold.X, fold.y, class_weight)
    classifiers = [make_classifier(head, params, class_weight, seed) for params in grid]
    refused = [invalid_parameters(one) for one in classifiers]
    good = [one for one, reason in zip(classifiers, refused, strict=True) if reason is None and one.alpha > 0]
    solved = iter(_solved(problem, [one.alpha for one in good], fold))
    each = (time.perf_counter() - began) / len(grid)
    for classifier, reason in zip(classifiers, refused, strict=True):
        if reason is not None:
            yield reason
            continue
        if classifier.alpha == 0:  # of least squares alone there are many solutions: scikit-learn's is one
            yield evaluate(classifier.fit(fold.X, fold.y), fold, time.perf_counter())
            continue
        weights, scores = next(solved)
        if fold.keep:
            set_coefficients(classifier, np.unique(fold.y), weights.T, problem.Y_mean - weights.T @ problem.mean)
        tried = result_from_scores(classifier if fold.keep else None, scores, np.unique(fold.y), time.perf_counter())
        yield replace(tried, seconds=each)


def _solved(problem: _Problem, alphas: Sequence[float], fold: Fold) -> list[tuple[Floats, Floats]]:
    """Return the weights (D, K) of every strength, or none where they are not wanted, and scores (M, K) of the others.

    What all strengths are multiplied with they are multiplied with at once.
    """
    if not alphas:
        return []
    every = np.concatenate(_solutions(problem.gram(), problem.right(), alphas), axis=1)
    if problem.dual and not fold.keep:
        rows = problem.rows()
        weights: Floats = np.zeros((0, every.shape[1]))
        found = mapped(lambda some: problem.centred(some) @ rows.T @ every, fold.others)
    else:
        weights = problem.rows().T @ every if problem.dual else every
        found = mapped(lambda some: problem.centred(some) @ weights, fold.others)
    parts = (np.split(one, len(alphas), axis=1) for one in (weights, found))
    return [(part, scores + problem.Y_mean) for part, scores in zip(*parts, strict=True)]


def leave_one_out(grid: Sequence[Params], X: Features, y: Classes, class_weight: str | None) -> Iterator[FoldResult]:
    """Yield each strength fitted on all images, and what it says of every one when fitted on all others.

    Class weights are those of all images.
    """
    began = time.perf_counter()
    problem = _problem(X, y, class_weight)
    values, vectors = _eigen(problem.gram())
    scores = vectors if problem.dual else problem.rows() @ vectors  # (N, R)
    basis = problem.rows().T @ vectors if problem.dual else vectors  # (D, R)
    squares, rotated = scores**2, scores.T @ problem.Y
    share = problem.root**2 / (problem.root**2).sum()
    for params in grid:
        classifier = make_classifier("ridge", params, class_weight)
        reason = invalid_parameters(classifier)
        if reason is None and params["alpha"] < LEAST * values.max():
            reason = failure(ValueError(f"alpha={params['alpha']:g} is too small to leave one out: rounding decides"))
        if reason is not None:
            yield reason
            continue
        shrunk = (1 / (values + params["alpha"]))[:, None]
        coef = (basis @ (shrunk * rotated)).T
        set_coefficients(classifier, np.unique(y), coef, problem.Y_mean - coef @ problem.mean)
        if problem.dual:
            shrunk *= values[:, None]
        hat = share + squares @ shrunk
        residual = (problem.Y - scores @ (shrunk * rotated)) / np.maximum(1 - hat, 1e-12) / problem.root
        left_out = problem.Y / problem.root + problem.Y_mean - residual
        yield result_from_scores(classifier, left_out, np.unique(y), began)
        began = time.perf_counter()


def _problem(X: Features, y: Classes, class_weight: str | None) -> _Problem:
    from sklearn.preprocessing import LabelBinarizer
    from sklearn.utils.class_weight import compute_sample_weight

    Y = LabelBinarizer(pos_label=1, neg_label=-1).fit_transform(y).astype(np.float64)
    weights = compute_sample_weight(class_weight, y).astype(np.float64)
    mean = summed(lambda some: weights[some] @ X[some], len(X)) / weights.sum()
    Y_mean = weights @ Y / weights.sum()
    root = np.sqrt(weights)[:, None]
    return _Problem(X, root, root * (Y - Y_mean), Y_mean, mean)


def _solutions(gram: Floats, right: Floats, alphas: Sequence[float]) -> list[Floats]:
    """Return (gram + alpha)^-1 right of every alpha > 0. NumPy's LAPACK, unlike SciPy's, lets other threads run."""
    if len(alphas) < WORTH_EIGENVALUES:
        return [np.linalg.solve(gram + alpha * np.eye(len(gram)), right) for alpha in alphas]
    values, vectors = _eigen(gram)
    rotated = vectors.T @ right
    every = vectors @ np.concatenate([rotated / (values + alpha)[:, None] for alpha in alphas], axis=1)
    return np.split(every, len(alphas), axis=1)


def _eigen(gram: Floats) -> tuple[Floats, Floats]:
    values, vectors = np.linalg.eigh(gram)
    return np.maximum(values, 0), vectors
