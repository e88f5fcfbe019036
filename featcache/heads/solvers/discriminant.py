"""Fit linear discriminant analysis for every shrinkage from one decomposition.

With class means M (K, D), priors p and the shrunk covariance C_r, the scores are x W' + b with

    W = M C_r^-1,    b = log p - diag(W M') / 2,    C_r = (1 - r) S + r m I,    m = trace(S) / D

where S (D, D) is the pooled covariance within classes. This is scikit-learn's `solver="lsqr"`. With S = V diag(s) V',

    C_r^-1 = V diag(1 / ((1 - r) s + r m)) V' + (I - V V') / (r m)

so one eigendecomposition serves every r. The second term counts only if V has fewer than D columns, which is so for
N < D, where the decomposition is that of the (N, N) products. Cost: N D min(N, D) + min(N, D)^3, then K D R for each r.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from featcache.arrays import Classes, Features, Floats
from featcache.heads.estimators import make_classifier, set_coefficients
from featcache.heads.folds import Fold, FoldResult, evaluate, failure, result_from_scores
from featcache.heads.grids import Params
from featcache.heads.row_blocks import map_rows, sum_blocks

MIN_VARIANCE = 1e-12  # of the largest eigenvalue: smaller ones are rounding error


def fit(head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None, seed: int) -> Iterator[FoldResult]:
    """Yield the result of each shrinkage, fitted on the fold."""
    began = time.perf_counter()
    classes, index = np.unique(fold.y, return_inverse=True)
    if len(fold.X) == len(classes):
        raise ValueError("The number of samples must be more than the number of classes.")  # scikit-learn's message
    means, values, vectors, mean_variance = _covariance_within_classes(fold.X, index, len(classes))
    priors = np.bincount(index) / len(index)
    for params in grid:
        classifier = make_classifier(head, params, class_weight, seed)
        shrinkage = params["shrinkage"]
        try:
            classifier._validate_params()  # scikit-learn's fit would raise this error
            if not isinstance(shrinkage, (int, float)) or shrinkage == 0:
                yield evaluate(classifier.fit(fold.X, fold.y), fold, began)
                continue
        except Exception as error:
            yield failure(error)
            continue
        coef = _means_over_covariance(means, values, vectors, float(shrinkage), mean_variance)
        # The diagonal of W M' row by row, without the (K, K) product.
        intercept = -0.5 * (means * coef).sum(axis=1) + np.log(priors)
        if len(classes) == 2:
            # scikit-learn has one score for two classes: that of the second minus that of the first.
            coef = coef[1:] - coef[:1]
            intercept = intercept[1:] - intercept[:1]
        set_coefficients(classifier, classes, coef, intercept)
        scores = map_rows(lambda features, coef=coef: features @ coef.T, fold.others)  # type: ignore[misc]
        yield result_from_scores(classifier, scores + intercept, classes, began)
        began = time.perf_counter()


def _covariance_within_classes(X: Features, index: Classes, num_classes: int) -> tuple[Floats, Floats, Floats, float]:
    """Return the class means M (K, D), eigenvalues s (R,) and vectors V (D, R) of S, and its mean diagonal m."""
    one_hot = np.eye(num_classes)[index]
    sums = sum_blocks(lambda block: one_hot[block].T @ X[block], len(X))
    means = sums / np.bincount(index)[:, None]

    def deviations(block: slice = slice(None)) -> Floats:
        return np.asarray(X[block].astype(np.float64) - means[index[block]])

    def products(block: slice) -> Floats:
        rows = deviations(block)
        return np.asarray(rows.T @ rows)

    num_images, num_features = X.shape
    if num_images >= num_features:
        covariance = sum_blocks(products, num_images) / num_images
        values, vectors = np.linalg.eigh(covariance)
        mean_variance = float(np.trace(covariance)) / num_features
        return means, np.maximum(values, 0), vectors, mean_variance

    # A A' / N = Q diag(s) Q' has the eigenvalues of S = A' A / N, whose eigenvectors are A' Q / sqrt(N s).
    rows = deviations()  # A
    values, left = np.linalg.eigh(rows @ rows.T / num_images)
    kept = values > MIN_VARIANCE * max(values[-1], np.finfo(np.float64).tiny)
    values = values[kept]
    vectors = rows.T @ left[:, kept] / np.sqrt(values * num_images)
    mean_variance = float((rows**2).sum() / rows.size)
    return means, values, vectors, mean_variance


def _means_over_covariance(
    means: Floats, values: Floats, vectors: Floats, shrinkage: float, mean_variance: float
) -> Floats:
    """Return M C_r^-1, (K, D)."""
    ridge = shrinkage * mean_variance  # r m
    inside = means @ vectors  # M V
    variances = (1 - shrinkage) * values + ridge  # of C_r along V
    coef = (inside / variances) @ vectors.T
    # Outside the span of V the covariance is only its ridge.
    if vectors.shape[1] < len(vectors):
        coef += (means - inside @ vectors.T) / ridge
    return np.asarray(coef)
