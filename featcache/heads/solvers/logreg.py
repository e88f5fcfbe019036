"""Logistic regression of every strength on its way at once (see `logistic`)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from featcache.arrays import Classes, Floats
from featcache.heads.estimators import make_classifier, set_coefficients
from featcache.heads.folds import Fold, FoldResult, evaluate, invalid_parameters, result_from_scores
from featcache.heads.grids import Params
from featcache.heads.row_blocks import mapped
from featcache.heads.solvers.logistic import Solution, logistic_path

WITHIN = (1e-15, 1e15)  # strengths that are solved together; others, such as infinity, scikit-learn fits itself


def fit(head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None, seed: int) -> Iterator[FoldResult]:
    """Yield each strength, fitted on the fold."""
    began = time.perf_counter()
    classes = np.unique(fold.y)
    classifiers = [make_classifier(head, params, class_weight, seed) for params in grid]
    refused = [invalid_parameters(one) for one in classifiers]
    shared = [
        not reason and len(classes) > 1 and WITHIN[0] <= one.C <= WITHIN[1]
        for one, reason in zip(classifiers, refused, strict=True)
    ]
    solutions = _solutions([one for one, among in zip(classifiers, shared, strict=True) if among], fold, classes)
    scored = iter(zip(solutions, _scores(solutions, fold), strict=True))
    each = (time.perf_counter() - began) / len(grid)
    for classifier, reason, among in zip(classifiers, refused, shared, strict=True):
        began = time.perf_counter()
        if reason:
            yield reason
        elif not among:
            yield evaluate(classifier.fit(fold.X, fold.y), fold, began)
        else:
            solution, scores = next(scored)
            set_coefficients(classifier, classes, solution.coef, solution.intercept)
            classifier.n_iter_ = np.array([solution.iterations], np.int32)
            yield replace(result_from_scores(classifier, scores, classes, began), seconds=each)


def _solutions(classifiers: Sequence[Any], fold: Fold, classes: Classes) -> list[Solution]:
    from sklearn.utils.class_weight import compute_sample_weight

    if not classifiers:
        return []
    weights = compute_sample_weight(classifiers[0].class_weight, fold.y)
    index, strengths = np.searchsorted(classes, fold.y), [one.C for one in classifiers]
    return logistic_path(fold.X, index, strengths, weights, classifiers[0].max_iter, classifiers[0].tol)


def _scores(solutions: Sequence[Solution], fold: Fold) -> list[Floats]:
    """Return (M, K) of every solution, from one product with all of them."""
    if not solutions:
        return []
    every = np.concatenate([one.coef for one in solutions]).T
    found = np.split(mapped(lambda some: some @ every, fold.others), len(solutions), axis=1)
    return [part + one.intercept for part, one in zip(found, solutions, strict=True)]
