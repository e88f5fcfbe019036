"""Fit support vector machines with an RBF kernel: one matrix of distances for every gamma, one kernel for every C.

The kernel is exp(-gamma |x - z|^2). The squared distances, (N, N) and (M, N), do not depend on gamma, and the kernel
does not depend on C; libsvm would compute both again for each setting. Once C no longer bounds any coefficient, all
larger C have the same solution, and libsvm is not asked again. Cost: (N + M) N D for the distances and
(N + M) N for each gamma; libsvm's own solver then starts from the given kernel (`SVC(kernel="precomputed")`).
Memory: 16 (N + M) N bytes. Against scikit-learn one by one, four strengths on N x D features take 1.4 times as long for
90 x 256, and 1/9 for 950 x 1280 (0.26 s in place of 2.4 s of one core), 1/30 for 2500 x 2048.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from featcache.arrays import Classes, Floats
from featcache.heads.estimators import make_classifier
from featcache.heads.folds import Fold, FoldResult, evaluate, failure
from featcache.heads.grids import Params
from featcache.heads.logits import two_columns

MAX_ROWS = 10_000  # distances and one kernel take 1.6 GB then; with more rows libsvm computes what it needs itself


def fit(head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None, seed: int) -> Iterator[FoldResult]:
    """Yield the result of each setting, fitted on the fold."""
    classifiers = [make_classifier(head, params, class_weight, seed) for params in grid]
    numbers_by_gamma: dict[object, list[int]] = {}
    for number, classifier in enumerate(classifiers):
        numbers_by_gamma.setdefault(classifier.gamma, []).append(number)
    distances = _Distances(fold) if len(fold.X) <= MAX_ROWS else None

    # Settings of one gamma are fitted one after another, so that only one kernel is in memory at a time.
    results: dict[int, FoldResult] = {}
    for numbers in numbers_by_gamma.values():
        same_gamma = [classifiers[number] for number in numbers]
        for number, result in zip(numbers, _fit_one_gamma(same_gamma, fold, distances), strict=True):
            results[number] = result
    for number in range(len(grid)):
        yield results[number]


class _Distances:
    """Squared distances between the images to fit on, and from the other images to them, in double precision."""

    def __init__(self, fold: Fold) -> None:
        from sklearn.metrics.pairwise import euclidean_distances

        self.X = fold.X.astype(np.float64)
        self.within = euclidean_distances(self.X, squared=True)  # (N, N)
        self.others = np.zeros((0, len(self.X)))  # (M, N)
        if len(fold.others):
            self.others = euclidean_distances(fold.others.astype(np.float64), self.X, squared=True)

    def gamma(self, param: object) -> float:
        """Return the number that scikit-learn uses for the parameter gamma: 1 / (D var(X)), 1 / D, or itself."""
        num_features = int(self.X.shape[1])
        if param == "auto":
            return 1 / num_features
        if param != "scale":
            return float(param)  # type: ignore[arg-type]
        variance = float(self.X.var())
        return 1 / (num_features * variance) if variance else 1.0


def _fit_one_gamma(classifiers: Sequence[Any], fold: Fold, distances: _Distances | None) -> Iterator[FoldResult]:
    from sklearn.base import clone

    gamma: float | None = None
    unbounded: Any = None  # a fit, with its predictions, that is also the fit of every larger C
    for classifier in classifiers:
        began = time.perf_counter()
        try:
            classifier._validate_params()  # scikit-learn's fit would raise this error
            if distances is None:
                yield evaluate(classifier.fit(fold.X, fold.y), fold, began)
                continue
            # After the check, since a gamma that is refused makes no kernel.
            if gamma is None:
                gamma = distances.gamma(classifier.gamma)
                within = np.exp(-gamma * distances.within)
                to_others = np.exp(-gamma * distances.others)
            if unbounded is not None and classifier.C >= unbounded[0].C:
                on_kernel, predicted, logits = unbounded
            else:
                on_kernel = clone(classifier).set_params(kernel="precomputed").fit(within, fold.y)
                predicted, logits = _predictions(on_kernel, to_others)
                if _is_unbounded(on_kernel):
                    unbounded = on_kernel, predicted, logits

            kept: Any = None
            if fold.keep:
                _copy_fit(classifier, on_kernel, distances.X, gamma)
                kept = classifier
            yield FoldResult(kept, predicted, logits, time.perf_counter() - began)
        except Exception as error:
            yield failure(error)


def _is_unbounded(machine: Any) -> bool:
    """Return whether no coefficient has reached its bound, which is C times the weight of its class.

    Then a larger bound changes nothing: the solution is the one of every larger C.
    """
    return bool(np.abs(machine.dual_coef_).max() < machine.C * machine.class_weight_.min())


def _predictions(on_kernel: Any, kernel: Floats) -> tuple[Classes, Floats | None]:
    """Return the classes (M,) and logits (M, K) of images from their kernel (M, N), as SVC itself gives them.

    Without images there are no logits.

    libsvm has a machine for each two classes i < j. Its decision is a sum over the support vectors of both; those of
    class i have K - 1 coefficients, one for each other class. Here each coefficient is used once, in K products, where
    libsvm's `predict` and `decision_function` both go through all of them image by image.
    """
    classes = on_kernel.classes_
    num_classes = len(classes)
    if not len(kernel):
        return classes[:0], None
    to_support = kernel[:, on_kernel.support_]
    if num_classes == 2:
        decision = to_support @ on_kernel.dual_coef_.T + on_kernel.intercept_  # (M, 1)
        return classes[np.where(decision[:, 0] < 0, 0, 1)], two_columns(decision)

    sums: list[Floats] = []  # for each class (M, K - 1), over its support vectors
    ends = np.cumsum(on_kernel.n_support_)
    for begin, end in zip(ends - on_kernel.n_support_, ends, strict=True):
        sums.append(to_support[:, begin:end] @ on_kernel.dual_coef_[:, begin:end].T)
    first, second = np.triu_indices(num_classes, 1)  # i and j of each machine
    # Class i has no coefficient against itself, so that those against later classes stand one place earlier.
    decisions = np.stack([sums[i][:, j - 1] + sums[j][:, i] for i, j in zip(first, second, strict=True)], axis=1)
    decisions += on_kernel.intercept_  # (M, machines)

    # A machine votes for i where its decision is positive. At 0, `predict` counts a vote for j and
    # `decision_function` one for i, which adds the decisions, shrunk to less than a vote.
    is_first, is_second = np.eye(num_classes)[first], np.eye(num_classes)[second]  # (machines, K)
    votes = (decisions > 0) @ is_first + (decisions <= 0) @ is_second
    scores = (decisions >= 0) @ is_first + (decisions < 0) @ is_second
    confidences = decisions @ (is_first - is_second)
    scores += confidences / (3 * (np.abs(confidences) + 1))
    return classes[votes.argmax(axis=1)], scores


def _copy_fit(classifier: Any, on_kernel: Any, X: Floats, gamma: float) -> None:
    """Make `classifier`, which takes features, the same machine as `on_kernel`, which was fitted on their kernel."""
    params = classifier.get_params()
    fitted = {name: value for name, value in vars(on_kernel).items() if name not in params}
    vars(classifier).update(fitted)
    # These belong to features, where `on_kernel` has their kernel.
    classifier._gamma = gamma
    classifier.support_vectors_ = X[on_kernel.support_]
    classifier.shape_fit_ = X.shape
    classifier.n_features_in_ = X.shape[1]
