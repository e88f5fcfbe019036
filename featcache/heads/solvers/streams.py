"""Heads on features that are larger than memory: those that read them a block at a time.

ridge, lda    sums of products over blocks give the exact solution
softmax, mlp  mini-batches are all they need
others        scikit-learn's `partial_fit`, in several passes where training takes iterations
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from featcache.heads.estimators import FAMILIES, family_of, make_classifier
from featcache.heads.folds import Fold, FoldResult, evaluate, failure
from featcache.heads.grids import Params
from featcache.heads.row_blocks import ROWS

IN_BLOCKS = ("ridge", "lda", "softmax", "mlp")
PASSES = 20  # over all images, of classifiers that train by iterations


def in_blocks(head: str) -> bool:
    """Return whether the usual way of fitting a head reads features in blocks."""
    return family_of(head).name in IN_BLOCKS


def can_stream(head: str) -> bool:
    """Return whether a head needs no more than a block of features at a time."""
    return in_blocks(head) or hasattr(make_classifier(head, {}), "partial_fit")


def names() -> list[str]:
    """Return the heads that can stream."""
    return [name for name in FAMILIES if can_stream(name)]


def refusal(head: str, fold: Fold) -> FoldResult:
    """Return a failed trial that says why."""
    size = f"{fold.X.nbytes / 1e9:.1f} GB"
    return failure(
        MemoryError(f"{head} needs all features in memory, {size}; these are streamed. Use {', '.join(names())}")
    )


def fit(head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None, seed: int) -> Iterator[FoldResult]:
    """Yield each setting, fitted by `partial_fit` on blocks of images in random order."""
    classes = np.unique(fold.y)
    for params in grid:
        began = time.perf_counter()
        try:
            classifier = make_classifier(head, params, class_weight, seed)
            rng = np.random.default_rng(seed)
            for _ in range(PASSES if "max_iter" in classifier.get_params() else 1):
                order = rng.permutation(len(fold.X))
                for at in range(0, len(order), ROWS):
                    rows = np.sort(order[at : at + ROWS])
                    classifier.partial_fit(fold.X[rows], fold.y[rows], classes=classes)
            yield evaluate(classifier, fold, began)
        except Exception as error:  # whatever a classifier raises, others can do better
            yield failure(error)
