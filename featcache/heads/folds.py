"""What one setting is fitted on, and what came of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.arrays import Classes, Features, Floats
from featcache.heads.absorb import decision_logits
from featcache.heads.logits import two_columns
from featcache.heads.row_blocks import mapped


@dataclass(frozen=True)
class Fold:
    """Prepared features to fit on, with their classes, and those of the images that choose, which may be none.

    keep: whether the fitted classifiers are wanted, and not only what they say of the others.
    streamed: X and others lie on the disk, and are larger than what may lie in memory.
    """

    X: Features  # (N, D)
    y: Classes  # (N,)
    others: Features  # (M, D)
    keep: bool = True
    streamed: bool = False


@dataclass(frozen=True)
class FoldResult:
    """One setting, fitted on a fold: what it says of the others. A classifier that raised has a reason instead."""

    classifier: Any
    predicted: Any  # (M,)
    logits: Floats | None  # (M, K), if it gives some
    seconds: float
    reason: str = ""


def evaluate(classifier: Any, fold: Fold, began: float) -> FoldResult:
    """Return what a fitted classifier says of the others."""
    if not len(fold.others):
        return FoldResult(classifier, fold.y[:0], None, time.perf_counter() - began)
    speaks = any(hasattr(classifier, name) for name in ("decision_function", "predict_proba"))
    logits = mapped(lambda some: decision_logits(classifier, some), fold.others) if speaks else None
    num_classes = len(np.unique(fold.y))
    if logits is not None and logits.shape[1] != num_classes:
        raise ValueError(f"it gives {logits.shape[1]} scores for {num_classes} classes")
    return FoldResult(classifier, mapped(classifier.predict, fold.others), logits, time.perf_counter() - began)


def result_from_scores(classifier: Any, scores: Floats, classes: Classes, began: float) -> FoldResult:
    """Return what scores (M, K) of K classes, or (M, 1) of two, say of the others."""
    logits = two_columns(scores)
    predicted = classes[logits.argmax(axis=1)] if len(logits) else classes[:0]
    return FoldResult(classifier, predicted, logits if len(logits) else None, time.perf_counter() - began)


def invalid_parameters(classifier: Any) -> FoldResult | None:
    """Return why a classifier of scikit-learn would not be fitted, as its own fit would say it."""
    try:
        classifier._validate_params()
    except ValueError as error:
        return failure(error)
    return None


def failure(error: Exception) -> FoldResult:
    """Return a trial that has only its reason, on one line."""
    return FoldResult(None, None, None, 0.0, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
