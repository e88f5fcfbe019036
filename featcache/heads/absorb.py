"""Absorb fitted feature scalers, projections, and a temperature into a dense head.

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
from featcache.heads.linear import DenseHead, log_probabilities, two_columns


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


def absorb_projection(head: DenseHead, mean: Floats, projection: Floats) -> DenseHead:
    """Return the head that does to features what `head` does to (features - mean) @ projection, (D,) and (D, P)."""
    kernel = projection @ head.kernels[0]
    bias = head.biases[0] - mean @ kernel
    return replace(head, kernels=(kernel, *head.kernels[1:]), biases=(bias, *head.biases[1:]))


def dense_layers(classifier: Any) -> tuple[tuple[Floats, ...], tuple[Floats, ...]] | None:
    """Return the kernels and biases of a fitted classifier, in double precision; None if it is not dense.

    Their output is its logits up to what softmax does not see; of two classes it may be one column.
    """
    from sklearn.linear_model._base import LinearClassifierMixin
    from sklearn.neighbors import NearestCentroid
    from sklearn.neural_network import MLPClassifier

    if hasattr(classifier, "kernels_"):
        found = classifier.kernels_, classifier.biases_
    elif isinstance(classifier, LinearClassifierMixin):
        found = (np.atleast_2d(classifier.coef_).T,), (np.atleast_1d(classifier.intercept_),)
    elif isinstance(classifier, MLPClassifier) and classifier.activation == "relu":
        found = classifier.coefs_, classifier.intercepts_
    elif isinstance(classifier, NearestCentroid) and (classifier.metric, classifier.priors) == ("euclidean", "uniform"):
        centroids = classifier.centroids_  # -|x - c|^2 / 2 = x c - |c|^2 / 2 - |x|^2 / 2
        found = (centroids.T,), (-(centroids**2).sum(axis=1) / 2,)
    else:
        return None
    kernels, biases = (tuple(np.asarray(one, dtype=np.float64) for one in some) for some in found)
    return kernels, biases


def dense_head(estimator: Any, tap: str, temperature: float = 1.0) -> DenseHead:
    """Return a fitted pipeline of affine steps and a classifier as one dense head on raw features.

    Its logits are those of `decision_logits` over `temperature`; a binary classifier's one score d becomes
    (-d/2, d/2), which has the same probabilities. Raises UsageError if the classifier or a step is not dense.
    """
    *steps, (_, classifier) = estimator.steps
    layers = dense_layers(classifier)
    if layers is None:
        raise UsageError(f"A {type(classifier).__name__} has no exact form as Dense layers, so it cannot be handed off")
    kernels, biases = layers
    if kernels[-1].shape[1] == 1:
        kernels = (*kernels[:-1], np.hstack([-kernels[-1], kernels[-1]]) / 2)
        biases = (*biases[:-1], np.hstack([-biases[-1], biases[-1]]) / 2)
    head = DenseHead(kernels, biases, tap)
    for _, step in reversed(steps):
        head = _absorb(head, step)
    return absorb_temperature(head, temperature)


def decision_logits(estimator: Any, features: Floats) -> Floats:
    """Return (N, K) logits as the estimator itself computes them, a binary score d as (-d/2, d/2).

    Of an estimator that has no decision function they are those of its layers, or else its log-probabilities.
    """
    steps, classifier = (estimator[:-1], estimator[-1]) if hasattr(estimator, "steps") else ((), estimator)
    layers = dense_layers(classifier)
    if layers is not None and not hasattr(classifier, "coef_"):
        prepared = steps.transform(features) if steps else features
        return two_columns(DenseHead(*layers, tap="").logits(np.asarray(prepared)))
    if hasattr(estimator, "decision_function"):
        return two_columns(np.asarray(estimator.decision_function(features), dtype=np.float64))
    return log_probabilities(np.asarray(estimator.predict_proba(features), dtype=np.float64))


def _absorb(head: DenseHead, step: Any) -> DenseHead:
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    if isinstance(step, StandardScaler):
        return absorb_scaler(head, step.mean_, step.scale_)
    if not isinstance(step, PCA):
        raise UsageError(f"A {type(step).__name__} has no exact form as Dense layers, so it cannot be handed off")
    spread = np.ones(len(step.components_))
    if step.whiten:  # with its own guard against components without variance
        spread = np.maximum(np.sqrt(step.explained_variance_), np.finfo(step.explained_variance_.dtype).eps)
    return absorb_projection(head, step.mean_.astype(np.float64), (step.components_ / spread[:, None]).T)
