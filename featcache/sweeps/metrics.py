"""Scores with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import logsumexp, softmax

from featcache.arrays import Classes, Floats

Metric = Literal["accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece"]
METRICS: tuple[Metric, ...] = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece")
OF_LABELS = METRICS[:3]  # know predictions only
LOWER_IS_BETTER = METRICS[3:]
NUM_RESAMPLES = 1000
MOST_DRAWS = 20_000_000  # images drawn in all resamples; of many images fewer resamples do
NUM_BINS = 15  # of confidence, as in Guo et al. 2017
LARGEST = 1e4  # inverse temperature, and its inverse the smallest


class Score(NamedTuple):
    """A score and its 95 % interval: Wilson's for accuracy, percentile bootstrap over images for the others."""

    value: float
    low: float
    high: float


def score(truth: Classes, predicted: Classes, metric: Metric = "accuracy", logits: Floats | None = None) -> Score:
    """Return the score of predictions (N,) against labels (N,), N at least 1.

    logits: (N, K) of which softmax gives the probabilities; log_loss and ece need them, and are nan without.
    """
    if metric == "accuracy":
        return wilson(int((truth == predicted).sum()), len(truth))
    if metric not in OF_LABELS and logits is None:
        return Score(np.nan, np.nan, np.nan)
    value = value_of(truth, predicted, metric, logits)
    low, high = np.quantile(np.concatenate([*_resampled(truth, predicted, metric, logits)]), [0.025, 0.975])
    return Score(value, float(low), float(high))


def value_of(truth: Classes, predicted: Classes, metric: Metric, logits: Floats | None = None) -> float:
    """Return the score alone."""
    everything = np.ones((1, len(truth)))
    return float(_values(_parts(truth, predicted, metric, logits), everything, metric)[0])


def better(metric: Metric, value: float) -> float:
    """Return what grows as a score gets better; what is not a number is worse than all."""
    if not np.isfinite(value):
        return -np.inf
    return -value if metric in LOWER_IS_BETTER else value


def wilson(correct: int, total: int) -> Score:
    """Return the share of `correct` with Wilson's 95 % interval (E. B. Wilson 1927).

    >>> tuple(round(value, 3) for value in wilson(95, 100))
    (0.95, 0.888, 0.978)
    """
    z = 1.959964
    share = correct / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return Score(share, min(share, max(0.0, float(middle - half))), max(share, min(1.0, float(middle + half))))


def losses(logits: Floats, truth: Classes) -> Floats:
    """Return the (N,) negative log likelihoods of labels (N,) under softmax(logits), logits (N, K)."""
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # logits that are not finite give a loss that is not
        return np.asarray(logsumexp(wide, axis=1) - wide[np.arange(len(truth)), truth])


def log_loss(logits: Floats, truth: Classes) -> float:
    """Return the mean negative log likelihood.

    >>> round(log_loss(np.zeros((3, 2)), np.array([0, 1, 1])), 4)
    0.6931
    """
    return float(np.mean(losses(logits, truth)))


def fit_temperature(logits: Floats, truth: Classes) -> float:
    """Return the temperature that gives softmax(logits / temperature) the least log loss on labels (N,).

    Labels are smoothed by 1 / (N + 2), as Platt (1999) does, so that separable images do not ask for certainty.
    The loss is convex in the inverse temperature, which Newton's steps find, halved where they overshoot.
    """
    wide = logits - logits.max(axis=1, keepdims=True)
    scale = float(np.abs(wide).mean()) or 1.0
    wide = wide / scale
    smoothing = 1 / (len(truth) + 2)
    of_truth = float(np.mean((1 - smoothing) * wide[np.arange(len(truth)), truth] + smoothing * wide.mean(axis=1)))
    inverse, low, high = 1.0, 1 / LARGEST, LARGEST
    for _ in range(100):
        shares = softmax(inverse * wide, axis=1)
        mean = (shares * wide).sum(axis=1)
        slope = float(mean.mean()) - of_truth
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        curve = float(((shares * wide**2).sum(axis=1) - mean**2).mean())
        step = inverse - slope / curve if curve > 0 else np.inf
        step = step if low < step < high else float(np.sqrt(low * high))
        if abs(step - inverse) <= 1e-10 * inverse:
            break
        inverse = step
    return scale / inverse


def _resampled(truth: Classes, predicted: Classes, metric: Metric, logits: Floats | None) -> Iterator[Floats]:
    """Yield the scores of images drawn with replacement, as many as there are."""
    rng = np.random.default_rng(0)
    parts = _parts(truth, predicted, metric, logits)
    total = max(200, min(NUM_RESAMPLES, MOST_DRAWS // len(truth)))
    for at in range(0, total, 50):
        drawn = rng.integers(0, len(truth), (min(50, total - at), len(truth)))
        yield _values(parts, np.stack([np.bincount(one, minlength=len(truth)) for one in drawn]).astype(float), metric)


def _parts(truth: Classes, predicted: Classes, metric: Metric, logits: Floats | None) -> Floats:
    """Return (N, P) what each image adds to the sums that a metric is made of."""
    if metric == "accuracy":
        return np.asarray(truth == predicted, dtype=float)[:, None]
    if metric == "log_loss":
        assert logits is not None
        return losses(logits, truth)[:, None]
    if metric == "ece":
        assert logits is not None
        confidence = softmax(logits, axis=1).max(axis=1)
        bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
        return np.asarray(np.eye(NUM_BINS)[bins] * ((truth == predicted) - confidence)[:, None])
    labels = np.union1d(truth, predicted)
    is_true, is_said = truth[:, None] == labels, predicted[:, None] == labels
    return np.hstack([is_true & is_said, is_true, is_said]).astype(float)


def _values(parts: Floats, counts: Floats, metric: Metric) -> Floats:
    """Return (B,) the score of each row of counts (B, N), of how often each image stands there."""
    sums = counts @ parts
    if metric in ("accuracy", "log_loss"):
        return np.asarray(sums[:, 0] / counts.sum(axis=1))
    if metric == "ece":
        return np.asarray(np.abs(sums).sum(axis=1) / counts.sum(axis=1))
    both, true, said = np.split(sums, 3, axis=1)
    there = true if metric == "balanced_accuracy" else true + said
    share = np.divide((1 if metric == "balanced_accuracy" else 2) * both, there, where=there > 0, out=both * 0)
    return np.asarray(share.sum(axis=1) / (there > 0).sum(axis=1))
