"""Dense heads of one shape trained in one computation (see `softmax`)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from featcache.heads.estimators import make_classifier
from featcache.heads.folds import Fold, FoldResult, evaluate, failure
from featcache.heads.grids import Params

OWN = frozenset(["learning_rate", "weight_decay", "dropout", "label_smoothing"])
SHARED = frozenset(
    ["hidden", "epochs", "batch_size", "optimizer", "momentum", "nesterov", "schedule", "patience", "engine"]
)


def fit(head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None, seed: int) -> Iterator[FoldResult]:
    """Yield each setting, trained on the fold."""
    from featcache.heads.softmax import train_together

    began = time.perf_counter()
    classifiers = [make_classifier(head, params, class_weight, seed) for params in grid]
    faults = [_fault(one) for one in classifiers]
    good = [one for one, fault in zip(classifiers, faults, strict=True) if fault is None]
    train_together(good, fold.X, fold.y)
    share = (time.perf_counter() - began) / max(1, len(good))
    for classifier, fault in zip(classifiers, faults, strict=True):
        yield evaluate(classifier, fold, time.perf_counter() - share) if fault is None else failure(fault)


def chunks(head: str, grid: Sequence[Params]) -> list[list[int]]:
    """Return the settings that train in one computation, and alone those that cannot train."""
    from featcache.heads.softmax import chunks as of_heads

    classifiers = [make_classifier(head, params) for params in grid]
    good = [at for at, one in enumerate(classifiers) if _fault(one) is None]
    found = [[good[at] for at in chunk] for chunk in of_heads([classifiers[at] for at in good])]
    return found + [[at] for at in range(len(grid)) if at not in good]


def _fault(classifier: Any) -> ValueError | None:
    from featcache.heads.softmax import check

    try:
        check(classifier)
    except ValueError as error:
        return error
    return None
