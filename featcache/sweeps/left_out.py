"""Ridge with each image left out once, in closed form: how well features separate classes, in one fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.arrays import Classes, Features
from featcache.heads.grids import Params
from featcache.heads.solvers.paths import try_leave_one_out

STRENGTHS = tuple({"alpha": float(10**power)} for power in (5, 4, 3, 2, 1, 0))


@dataclass(frozen=True)
class LeftOut:
    """The strength that is best when each image is left out once, fitted on all images."""

    scaler: Any  # scikit-learn's StandardScaler, fitted
    classifier: Any  # scikit-learn's RidgeClassifier, fitted on scaled features
    params: Params
    is_right: Classes  # (N,) bool: which images it gets right when it was fitted on the others

    def predict(self, X: Features) -> Classes:
        """Return the (M,) classes of features (M, D)."""
        return np.asarray(self.classifier.predict(self.scaler.transform(X)))


def left_out(X: Features, y: Classes) -> LeftOut:
    """Return how well ridge does on features (N, D) and classes (N,) when each image is left out once.

    The scaler sees all images; its means and deviations hardly depend on one of them.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(X)
    results = try_leave_one_out("ridge", STRENGTHS, scaler.transform(X), y)
    accuracies = [(result.predicted == y).mean() for result in results]
    best = int(np.argmax(accuracies))  # of equal ones the first, which is the most regularised
    is_right = np.asarray(results[best].predicted == y)
    return LeftOut(scaler, results[best].classifier, STRENGTHS[best], is_right)
