"""A fitted pipeline -> the layers of a head on raw features, with the very logits of the estimator.

A sweep fits heads on prepared features z = (x - mean) / scale; the fine-tuning model feeds its head raw
features x. Absorbing leaves every logit as it was, so that fine-tuning starts at the probe
(LP-FT: Kumar et al. 2022, https://arxiv.org/abs/2202.10054).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from featcache.arrays import Floats
from featcache.errors import UsageError
from featcache.heads.layers import Affine, Dense, Head, Layer, Nearness, Squares, Unit, Votes, dense, make_head
from featcache.heads.logits import log_probabilities, two_columns

Layers = tuple[Layer, ...]
ACTIVATIONS: dict[str, Any] = {"relu": "relu", "tanh": "tanh", "logistic": "sigmoid", "identity": "linear"}


def exact_head(estimator: Any, tap: str, temperature: float = 1.0) -> Head:
    """Return a fitted pipeline of steps and a classifier as one head on raw features.

    Its logits are those of `decision_logits` over `temperature` (Guo et al. 2017, https://arxiv.org/abs/1706.04599);
    a binary classifier's one score d becomes (-d/2, d/2), which has the same probabilities.
    Raises UsageError if the classifier or a step has no exact form.
    """
    *steps, (_, classifier) = estimator.steps
    layers = layers_of(classifier)
    if layers is None:
        raise UsageError(f"A {type(classifier).__name__} has no exact form as layers of Keras")
    before = [one for _, step in steps for one in _step_layers(step)]
    given = layers[-1].widths[1]
    after = [Dense(np.array([[-0.5, 0.5]]), np.zeros(2))] if given == 1 else []
    width = 2 if given == 1 else given
    assert width is not None  # a classifier ends in scores
    return make_head([*before, *layers, *after, Affine(np.full(width, 1 / temperature), np.zeros(width))], tap)


def is_exact(classifier: Any) -> bool:
    """Return whether a fitted classifier can be layers of Keras, every logit as it is."""
    return any(is_such(classifier) for is_such, _ in _FORMS)


def layers_of(classifier: Any) -> Layers | None:
    """Return the layers of a fitted classifier on prepared features, in double precision; None if it has no such form.

    Their output is its logits up to what softmax does not see; of two classes it may be one column.
    """
    for is_such, layers in _FORMS:
        if is_such(classifier):
            return layers(classifier)
    return None


def decision_logits(estimator: Any, features: Floats) -> Floats:
    """Return (N, K) logits as the estimator itself computes them, a binary score d as (-d/2, d/2).

    Of an estimator that has no decision function they are those of its layers, or else its log-probabilities. Of naive
    Bayes they are the joint log-likelihoods less their mean: its probabilities are 0 in double precision for most
    classes, so that their logarithms tell nothing.
    """
    steps, classifier = (estimator[:-1], estimator[-1]) if hasattr(estimator, "steps") else ((), estimator)
    if _is_centroid(classifier) or _is_perceptron(classifier):
        prepared = np.asarray(steps.transform(features) if steps else features)
        return two_columns(make_head(layers_of(classifier) or (), "").logits(prepared))
    if _is_bayes(classifier):
        joint = classifier.predict_joint_log_proba(steps.transform(features) if steps else features)
        return np.asarray(joint - joint.mean(axis=1, keepdims=True))
    if hasattr(estimator, "decision_function"):
        return two_columns(np.asarray(estimator.decision_function(features), dtype=np.float64))
    return log_probabilities(np.asarray(estimator.predict_proba(features), dtype=np.float64))


def _is_dense(classifier: Any) -> bool:
    return hasattr(classifier, "kernels_")


def _is_linear(classifier: Any) -> bool:
    from sklearn.linear_model._base import LinearClassifierMixin

    return isinstance(classifier, LinearClassifierMixin)


def _is_perceptron(classifier: Any) -> bool:
    from sklearn.neural_network import MLPClassifier

    return isinstance(classifier, MLPClassifier)


def _is_centroid(classifier: Any) -> bool:
    from sklearn.neighbors import NearestCentroid

    return isinstance(classifier, NearestCentroid) and (classifier.metric, classifier.priors) == (
        "euclidean",
        "uniform",
    )


def _is_bayes(classifier: Any) -> bool:
    from sklearn.naive_bayes import GaussianNB

    return isinstance(classifier, GaussianNB)


def _is_rbf(classifier: Any) -> bool:
    from sklearn.svm import SVC

    return isinstance(classifier, SVC) and (classifier.kernel, classifier.decision_function_shape) == ("rbf", "ovr")


def _of_dense(classifier: Any) -> Layers:
    return dense(_doubles(classifier.kernels_), _doubles(classifier.biases_))


def _of_linear(classifier: Any) -> Layers:
    return (Dense(_double(np.atleast_2d(classifier.coef_).T), _double(np.atleast_1d(classifier.intercept_))),)


def _of_perceptron(classifier: Any) -> Layers:
    activation = ACTIVATIONS[classifier.activation]
    return dense(_doubles(classifier.coefs_), _doubles(classifier.intercepts_), activation)


def _of_centroid(classifier: Any) -> Layers:
    """-|x - c|^2 / 2 = x c - |c|^2 / 2 - |x|^2 / 2, of which the last is the same for all classes."""
    centroids = _double(classifier.centroids_)
    return (Dense(centroids.T, -(centroids**2).sum(axis=1) / 2),)


def _of_bayes(classifier: Any) -> Layers:
    """log prior - sum log(2 pi var) / 2 - sum (x - theta)^2 / (2 var), less its mean over the classes.

    About the mean of all classes, and without what all classes share: a feature that never varies would otherwise
    weigh 1e9 in each, which single precision does not forgive.
    """
    theta, var = _double(classifier.theta_), _double(classifier.var_)
    about = Affine.standardising(theta.mean(axis=0), np.sqrt(var.mean(axis=0)))
    theta, var = about(theta), var * about.scale**2
    kernel = np.vstack([(theta / var).T, -0.5 / var.T])
    bias = np.log(classifier.class_prior_) - 0.5 * (np.log(var) + theta**2 / var).sum(axis=1)
    kernel, bias = kernel - kernel.mean(axis=1, keepdims=True), bias - bias.mean()
    return about, Squares(theta.shape[1]), Dense(kernel, bias)


def _of_rbf(classifier: Any) -> Layers:
    """One decision for each pair of classes, from the kernel to the support vectors; of two classes one score."""
    num_classes = len(classifier.classes_)
    support, dual = _double(classifier.support_vectors_), _double(classifier.dual_coef_)
    near = Nearness(support, float(classifier._gamma))
    intercept = _double(classifier.intercept_)
    if num_classes == 2:
        return near, Dense(dual.T, intercept)
    ends = np.concatenate([[0], np.cumsum(classifier.n_support_)])
    kernel = np.zeros((len(support), len(intercept)))
    for pair, (one, other) in enumerate(zip(*np.triu_indices(num_classes, 1), strict=True)):
        kernel[ends[one] : ends[one + 1], pair] = dual[other - 1, ends[one] : ends[one + 1]]
        kernel[ends[other] : ends[other + 1], pair] = dual[one, ends[other] : ends[other + 1]]
    return near, Dense(kernel, intercept), Votes(num_classes)


_FORMS: tuple[tuple[Callable[[Any], bool], Callable[[Any], Layers]], ...] = (
    (_is_dense, _of_dense),
    (_is_linear, _of_linear),
    (_is_perceptron, _of_perceptron),
    (_is_centroid, _of_centroid),
    (_is_bayes, _of_bayes),
    (_is_rbf, _of_rbf),
)


def _step_layers(step: Any) -> Layers:
    """Return the layers of a fitted step. Raises UsageError if it has none."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import Normalizer, StandardScaler

    if isinstance(step, StandardScaler):
        return (Affine.standardising(_double(step.mean_), _double(step.scale_)),)
    if isinstance(step, Normalizer) and step.norm == "l2":
        return (Unit(),)
    if not isinstance(step, PCA):
        raise UsageError(f"A {type(step).__name__} has no exact form as layers of Keras")
    spread = np.ones(len(step.components_))
    if step.whiten:  # with its own guard against components without variance
        spread = np.maximum(np.sqrt(step.explained_variance_), np.finfo(step.explained_variance_.dtype).eps)
    kernel = _double((step.components_ / spread[:, None]).T)
    return (Dense(kernel, -_double(step.mean_) @ kernel),)


def _double(values: Any) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _doubles(many: Any) -> list[Floats]:
    return [_double(one) for one in many]
