"""Fit every setting of a dense head, those of one shape in one computation (see `featcache.heads.softmax`)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from featcache.heads.estimators import make_classifier
from featcache.heads.folds import Fold, FoldResult, evaluate, failure
from featcache.heads.grids import Params

# Settings may differ in these and still train together ...
PER_HEAD = frozenset(["learning_rate", "weight_decay", "dropout", "label_smoothing"])
# ... but must agree in these.
SHARED = frozenset(
    ["hidden", "epochs", "batch_size", "optimizer", "momentum", "nesterov", "schedule", "patience", "engine"]
)


def fit(head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None, seed: int) -> Iterator[FoldResult]:
    """Yield the result of each setting, trained on the fold."""
    from featcache.heads.softmax import train_together

    began = time.perf_counter()
    classifiers = [make_classifier(head, params, class_weight, seed) for params in grid]
    errors = [_parameter_error(classifier) for classifier in classifiers]
    valid = [classifier for classifier, error in zip(classifiers, errors, strict=True) if error is None]
    train_together(valid, fold.X, fold.y)
    seconds_each = (time.perf_counter() - began) / max(1, len(valid))
    for classifier, error in zip(classifiers, errors, strict=True):
        if error is not None:
            yield failure(error)
        else:
            yield evaluate(classifier, fold, time.perf_counter() - seconds_each)


def chunks(head: str, grid: Sequence[Params]) -> list[list[int]]:
    """Return the numbers of the settings that train in one computation; those that cannot train stand alone."""
    from featcache.heads.softmax import chunks as chunks_of_classifiers

    classifiers = [make_classifier(head, params) for params in grid]
    valid: list[int] = []
    alone: list[list[int]] = []
    for number, classifier in enumerate(classifiers):
        if _parameter_error(classifier) is None:
            valid.append(number)
        else:
            alone.append([number])

    together: list[list[int]] = []
    for chunk in chunks_of_classifiers([classifiers[number] for number in valid]):
        together.append([valid[at] for at in chunk])
    return together + alone


def _parameter_error(classifier: Any) -> ValueError | None:
    from featcache.heads.softmax import check

    try:
        check(classifier)
    except ValueError as error:
        return error
    return None
