"""Logits and probabilities."""

from __future__ import annotations

import numpy as np

from featcache.arrays import Floats


def softmax(logits: Floats) -> Floats:
    """Return (N, K) probabilities.

    >>> softmax(np.array([[0.0, 0.0], [1000.0, 0.0]]))
    array([[0.5, 0.5],
           [1. , 0. ]])
    """
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def two_columns(scores: Floats) -> Floats:
    """Return (N, K) logits of scores (N, K), or (N, 1) or (N,) of two classes: a score d as (-d/2, d/2).

    >>> two_columns(np.array([[2.0], [-1.0]]))
    array([[-1. ,  1. ],
           [ 0.5, -0.5]])
    """
    if scores.ndim == 2 and scores.shape[1] != 1:
        return scores
    one = scores.reshape(-1)
    return np.stack([-one / 2, one / 2], axis=1)


def log_probabilities(probabilities: Floats) -> Floats:
    """Return the logarithms of (N, K) probabilities, of none of them -inf, as scikit-learn's log loss takes them."""
    return np.log(np.maximum(probabilities, np.finfo(np.float64).eps))
