"""Linear discriminant analysis for every shrinkage from one decomposition.

scikit-learn's covariance for shrinkage r is (1 - r) S + r m I, with S the pooled covariance within classes and m the
mean of its diagonal, so that the eigenvectors of S serve all r.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from featcache.arrays import Classes, Features, Floats
from featcache.heads.estimators import make_classifier, set_coefficients
from featcache.heads.folds import Fold, FoldResult, evaluate, failure, result_from_scores
from featcache.heads.grids import Params
from featcache.heads.row_blocks import mapped, squared, summed

NOTHING = 1e-12  # of the largest eigenvalue: what is below comes of rounding


def fit(head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None, seed: int) -> Iterator[FoldResult]:
    """Yield each shrinkage, fitted on the fold."""
    began = time.perf_counter()
    classes, index = np.unique(fold.y, return_inverse=True)
    if len(fold.X) == len(classes):
        raise ValueError("The number of samples must be more than the number of classes.")  # as scikit-learn says
    means, values, vectors, trace = _within(fold.X, index, len(classes))
    priors = np.bincount(index) / len(index)
    for params in grid:
        classifier, shrinkage = make_classifier(head, params, class_weight, seed), params["shrinkage"]
        try:
            classifier._validate_params()  # as its own fit would
            if not isinstance(shrinkage, (int, float)) or shrinkage == 0:
                yield evaluate(classifier.fit(fold.X, fold.y), fold, began)
                continue
        except Exception as error:
            yield failure(error)
            continue
        coef = _solved(means, values, vectors, float(shrinkage), trace)
        intercept = -0.5 * (means * coef).sum(axis=1) + np.log(priors)
        if len(classes) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        set_coefficients(classifier, classes, coef, intercept)
        scores = mapped(lambda some, coef=coef: some @ coef.T, fold.others) + intercept  # type: ignore[misc]
        yield result_from_scores(classifier, scores, classes, began)
        began = time.perf_counter()


def _within(X: Features, index: Classes, num_classes: int) -> tuple[Floats, Floats, Floats, float]:
    """Return the class means (K, D), and of the covariance within classes: eigenvalues (R,), vectors (D, R), mean."""
    member = np.eye(num_classes)[index]
    means = summed(lambda some: member[some].T @ X[some], len(X)) / np.bincount(index)[:, None]

    def apart(some: slice = slice(None)) -> Floats:
        return np.asarray(X[some].astype(np.float64) - means[index[some]])

    if len(X) >= X.shape[1]:
        covariance = summed(lambda some: squared(apart(some)), len(X)) / len(X)
        values, vectors = np.linalg.eigh(covariance)
        return means, np.maximum(values, 0), vectors, float(np.trace(covariance)) / X.shape[1]
    wide = apart()
    values, left = np.linalg.eigh(wide @ wide.T / len(X))
    some = values > NOTHING * max(values[-1], np.finfo(np.float64).tiny)
    vectors = wide.T @ left[:, some] / np.sqrt(values[some] * len(X))
    return means, values[some], vectors, float((wide**2).sum() / wide.size)


def _solved(means: Floats, values: Floats, vectors: Floats, shrinkage: float, trace: float) -> Floats:
    """Return the means (K, D) times the inverse of the shrunk covariance."""
    ridge = shrinkage * trace
    inside = means @ vectors
    coef = (inside / ((1 - shrinkage) * values + ridge)) @ vectors.T
    if vectors.shape[1] < len(vectors):
        coef += (means - inside @ vectors.T) / ridge
    return np.asarray(coef)
