"""Support vector machines with an RBF kernel: one matrix of distances for every gamma, one kernel for every C."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from featcache.arrays import Floats
from featcache.heads.estimators import make_classifier
from featcache.heads.folds import Fold, FoldResult, evaluate, failure
from featcache.heads.grids import Params

MOST_ROWS = 10_000  # of which distances and one kernel take 1.6 GB; of more, libsvm computes what it needs


def fit(head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None, seed: int) -> Iterator[FoldResult]:
    """Yield each setting, fitted on the fold."""
    classifiers = [make_classifier(head, params, class_weight, seed) for params in grid]
    found: dict[int, FoldResult] = {}
    by_gamma: dict[object, list[int]] = {}
    for number, classifier in enumerate(classifiers):
        by_gamma.setdefault(classifier.gamma, []).append(number)
    kernels = _Kernels(fold) if len(fold.X) <= MOST_ROWS else None
    for numbers in by_gamma.values():
        found |= {number: tried for number, tried in _of_one_gamma(classifiers, numbers, fold, kernels)}
    yield from (found[number] for number in range(len(grid)))


class _Kernels:
    """exp(-gamma d^2) between the images that fit, and from the others to them."""

    def __init__(self, fold: Fold) -> None:
        from sklearn.metrics.pairwise import euclidean_distances

        self.X = fold.X.astype(np.float64)
        self._within = euclidean_distances(self.X, squared=True)
        self._others = np.zeros((0, len(self.X)))
        if len(fold.others):
            self._others = euclidean_distances(fold.others.astype(np.float64), self.X, squared=True)

    def gamma(self, asked: object) -> float:
        """Return what scikit-learn makes of a gamma."""
        if asked == "scale":
            variance = float(self.X.var())
            return 1 / (self.X.shape[1] * variance) if variance else 1.0
        return 1 / self.X.shape[1] if asked == "auto" else float(asked)  # type: ignore[arg-type]

    def of(self, gamma: float) -> tuple[Floats, Floats]:
        """Return (N, N) and (M, N)."""
        return np.exp(-gamma * self._within), np.exp(-gamma * self._others)


def _of_one_gamma(
    classifiers: Sequence[Any], numbers: Sequence[int], fold: Fold, kernels: _Kernels | None
) -> Iterator[tuple[int, FoldResult]]:
    made: tuple[float, Floats, Floats] | None = None
    for number in numbers:
        began = time.perf_counter()
        classifier = classifiers[number]
        try:
            classifier._validate_params()  # as its own fit would
            if kernels is None:
                yield number, evaluate(classifier.fit(fold.X, fold.y), fold, began)
                continue
            if made is None:
                gamma = kernels.gamma(classifier.gamma)
                made = (gamma, *kernels.of(gamma))
            yield number, _fitted(classifier, kernels.X, made, fold, began)
        except Exception as error:
            yield number, failure(error)


def _fitted(classifier: Any, X: Floats, made: tuple[float, Floats, Floats], fold: Fold, began: float) -> FoldResult:
    from sklearn.base import clone

    gamma, within, others = made
    on_kernel = clone(classifier).set_params(kernel="precomputed").fit(within, fold.y)
    said = evaluate(on_kernel, Fold(within, fold.y, others), began)
    if fold.keep:
        _take_over(classifier, on_kernel, X, gamma)
    return FoldResult(classifier if fold.keep else None, said.predicted, said.logits, time.perf_counter() - began)


def _take_over(classifier: Any, on_kernel: Any, X: Floats, gamma: float) -> None:
    """Make a classifier that takes features the same machine as one that was fitted on their kernel."""
    params = classifier.get_params()
    fitted = {name: value for name, value in vars(on_kernel).items() if name not in params}
    vars(classifier).update(fitted, _gamma=gamma, support_vectors_=X[on_kernel.support_], shape_fit_=X.shape)
    classifier.n_features_in_ = X.shape[1]
