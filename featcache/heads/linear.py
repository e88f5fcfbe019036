"""A head as plain arrays: what every head that can be handed to Keras comes down to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featcache.arrays import Floats
from featcache.errors import ShapeMismatch


@dataclass(frozen=True)
class DenseHead:
    """Dense layers with ReLU between them; the last gives logits. One layer makes a linear head.

    logits (N, K) = features (N, D) @ kernels[0] (D, K) + biases[0] (K,), as in a Keras `Dense`.
    """

    kernels: tuple[Floats, ...]
    biases: tuple[Floats, ...]
    tap: str  # where the features come from, e.g. "mobilenet_v2/top"

    def logits(self, features: Floats) -> Floats:
        """Return (N, K) for raw features (N, D). Raises ShapeMismatch if D is another."""
        if features.shape[1] != len(self.kernels[0]):
            raise ShapeMismatch(
                f"The head on tap '{self.tap}' takes {len(self.kernels[0])} features; got {features.shape[1]}"
            )
        values = features
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1], strict=True):
            values = np.maximum(values @ kernel + bias, 0)
        return values @ self.kernels[-1] + self.biases[-1]


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
