"""Scores of predictions, with their 95 % intervals.

Accuracy has Wilson's interval in closed form (Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953); every other
metric the percentile bootstrap over images (Efron 1979). log_loss and ece need probabilities; ece, the expected
calibration error, takes 15 bins of confidence as Guo et al. 2017 (https://arxiv.org/abs/1706.04599) do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from featcache.arrays import Classes, Floats
from featcache.heads.logits import softmax

Metric = Literal["accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece"]
METRICS: tuple[Metric, ...] = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece")
OF_LABELS = METRICS[:3]  # need predicted classes only
LOWER_IS_BETTER = METRICS[3:]
NUM_RESAMPLES = 1000
MIN_RESAMPLES = 200
MOST_DRAWS = 20_000_000  # images drawn in all resamples; the more images, the fewer resamples are needed
NUM_BINS = 15  # of confidence
LARGEST = 1e4  # inverse temperature, and its inverse the smallest


class Score(NamedTuple):
    """A score and its 95 % interval: Wilson's for accuracy, percentile bootstrap over images for the others."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Predictions:
    """Predicted classes of images (N,) beside the true ones and, with probabilities, how confident they are."""

    truth: Classes
    predicted: Classes
    loss: Floats | None = None  # negative log likelihood of the true class
    confidence: Floats | None = None  # probability of the predicted class

    @classmethod
    def of(cls, truth: Classes, predicted: Classes, logits: Floats | None) -> Predictions:
        """Return predictions with the probabilities that softmax gives for logits (N, K)."""
        if logits is None:
            return cls(truth, predicted)
        with np.errstate(invalid="ignore", over="ignore"):  # logits may not be finite
            confidence = softmax(logits.astype(np.float64)).max(axis=1)
        return cls(truth, predicted, losses(logits, truth), confidence)

    def __getitem__(self, images: slice | Classes) -> Predictions:
        """Return the predictions of these images."""
        loss = None if self.loss is None else self.loss[images]
        confidence = None if self.confidence is None else self.confidence[images]
        return Predictions(self.truth[images], self.predicted[images], loss, confidence)


def score(truth: Classes, predicted: Classes, metric: Metric = "accuracy", logits: Floats | None = None) -> Score:
    """Return the score of predictions (N,) against labels (N,), N at least 1.

    logits: (N, K) of which softmax gives the probabilities; log_loss and ece need them, and are nan without.
    """
    return score_of(Predictions.of(truth, predicted, logits), metric)


def score_of(predictions: Predictions, metric: Metric) -> Score:
    """Return the score of predictions with its interval; all nan if the metric needs probabilities that are missing."""
    if metric == "accuracy":
        return wilson(int((predictions.truth == predictions.predicted).sum()), len(predictions.truth))
    value = value_of(predictions, metric)
    if np.isnan(value):
        return Score(value, value, value)
    counts = draws(len(predictions.truth), NUM_RESAMPLES)
    resampled = np.concatenate([values_of(predictions, block, metric) for block in counts])
    low, high = np.quantile(resampled, [0.025, 0.975])
    # Resampling raises the calibration error, sometimes so much that the interval would not hold the score.
    return Score(value, min(value, float(low)), max(value, float(high)))


def value_of(predictions: Predictions, metric: Metric) -> float:
    """Return the score alone; nan if it needs probabilities and there are none."""
    if metric not in OF_LABELS and predictions.loss is None:
        return np.nan
    return float(values_of(predictions, np.ones((1, len(predictions.truth))), metric)[0])


def better(metric: Metric, value: float) -> float:
    """Return a number that grows as a score gets better; a score that is not finite is worse than all."""
    if not np.isfinite(value):
        return -np.inf
    return -value if metric in LOWER_IS_BETTER else value


def wilson(correct: int, total: int) -> Score:
    """Return the share of `correct` with Wilson's 95 % interval (E. B. Wilson 1927).

    >>> tuple(round(value, 3) for value in wilson(95, 100))
    (0.95, 0.888, 0.978)
    """
    z = 1.959964  # 97.5 % of a standard normal distribution lie below it
    share = correct / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    # Rounding must not push the interval out of 0 to 1, nor off the share.
    low = min(share, max(0.0, float(middle - half)))
    high = max(share, min(1.0, float(middle + half)))
    return Score(share, low, high)


def losses(logits: Floats, truth: Classes) -> Floats:
    """Return the (N,) negative log likelihoods of labels (N,) under softmax(logits), logits (N, K)."""
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # logits that are not finite give a loss that is not
        wide -= wide.max(axis=1, keepdims=True)
        return np.asarray(np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(len(truth)), truth])


def log_loss(logits: Floats, truth: Classes) -> float:
    """Return the mean negative log likelihood.

    >>> round(log_loss(np.zeros((3, 2)), np.array([0, 1, 1])), 4)
    0.6931
    """
    return float(np.mean(losses(logits, truth)))


def fit_temperature(logits: Floats, truth: Classes) -> float:
    """Return the temperature that gives softmax(logits / temperature) the least log loss on labels (N,).

    The smoothed label of image n is q_n = (1 - s) onehot(truth_n) + s / K with s = 1 / (N + 2), as in Platt (1999): on
    separable images the best temperature would be 0 otherwise. In the inverse temperature b, with p = softmax(b z), the
    loss mean_n(logsumexp(b z_n) - b q_n.z_n) has the slope mean_n(p_n.z_n - q_n.z_n) and the curvature
    mean_n(variance of z_n under p_n). It is convex, so Newton's steps find b; bisection replaces steps that overshoot.
    """
    wide = logits.astype(np.float64)  # in float32 rounding decides the last steps, and there are many
    wide -= wide.max(axis=1, keepdims=True)
    # Searched on logits of about 1, so that the bounds hold for heads of every scale.
    scale = float(np.abs(wide).mean()) or 1.0
    wide = wide / scale
    squares = wide**2
    smoothing = 1 / (len(truth) + 2)
    true_logits = wide[np.arange(len(truth)), truth]
    target = float(np.mean((1 - smoothing) * true_logits + smoothing * wide.mean(axis=1)))  # mean q.z
    inverse, low, high = 1.0, 1 / LARGEST, LARGEST
    for _ in range(100):
        shares = np.exp(inverse * wide)  # cannot overflow: the largest logit of each row is 0
        total = shares.sum(axis=1)
        mean = np.einsum("nk,nk->n", shares, wide) / total
        slope = float(mean.mean()) - target
        if slope > 0:
            high = inverse
        else:
            low = inverse
        mean_square = np.einsum("nk,nk->n", shares, squares) / total
        curvature = float((mean_square - mean**2).mean())
        step = inverse - slope / curvature if curvature > 0 else np.inf
        # The ends count: where the slope is 0, Newton's step stays at one of them.
        if not low <= step <= high:
            step = float(np.sqrt(low * high))  # the middle of the bracket on a log scale
        if abs(step - inverse) <= 1e-10 * inverse:
            break
        inverse = step
    return scale / inverse


def draws(num_images: int, resamples: int) -> Iterator[Floats]:
    """Yield counts (B, N): how often each image is drawn when N are, with replacement; always the same.

    With many images there are fewer resamples: see MOST_DRAWS.
    """
    rng = np.random.default_rng(0)
    total = max(MIN_RESAMPLES, min(resamples, MOST_DRAWS // num_images))
    for begin in range(0, total, 50):
        drawn = rng.integers(0, num_images, (min(50, total - begin), num_images))
        yield np.stack([np.bincount(images, minlength=num_images) for images in drawn]).astype(np.float64)


def values_of(predictions: Predictions, counts: Floats, metric: Metric) -> Floats:
    """Return (B,) the score for each row of counts (B, N): how often each image is in the resample."""
    is_right = predictions.truth == predictions.predicted
    if metric in ("balanced_accuracy", "macro_f1"):
        return np.array([_mean_over_classes(predictions, is_right, row, metric) for row in counts])
    total = counts.sum(axis=1)
    if metric == "accuracy":
        return np.asarray(counts @ is_right / total)
    assert predictions.loss is not None
    assert predictions.confidence is not None
    if metric == "log_loss":
        return np.asarray(counts @ predictions.loss / total)
    # ece: over bins, |sum of (right - confidence)| / N. A gap counts where its image's confidence falls.
    bins = np.minimum((predictions.confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    gaps = np.eye(NUM_BINS)[bins] * (is_right - predictions.confidence)[:, None]
    return np.asarray(np.abs(counts @ gaps).sum(axis=1) / total)


def _mean_over_classes(predictions: Predictions, is_right: Classes, counts: Floats, metric: Metric) -> float:
    """Return the mean recall of the classes in the resample, or the mean F1 of these and the predicted ones."""
    num_classes = int(max(predictions.truth.max(), predictions.predicted.max())) + 1
    hits = np.bincount(predictions.truth, counts * is_right, num_classes)
    total = np.bincount(predictions.truth, counts, num_classes)
    if metric == "macro_f1":
        # F1 = 2 hits / (images of the class + images predicted as the class)
        hits, total = 2 * hits, total + np.bincount(predictions.predicted, counts, num_classes)
    is_there = total > 0
    return float((hits[is_there] / total[is_there]).mean())
