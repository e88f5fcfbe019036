"""k nearest neighbours for every k from one search."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.arrays import Classes, Features, Floats
from featcache.heads.estimators import make_classifier
from featcache.heads.folds import Fold, FoldResult, failure
from featcache.heads.grids import Params
from featcache.heads.logits import log_probabilities

BLOCK_BYTES = 2**27  # of votes, one for each neighbour and class


def fit(head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None, seed: int) -> Iterator[FoldResult]:
    """Yield each number of neighbours, fitted on the fold."""
    classifiers = _made(head, grid, fold.X, fold.y)
    yield from _votes(classifiers, fold.y, lambda one, most: _found(one, fold.others, most), len(fold.X))


def leave_one_out(grid: Sequence[Params], X: Features, y: Classes, class_weight: str | None) -> Iterator[FoldResult]:
    """Yield each number of neighbours fitted on all images, and what those of every image but itself say of it."""

    def search(one: Any, most: int) -> Classes:
        return np.asarray(one.kneighbors(None, most, return_distance=False))  # None: each row without itself

    yield from _votes(_made("knn", grid, X, y), y, search, len(X) - 1)


def _made(head: str, grid: Sequence[Params], X: Features, y: Classes) -> list[Any]:
    """Return the fitted classifiers, or in the place of one that cannot be its failed trial."""
    made: list[Any] = []
    for params in grid:
        try:
            made.append(make_classifier(head, params).fit(X, y))
        except Exception as error:  # a number of neighbours that is none
            made.append(failure(error))
    return made


def _found(classifier: Any, others: Features, most: int) -> Classes:
    if not len(others):
        return np.zeros((0, most), np.int64)
    return np.asarray(classifier.kneighbors(others, most, return_distance=False))


def _votes(made: Sequence[Any], y: Classes, search: Callable[[Any, int], Classes], most: int) -> Iterator[FoldResult]:
    """Neighbours of one class each vote for it; of classes with as many votes the first wins, as in scikit-learn."""
    began = time.perf_counter()
    classifiers = [one for one in made if not isinstance(one, FoldResult)]
    if not classifiers:
        yield from made
        return
    found = search(classifiers[0], min(max(one.n_neighbors for one in classifiers), most))
    classes, index = np.unique(y, return_inverse=True)
    counted = [np.zeros((len(found), len(classes)), np.int32) for _ in classifiers]
    step = max(1, BLOCK_BYTES // (4 * len(classes) * max(1, found.shape[1])))
    for at in range(0, len(found), step):
        votes = np.eye(len(classes), dtype=np.int32)[index[found[at : at + step]]].cumsum(axis=1)
        for one, count in zip(classifiers, counted, strict=True):
            count[at : at + step] = votes[:, min(one.n_neighbors, votes.shape[1]) - 1]
    counts = iter(counted)
    for classifier in made:
        if isinstance(classifier, FoldResult):
            yield classifier
            continue
        count = next(counts)
        if classifier.n_neighbors > found.shape[1]:
            reason = f"there are {len(y)} images, so no {classifier.n_neighbors} neighbours"
            yield failure(ValueError(reason))
            continue
        yield FoldResult(classifier, classes[count.argmax(axis=1)], _logits(count), time.perf_counter() - began)
        began = time.perf_counter()


def _logits(count: npt.NDArray[np.int32]) -> Floats | None:
    return log_probabilities(count / count.sum(axis=1, keepdims=True)) if len(count) else None
