"""Scores with their 95 % intervals."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from featcache.arrays import Classes, Floats

Metric = Literal["accuracy", "balanced_accuracy", "macro_f1"]
NUM_RESAMPLES = 1000


class Score(NamedTuple):
    """A score and its 95 % interval: Wilson's for accuracy, percentile bootstrap over images for the others."""

    value: float
    low: float
    high: float


def score(truth: Classes, predicted: Classes, metric: Metric = "accuracy") -> Score:
    """Return the score of predictions (N,) against labels (N,), N at least 1."""
    if metric == "accuracy":
        return wilson(int((truth == predicted).sum()), len(truth))
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(truth), size=(NUM_RESAMPLES, len(truth)))
    values = [_value(truth[row], predicted[row], metric) for row in rows]
    low, high = np.quantile(values, [0.025, 0.975])
    return Score(_value(truth, predicted, metric), float(low), float(high))


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


def log_loss(logits: Floats, truth: Classes) -> float:
    """Return the mean negative log likelihood of labels (N,) under softmax(logits), logits (N, K).

    >>> round(log_loss(np.zeros((3, 2)), np.array([0, 1, 1])), 4)
    0.6931
    """
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # logits that are not finite give a loss that is not
        return float(np.mean(logsumexp(wide, axis=1) - wide[np.arange(len(truth)), truth]))


def fit_temperature(logits: Floats, truth: Classes) -> float:
    """Return the temperature that gives softmax(logits / temperature) the least log loss on labels (N,).

    Labels are smoothed by 1 / (N + 2), as Platt (1999) does, so that separable images do not ask for certainty.
    """
    smoothing = 1 / (len(truth) + 2)

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        of_truth = (1 - smoothing) * scaled[np.arange(len(truth)), truth] + smoothing * scaled.mean(axis=1)
        return float(np.mean(logsumexp(scaled, axis=1) - of_truth))

    return float(np.exp(minimize_scalar(loss, bounds=(-7, 7), method="bounded").x))


def _value(truth: Classes, predicted: Classes, metric: Metric) -> float:
    present = np.unique(truth)
    hits = np.array([(predicted[truth == label] == label).mean() for label in present])
    if metric == "balanced_accuracy":
        return float(hits.mean())
    labels = np.union1d(present, predicted)
    both = np.array([((truth == label) & (predicted == label)).sum() for label in labels])
    either = np.array([(truth == label).sum() + (predicted == label).sum() for label in labels])
    return float((2 * both / either).mean())
