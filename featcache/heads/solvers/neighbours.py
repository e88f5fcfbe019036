"""Fit k nearest neighbours for every k from one search.

The neighbours for k are the first k of those for the largest k, so the votes of every k are one cumulative sum over
neighbours ordered by distance. Cost: one search, M N D, and M k K for the votes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from featcache.arrays import Classes, Features, Floats
from featcache.heads.estimators import make_classifier
from featcache.heads.folds import Fold, FoldResult, failure
from featcache.heads.grids import Params
from featcache.heads.logits import log_probabilities
from featcache.heads.solvers.nearest import nearest, nearest_others

BLOCK_BYTES = 2**27  # of votes in memory at the same time, one for each neighbour and class


def fit(head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None, seed: int) -> Iterator[FoldResult]:
    """Yield the result of each number of neighbours, fitted on the fold."""

    def search(classifier: Any, most: int) -> Classes:
        if not len(fold.others):
            return np.zeros((0, most), np.int64)
        if classifier.metric == "cosine":
            return nearest(fold.X, fold.others, most)
        return np.asarray(classifier.kneighbors(fold.others, most, return_distance=False))

    yield from _votes(_fit_each(head, grid, fold.X, fold.y), fold.y, search, len(fold.X))


def leave_one_out(grid: Sequence[Params], X: Features, y: Classes, class_weight: str | None) -> Iterator[FoldResult]:
    """Yield each number of neighbours fitted on all images, with each image's votes from all the others."""

    def search(classifier: Any, most: int) -> Classes:
        if classifier.metric == "cosine":
            return nearest_others(X, most)
        # Without features, scikit-learn returns the neighbours of each fitted row other than itself.
        return np.asarray(classifier.kneighbors(None, most, return_distance=False))

    yield from _votes(_fit_each("knn", grid, X, y), y, search, len(X) - 1)


def _fit_each(head: str, grid: Sequence[Params], X: Features, y: Classes) -> list[Any]:
    """Return a fitted classifier for each setting, or its failure. All of them share the rows that the first keeps."""
    fitted: list[Any] = []
    state: dict[str, Any] = {}  # what fitting adds to a classifier
    for params in grid:
        try:
            classifier = make_classifier(head, params)
            if state:
                classifier._validate_params()  # scikit-learn's fit would raise this error
                vars(classifier).update(state)
            else:
                unfitted = {*vars(classifier)}
                classifier.fit(X, y)
                state = {name: value for name, value in vars(classifier).items() if name not in unfitted}
            fitted.append(classifier)
        except Exception as error:  # such as 0 neighbours
            fitted.append(failure(error))
    return fitted


def _votes(fitted: Sequence[Any], y: Classes, search: Callable[[Any, int], Classes], most: int) -> Iterator[FoldResult]:
    """Yield the result of each classifier; failures pass through.

    search: function from a classifier and k to the rows of its k nearest images, (M, k). most: the largest k there is.
    Each neighbour votes for its class. Among classes with equal votes the first wins, as in scikit-learn.
    """
    began = time.perf_counter()
    classifiers = [item for item in fitted if not isinstance(item, FoldResult)]
    if not classifiers:
        yield from fitted
        return
    largest = max(classifier.n_neighbors for classifier in classifiers)
    neighbours = search(classifiers[0], min(largest, most))  # (M, k), nearest first
    num_images, num_neighbours = neighbours.shape
    classes, index = np.unique(y, return_inverse=True)

    num_classes = len(classes)
    votes_by_k: dict[int, Any] = {}
    for classifier in classifiers:
        votes_by_k[classifier.n_neighbors] = np.zeros((num_images, num_classes), np.int32)
    one_hot = np.eye(num_classes, dtype=np.int32)
    vote_bytes = one_hot.itemsize * num_classes * max(1, num_neighbours)  # of one image
    step = max(1, BLOCK_BYTES // vote_bytes)
    for start in range(0, num_images, step):
        block = slice(start, start + step)
        classes_of_neighbours = index[neighbours[block]]  # (n, k)
        running_votes = one_hot[classes_of_neighbours].cumsum(axis=1)  # (n, k, K)
        for k, votes in votes_by_k.items():
            votes[block] = running_votes[:, min(k, num_neighbours) - 1]

    for item in fitted:
        if isinstance(item, FoldResult):
            yield item
            continue
        if item.n_neighbors > num_neighbours:
            reason = f"there are {len(y)} images, so no {item.n_neighbors} neighbours"
            yield failure(ValueError(reason))
            continue
        votes = votes_by_k[item.n_neighbors]
        predicted = classes[votes.argmax(axis=1)]
        logits: Floats | None = None
        if num_images:
            shares = votes / votes.sum(axis=1, keepdims=True)
            logits = log_probabilities(shares)
        yield FoldResult(item, predicted, logits, time.perf_counter() - began)
        began = time.perf_counter()
