"""A fold to fit one setting on, and the result: a fitted classifier and its predictions, or the reason it failed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.arrays import Classes, Features, Floats
from featcache.heads.absorb import decision_logits
from featcache.heads.logits import two_columns
from featcache.heads.row_blocks import map_rows


@dataclass(frozen=True)
class Fold:
    """Prepared features to fit on, with their classes, and the features of the other images, to predict.

    others: the images that choose among heads; there may be none.
    keep: whether to keep the fitted classifiers, or only their predictions on the others.
    streamed: whether X and others are on the disk, because they are larger than the memory allowed.
    products: returns X'X (D, D) of X minus its mean, in double precision, where folds share the work for it.
    """

    X: Features  # (N, D)
    y: Classes  # (N,)
    others: Features  # (M, D)
    keep: bool = True
    streamed: bool = False
    products: Callable[[], Floats] | None = None


_VALID: set[str] = set()  # settings that are known to be valid: to ask scikit-learn takes a millisecond, in each fold


@dataclass(frozen=True)
class FoldResult:
    """One setting fitted on a fold, with its predictions on the other images. If fitting failed, only the reason."""

    classifier: Any
    predicted: Any  # (M,)
    logits: Floats | None  # (M, K); None if the classifier has no scores
    seconds: float
    reason: str = ""


def evaluate(classifier: Any, fold: Fold, began: float) -> FoldResult:
    """Return the predictions of a fitted classifier on the other images.

    began: `time.perf_counter()` when fitting began. Raises ValueError if its scores do not match the classes.
    """
    if not len(fold.others):
        return FoldResult(classifier, fold.y[:0], None, time.perf_counter() - began)
    logits: Floats | None = None
    if hasattr(classifier, "decision_function") or hasattr(classifier, "predict_proba"):
        logits = map_rows(lambda features: decision_logits(classifier, features), fold.others)
        num_classes = len(np.unique(fold.y))
        if logits.shape[1] != num_classes:
            raise ValueError(f"it gives {logits.shape[1]} scores for {num_classes} classes")
    predicted = map_rows(classifier.predict, fold.others)
    return FoldResult(classifier, predicted, logits, time.perf_counter() - began)


def result_from_scores(classifier: Any, scores: Floats, classes: Classes, began: float) -> FoldResult:
    """Return the result whose scores on the other images are known: (M, K), or (M, 1) of two classes."""
    if not len(scores):
        return FoldResult(classifier, classes[:0], None, time.perf_counter() - began)
    logits = two_columns(scores)
    predicted = classes[logits.argmax(axis=1)]
    return FoldResult(classifier, predicted, logits, time.perf_counter() - began)


def invalid_parameters(classifier: Any) -> FoldResult | None:
    """Return the failure that scikit-learn's own `fit` would raise for the parameters; None if they are valid.

    The classifier is not fitted.
    """
    setting = f"{type(classifier)} {vars(classifier)}"
    if setting in _VALID:
        return None
    try:
        classifier._validate_params()
    except ValueError as error:
        return failure(error)
    _VALID.add(setting)
    return None


def failure(error: Exception) -> FoldResult:
    """Return a result that has only its reason, on one line."""
    message = " ".join(str(error).split())[:200]
    return FoldResult(None, None, None, 0.0, f"{type(error).__name__}: {message}")
