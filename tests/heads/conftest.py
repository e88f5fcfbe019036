"""Small problems of two and of three classes, and one fitted pipeline of every family on each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from featcache.heads.estimators import FAMILIES, make_pipeline

SMALL = {  # enough steps to have weights of its own, and few trees
    "softmax": {"epochs": 3},
    "mlp": {"epochs": 3, "hidden": 5},
    "mlpclassifier": {"max_iter": 2000},
    "forest": {"n_estimators": 5},
    "boosting": {"max_iter": 5, "min_samples_leaf": 5},
}
EVERY = tuple(FAMILIES)
DENSE = ("centroid", "ridge", "lda", "logreg", "svm", "softmax", "mlp", "mlpclassifier")

Problem = tuple[np.ndarray, np.ndarray]


def blobs(num_classes: int, per_class: int = 20, num_features: int = 6, spread: float = 1.0, seed: int = 0) -> Problem:
    """Return X (N, D), far from zero mean and unit scale, and y (N,)."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 3, (num_classes, num_features))
    y = np.repeat(np.arange(num_classes), per_class)
    X = centres[y] + rng.normal(0, spread, (len(y), num_features))
    return X * rng.uniform(0.1, 20, num_features) + rng.normal(0, 50, num_features), y


def params_of(name: str) -> dict[str, Any]:
    return {**FAMILIES[name].grid[-1], **SMALL.get(name, {})}


@cache
def fit_family(name: str, num_classes: int) -> Any:
    return make_pipeline(name, params_of(name), None, 3).fit(*blobs(num_classes))


@pytest.fixture(scope="session")
def fitted() -> Callable[[str, int], Any]:
    """Return a function from family and number of classes to a fitted pipeline. Do not change what it returns."""
    return fit_family
