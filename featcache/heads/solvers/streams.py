"""Fit heads on features that are larger than memory, one block of rows at a time.

ridge, lda    sums of products over blocks give the exact solution
softmax, mlp  train on mini-batches, which is all that has to be in memory
others        scikit-learn's `partial_fit`, in several passes if the classifier trains by iterations
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from featcache.heads.estimators import FAMILIES, family_of, make_classifier
from featcache.heads.folds import Fold, FoldResult, evaluate, failure
from featcache.heads.grids import Params
from featcache.heads.row_blocks import ROWS

READS_BLOCKS = ("ridge", "lda", "softmax", "mlp")
PASSES = 20  # over all images, for classifiers that train by iterations


def reads_blocks(head: str) -> bool:
    """Return whether a head's own solver already reads features in blocks."""
    return family_of(head).name in READS_BLOCKS


def can_stream(head: str) -> bool:
    """Return whether a head needs only a block of features in memory at a time."""
    return reads_blocks(head) or hasattr(make_classifier(head, {}), "partial_fit")


def too_large(head: str, fold: Fold) -> FoldResult:
    """Return the failure of a head that needs all features in memory."""
    streamable = [name for name in FAMILIES if can_stream(name)]
    return failure(
        MemoryError(
            f"{head} needs all features in memory, {fold.X.nbytes / 1e9:.1f} GB; these are streamed. "
            f"Use {', '.join(streamable)}"
        )
    )


def fit(head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None, seed: int) -> Iterator[FoldResult]:
    """Yield the result of each setting, fitted by `partial_fit` on blocks of images in random order."""
    classes = np.unique(fold.y)
    for params in grid:
        began = time.perf_counter()
        try:
            classifier = make_classifier(head, params, class_weight, seed)
            # Others only sum over the images, and a second pass would count each image twice.
            trains_by_iterations = "max_iter" in classifier.get_params()
            num_passes = PASSES if trains_by_iterations else 1
            rng = np.random.default_rng(seed)
            for _ in range(num_passes):
                order = rng.permutation(len(fold.X))
                for start in range(0, len(order), ROWS):
                    rows = np.sort(order[start : start + ROWS])  # in the order in which the disk holds them
                    classifier.partial_fit(fold.X[rows], fold.y[rows], classes=classes)
            yield evaluate(classifier, fold, began)
        except Exception as error:  # a classifier may raise anything, and other settings may still work
            yield failure(error)
