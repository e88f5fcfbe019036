"""Convert a fitted pipeline into the layers of a head on raw features, with the same logits.

A sweep fits heads on prepared features z = (x - mean) / scale; the fine-tuning model feeds its head raw
features x. Absorbing the preparation leaves every logit as it was, so that fine-tuning starts at the probe
(LP-FT: Kumar et al. 2022, https://arxiv.org/abs/2202.10054).

`_FORMS` lists the classifiers that convert. Linear ones convert through scikit-learn's LinearClassifierMixin, so a
class of the user's that derives from it, with `coef_` and `intercept_`, converts too.
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

    Its logits are `decision_logits` / `temperature` (Guo et al. 2017, https://arxiv.org/abs/1706.04599), up to a
    constant per row. A binary classifier's score d becomes (-d/2, d/2), which has the same probabilities.
    Raises UsageError if the classifier or a step has no exact form.
    """
    *steps, (_, classifier) = estimator.steps
    layers = layers_of(classifier)
    if layers is None:
        raise UsageError(f"A {type(classifier).__name__} has no exact form as layers of Keras")

    chain: list[Layer] = []
    for _, step in steps:
        chain += _step_layers(step)
    chain += layers
    num_scores = layers[-1].widths[1]
    assert num_scores is not None  # a classifier ends in scores
    if num_scores == 1:
        chain.append(Dense(np.array([[-0.5, 0.5]]), np.zeros(2)))
        num_scores = 2
    chain.append(Affine(np.full(num_scores, 1 / temperature), np.zeros(num_scores)))
    return make_head(chain, tap)


def is_exact(classifier: Any) -> bool:
    """Return whether a fitted classifier converts to layers that give the same logits."""
    return any(matches(classifier) for matches, _ in _FORMS)


def layers_of(classifier: Any) -> Layers | None:
    """Return the layers of a fitted classifier on prepared features, in double precision; None if it has no exact form.

    They reproduce its logits up to a constant per row. For two classes they may give one column.
    """
    for matches, convert in _FORMS:
        if matches(classifier):
            return convert(classifier)
    return None


def decision_logits(estimator: Any, features: Floats) -> Floats:
    """Return (N, K) logits as the estimator itself computes them. A binary score d becomes (-d/2, d/2).

    An estimator without a decision function gives the logits of its layers, or else its log-probabilities. Naive Bayes
    gives its joint log-likelihoods minus their mean, because most of its probabilities underflow to 0, and their
    logarithms would be equal.
    """
    steps = estimator.steps if hasattr(estimator, "steps") else [("head", estimator)]
    _, classifier = steps[-1]
    uses_own_scores = _is_centroid(classifier) or _is_perceptron(classifier) or _is_bayes(classifier)
    prepared: Any = features
    if uses_own_scores and len(steps) > 1:
        prepared = estimator[:-1].transform(features)

    if _is_bayes(classifier):
        joint = classifier.predict_joint_log_proba(prepared)
        return np.asarray(joint - joint.mean(axis=1, keepdims=True))
    if uses_own_scores:
        head = make_head(layers_of(classifier) or (), "")
        return two_columns(head.logits(np.asarray(prepared)))
    if hasattr(estimator, "decision_function"):
        return two_columns(np.asarray(estimator.decision_function(features), dtype=np.float64))
    return log_probabilities(np.asarray(estimator.predict_proba(features), dtype=np.float64))


def _is_linear(classifier: Any) -> bool:
    from sklearn.linear_model._base import LinearClassifierMixin

    return isinstance(classifier, LinearClassifierMixin)


def _is_perceptron(classifier: Any) -> bool:
    from sklearn.neural_network import MLPClassifier

    return isinstance(classifier, MLPClassifier)


def _is_centroid(classifier: Any) -> bool:
    from sklearn.neighbors import NearestCentroid

    if not isinstance(classifier, NearestCentroid):
        return False
    return bool(classifier.metric == "euclidean" and classifier.priors == "uniform")


def _is_bayes(classifier: Any) -> bool:
    from sklearn.naive_bayes import GaussianNB

    return isinstance(classifier, GaussianNB)


def _is_rbf(classifier: Any) -> bool:
    from sklearn.svm import SVC

    if not isinstance(classifier, SVC):
        return False
    return bool(classifier.kernel == "rbf" and classifier.decision_function_shape == "ovr")


def _of_dense(classifier: Any) -> Layers:
    return dense(_doubles(classifier.kernels_), _doubles(classifier.biases_))


def _of_linear(classifier: Any) -> Layers:
    kernel = _double(np.atleast_2d(classifier.coef_).T)
    bias = _double(np.atleast_1d(classifier.intercept_))
    return (Dense(kernel, bias),)


def _of_perceptron(classifier: Any) -> Layers:
    activation = ACTIVATIONS[classifier.activation]
    return dense(_doubles(classifier.coefs_), _doubles(classifier.intercepts_), activation)


def _of_centroid(classifier: Any) -> Layers:
    """Return -|x - c|^2 / 2 = x c - |c|^2 / 2 - |x|^2 / 2 without its last term, which is equal for all classes."""
    centroids = _double(classifier.centroids_)
    return (Dense(centroids.T, -(centroids**2).sum(axis=1) / 2),)


def _of_bayes(classifier: Any) -> Layers:
    """Return the joint log-likelihood of Gaussian naive Bayes as a linear function of (x, x^2).

    log prior - sum log(var) / 2 - sum (x - theta)^2 / (2 var)
        = x (theta / var) + x^2 (-1 / (2 var)) + log prior - sum (log(var) + theta^2 / var) / 2

    Features are standardised first, and the mean over the classes is subtracted. Otherwise a feature that never
    varies would have weights of 1e9 in every class, whose difference is lost in single precision.
    """
    theta = _double(classifier.theta_)  # (K, D)
    var = _double(classifier.var_)  # (K, D)
    standardise = Affine.standardising(theta.mean(axis=0), np.sqrt(var.mean(axis=0)))
    theta = standardise(theta)
    var = var * standardise.scale**2

    of_values = (theta / var).T
    of_squares = -0.5 / var.T
    kernel = np.vstack([of_values, of_squares])  # (2 D, K), for `Squares`
    bias = np.log(classifier.class_prior_) - 0.5 * (np.log(var) + theta**2 / var).sum(axis=1)
    kernel = kernel - kernel.mean(axis=1, keepdims=True)
    bias = bias - bias.mean()
    return standardise, Squares(theta.shape[1]), Dense(kernel, bias)


def _of_rbf(classifier: Any) -> Layers:
    """Return an RBF machine: kernel to the support vectors, a decision for each pair of classes, votes.

    libsvm stores the support vectors class by class, and for each of them K - 1 coefficients, one for each other class
    in order. In the machine of classes a < b, those of a are in row b - 1 of `dual_coef_`, those of b in row a.
    """
    num_classes = len(classifier.classes_)
    support = _double(classifier.support_vectors_)  # (S, D)
    dual = _double(classifier.dual_coef_)  # (K - 1, S)
    near = Nearness(support, float(classifier._gamma))
    intercept = _double(classifier.intercept_)
    if num_classes == 2:
        return near, Dense(dual.T, intercept)

    bounds = np.concatenate([[0], np.cumsum(classifier.n_support_)])
    kernel = np.zeros((len(support), len(intercept)))
    pairs = zip(*np.triu_indices(num_classes, 1), strict=True)  # in libsvm's order: (0, 1), (0, 2) .. (1, 2) ..
    for pair, (a, b) in enumerate(pairs):
        support_of_a = slice(bounds[a], bounds[a + 1])
        support_of_b = slice(bounds[b], bounds[b + 1])
        kernel[support_of_a, pair] = dual[b - 1, support_of_a]
        kernel[support_of_b, pair] = dual[a, support_of_b]
    return near, Dense(kernel, intercept), Votes(num_classes)


_FORMS: tuple[tuple[Callable[[Any], bool], Callable[[Any], Layers]], ...] = (
    (lambda classifier: hasattr(classifier, "kernels_"), _of_dense),
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
    if step.whiten:  # as PCA does, with its guard against components without variance
        spread = np.maximum(np.sqrt(step.explained_variance_), np.finfo(step.explained_variance_.dtype).eps)
    # (x - mean) K = x K - mean K
    kernel = _double((step.components_ / spread[:, None]).T)
    return (Dense(kernel, -_double(step.mean_) @ kernel),)


def _double(values: Any) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _doubles(arrays: Any) -> list[Floats]:
    return [_double(array) for array in arrays]
