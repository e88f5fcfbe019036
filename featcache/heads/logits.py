"""Logits, probabilities, and how one becomes the other."""

from __future__ import annotations

import numpy as np

from featcache.arrays import Floats


def softmax(logits: Floats) -> Floats:
    """Return (N, K) probabilities.

    >>> softmax(np.array([[0.0, 0.0], [1000.0, 0.0]]))
    array([[0.5, 0.5],
           [1. , 0. ]])
    """
    # Subtracting the largest logit changes no probability, and keeps exp from overflowing.
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def two_columns(scores: Floats) -> Floats:
    """Return (N, K) logits for scores (N, K). The score d of two classes, (N, 1) or (N,), becomes (-d/2, d/2).

    The softmax of (-d/2, d/2) is (1 - sigmoid(d), sigmoid(d)).

    >>> two_columns(np.array([[2.0], [-1.0]]))
    array([[-1. ,  1. ],
           [ 0.5, -0.5]])
    """
    if scores.ndim == 2 and scores.shape[1] != 1:
        return scores
    column = scores.reshape(-1)
    return np.stack([-column / 2, column / 2], axis=1)


def log_probabilities(probabilities: Floats) -> Floats:
    """Return the logarithms of (N, K) probabilities, which are clipped as in scikit-learn's log loss: none is -inf."""
    return np.log(np.maximum(probabilities, np.finfo(np.float64).eps))
