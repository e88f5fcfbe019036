"""Ridge of every strength from one decomposition, with exact leave-one-out.

With centred features X (N, D) and targets Y (N, K) of -1 and 1, and X'X = V diag(s) V', the coefficients for strength
a are V (V'X'Y / (s + a)); with fewer images than features, X'Q (Q'Y / (s + a)) of XX' = Q diag(s) Q'. The residuals
of leaving one image out are e_i / (1 - h_i), h the diagonal of the hat matrix (Allen 1974, PRESS), which big_vision's
few-shot evaluator and RidgeCV use too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from featcache.arrays import Classes, Features, Floats
from featcache.heads.estimators import make_classifier, set_coefficients
from featcache.heads.grids import Params
from featcache.heads.tried import Fold, Tried, failed, of_scores

WORTH_EIGENVALUES = 10  # as many Cholesky factors take as long (870 x 870: 97 and 9 ms)
BLOCK = 8192  # rows that are made double precision at a time


@dataclass(frozen=True)
class _Problem:
    """Centred, weighted least squares in double precision."""

    rows: Callable[[Features], Floats]  # centres some features
    X: Features
    root: Floats  # (N, 1), of the weights
    Y: Floats  # (N, K), centred and weighted
    Y_mean: Floats  # (K,)
    mean: Floats  # (D,)
    dual: bool
    gram: Floats  # (N, N) or (D, D)

    def weighted(self) -> Floats:
        return self.rows(self.X) * self.root


def fit(head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None, seed: int) -> Iterator[Tried]:
    """Yield each strength, fitted on the fold."""
    began = time.perf_counter()
    problem = _problem(fold.X, fold.y, class_weight)
    X = problem.weighted() if problem.dual else None
    right = problem.Y if X is not None else _product(problem)
    solve = _solver(problem.gram, right, len(grid))
    others = problem.rows(fold.others)
    features = others if X is None else others @ X.T
    for params in grid:
        classifier = make_classifier(head, params, class_weight, seed)
        try:
            classifier._validate_params()  # as its own fit would
            solution = solve(params["alpha"])
        except (ValueError, np.linalg.LinAlgError) as error:
            yield failed(error)
            continue
        if fold.keep:
            coef = (solution if X is None else X.T @ solution).T
            set_coefficients(classifier, np.unique(fold.y), coef, problem.Y_mean - coef @ problem.mean)
        scores = features @ solution + problem.Y_mean
        yield of_scores(classifier if fold.keep else None, scores, np.unique(fold.y), began)
        began = time.perf_counter()


def leave_one_out(grid: Sequence[Params], X: Features, y: Classes, class_weight: str | None) -> Iterator[Tried]:
    """Yield what each strength says of every image when fitted on all others, class weights as of all images."""
    began = time.perf_counter()
    problem = _problem(X, y, class_weight)
    values, vectors = _eigen(problem.gram)
    scores = vectors if problem.dual else problem.weighted() @ vectors  # (N, R)
    squares, rotated = scores**2, scores.T @ problem.Y
    share = problem.root**2 / (problem.root**2).sum()
    for params in grid:
        try:
            make_classifier("ridge", params)._validate_params()
        except ValueError as error:
            yield failed(error)
            continue
        shrunk = ((values if problem.dual else 1) / (values + params["alpha"]))[:, None]
        hat = share + squares @ shrunk
        residual = (problem.Y - scores @ (shrunk * rotated)) / np.maximum(1 - hat, 1e-12) / problem.root
        left_out = problem.Y / problem.root + problem.Y_mean - residual
        yield of_scores(None, left_out, np.unique(y), began)
        began = time.perf_counter()


def _problem(X: Features, y: Classes, class_weight: str | None) -> _Problem:
    from sklearn.preprocessing import LabelBinarizer
    from sklearn.utils.class_weight import compute_sample_weight

    Y = LabelBinarizer(pos_label=1, neg_label=-1).fit_transform(y).astype(np.float64)
    weights = compute_sample_weight(class_weight, y).astype(np.float64)
    mean, Y_mean = weights @ X / weights.sum(), weights @ Y / weights.sum()
    root = np.sqrt(weights)[:, None]

    def rows(some: Features) -> Floats:
        return np.asarray(some.astype(np.float64) - mean)

    dual = len(X) < X.shape[1]
    centred = root * rows(X) if dual else None
    gram = centred @ centred.T if centred is not None else _sum(X, root, lambda block, at: block.T @ block, rows)
    return _Problem(rows, X, root, root * (Y - Y_mean), Y_mean, mean, dual, gram)


def _product(problem: _Problem) -> Floats:
    """Return X'Y (D, K)."""
    return _sum(problem.X, problem.root, lambda block, at: block.T @ problem.Y[at], problem.rows)


def _sum(
    X: Features, root: Floats, of: Callable[[Floats, slice], Floats], rows: Callable[[Features], Floats]
) -> Floats:
    """Return the sum of something over blocks of rows, centred and weighted."""
    blocks = [slice(at, at + BLOCK) for at in range(0, len(X), BLOCK)]
    total = of(root[blocks[0]] * rows(X[blocks[0]]), blocks[0])
    for block in blocks[1:]:
        total += of(root[block] * rows(X[block]), block)
    return total


def _solver(gram: Floats, right: Floats, times: int) -> Callable[[float], Floats]:
    """Return what gives (gram + alpha)^-1 right for any alpha > 0, quickest if called so many times."""
    from scipy.linalg import cho_factor, cho_solve

    if times < WORTH_EIGENVALUES:
        return lambda alpha: np.asarray(cho_solve(cho_factor(gram + alpha * np.eye(len(gram))), right))
    values, vectors = _eigen(gram)
    rotated = vectors.T @ right
    return lambda alpha: vectors @ (rotated / (values + alpha)[:, None])


def _eigen(gram: Floats) -> tuple[Floats, Floats]:
    from scipy.linalg import eigh

    values, vectors = eigh(gram, driver="evd", check_finite=False)
    return np.maximum(values, 0), vectors
