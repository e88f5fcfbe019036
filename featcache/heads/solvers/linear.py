"""Fit linear heads of every strength together: logistic regression and linear support vector machines.

`logistic` and `hinge` have their losses, `descent` the method.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from featcache.arrays import Floats
from featcache.heads.estimators import make_classifier, set_coefficients
from featcache.heads.folds import Fold, FoldResult, evaluate, invalid_parameters, result_from_scores
from featcache.heads.grids import Params
from featcache.heads.row_blocks import map_rows
from featcache.heads.solvers.descent import Solution
from featcache.heads.solvers.hinge import hinge_path
from featcache.heads.solvers.logistic import logistic_path

# Solved together; other strengths, such as infinity, are left to scikit-learn.
MIN_C, MAX_C = 1e-15, 1e15
MAX_C_OF_HINGE = 1e5  # above it, liblinear came nearer to the minimum


def fit(head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None, seed: int) -> Iterator[FoldResult]:
    """Yield the result of each strength, fitted on the fold."""
    from sklearn.svm import LinearSVC
    from sklearn.utils.class_weight import compute_class_weight

    began = time.perf_counter()
    classes = np.unique(fold.y)
    classifiers = [make_classifier(head, params, class_weight, seed) for params in grid]
    refusals = [invalid_parameters(classifier) for classifier in classifiers]
    largest = MAX_C_OF_HINGE if isinstance(classifiers[0], LinearSVC) else MAX_C
    together = []
    for number, (classifier, refusal) in enumerate(zip(classifiers, refusals, strict=True)):
        if refusal is None and len(classes) > 1 and MIN_C <= classifier.C <= largest:
            together.append(number)

    solutions: dict[int, Solution] = {}
    scores: dict[int, Floats] = {}
    if together:
        # All settings of a path agree in these parameters, so the first stands for all.
        first = classifiers[together[0]]
        strengths = [classifiers[number].C for number in together]
        index = np.searchsorted(classes, fold.y)
        weights = compute_class_weight(first.class_weight, classes=classes, y=fold.y)
        if isinstance(first, LinearSVC):
            path = hinge_path(fold.X, index, strengths, weights, first.max_iter, first.tol)
        else:
            path = logistic_path(fold.X, index, strengths, weights[index], first.max_iter, first.tol)
        solutions = dict(zip(together, path, strict=True))
        scores = dict(zip(together, _scores(path, fold), strict=True))
    seconds_each = (time.perf_counter() - began) / len(grid)

    for number, (classifier, refusal) in enumerate(zip(classifiers, refusals, strict=True)):
        began = time.perf_counter()
        if refusal is not None:
            yield refusal
        elif number not in solutions:
            yield evaluate(classifier.fit(fold.X, fold.y), fold, began)
        else:
            solution = solutions[number]
            set_coefficients(classifier, classes, solution.coef, solution.intercept)
            steps = solution.iterations
            classifier.n_iter_ = steps if isinstance(classifier, LinearSVC) else np.array([steps], np.int32)
            result = result_from_scores(classifier, scores[number], classes, began)
            yield replace(result, seconds=seconds_each)


def _scores(path: Sequence[Solution], fold: Fold) -> list[Floats]:
    """Return the scores (M, K) of every solution, from one product with the coefficients of all."""
    coefficients = np.concatenate([solution.coef for solution in path]).T
    products = map_rows(lambda features: features @ coefficients, fold.others)
    by_solution = np.split(products, len(path), axis=1)
    return [part + solution.intercept for part, solution in zip(by_solution, path, strict=True)]
