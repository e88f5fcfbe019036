"""Absorb a fitted feature scaler, and a temperature, into a dense head.

A sweep fits heads on standardised features z = (x - mean) / scale; the fine-tuning model feeds its head
raw features x. Absorbing leaves every logit as it was, so that fine-tuning starts at the probe
(LP-FT: Kumar et al. 2022, https://arxiv.org/abs/2202.10054).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from featcache.arrays import Floats
from featcache.errors import ShapeMismatch, UsageError
from featcache.heads.linear import DenseHead


def absorb_scaler(head: DenseHead, mean: Floats, scale: Floats) -> DenseHead:
    """Return the head that does to raw features what `head` does to standardised ones.

    mean, scale: (D,), in feature units, scale > 0: `StandardScaler.mean_` and `.scale_`.
    Raises ShapeMismatch if the scaler saw another number of features.

    >>> head = DenseHead((np.eye(2),), (np.zeros(2),), tap="toy/gap")
    >>> absorb_scaler(head, mean=np.array([1.0, 0.0]), scale=np.array([2.0, 1.0])).biases
    (array([-0.5,  0. ]),)
    """
    if mean.shape != head.kernels[0].shape[:1]:
        raise ShapeMismatch(
            f"The scaler was fitted on {mean.size} features, but the head on tap '{head.tap}' "
            f"takes {len(head.kernels[0])}. Refit both on one cache: featcache sweep"
        )
    kernel = head.kernels[0] / scale[:, None]
    bias = head.biases[0] - mean @ kernel
    return replace(head, kernels=(kernel, *head.kernels[1:]), biases=(bias, *head.biases[1:]))


def absorb_temperature(head: DenseHead, temperature: float) -> DenseHead:
    """Return the head whose logits are divided by `temperature` (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""
    last = (head.kernels[-1] / temperature, head.biases[-1] / temperature)
    return replace(head, kernels=(*head.kernels[:-1], last[0]), biases=(*head.biases[:-1], last[1]))


def dense_head(estimator: Any, tap: str, temperature: float = 1.0) -> DenseHead:
    """Return a fitted Pipeline(StandardScaler, classifier) as one dense head on raw features.

    Its logits are the classifier's decision function over `temperature`; a binary classifier's one score d
    becomes (-d/2, d/2), which has the same probabilities. Raises UsageError if the classifier is not dense.
    """
    scaler, classifier = estimator[0], estimator[-1]
    if hasattr(classifier, "kernels_"):
        kernels, biases = classifier.kernels_, classifier.biases_
    elif hasattr(classifier, "coef_"):
        kernels, biases = (np.atleast_2d(classifier.coef_).T,), (np.atleast_1d(classifier.intercept_),)
    else:
        raise UsageError(f"A {type(classifier).__name__} has no exact form as Dense layers, so it cannot be handed off")
    if kernels[-1].shape[1] == 1:
        kernels, biases = (
            (np.hstack([-kernels[0], kernels[0]]) / 2,),
            (np.hstack([-biases[0], biases[0]]) / 2,),
        )
    as_double = DenseHead(
        tuple(np.asarray(kernel, dtype=np.float64) for kernel in kernels),
        tuple(np.asarray(bias, dtype=np.float64) for bias in biases),
        tap,
    )
    return absorb_temperature(absorb_scaler(as_double, scaler.mean_, scaler.scale_), temperature)


def decision_logits(estimator: Any, features: Floats) -> Floats:
    """Return (N, K) logits as the estimator itself computes them, a binary score d as (-d/2, d/2)."""
    scores = np.asarray(estimator.decision_function(features), dtype=np.float64)
    return np.stack([-scores / 2, scores / 2], axis=1) if scores.ndim == 1 else scores
