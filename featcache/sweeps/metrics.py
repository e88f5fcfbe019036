"""Scores with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from featcache.arrays import Classes, Floats
from featcache.heads.logits import softmax

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


@dataclass(frozen=True)
class Said:
    """What is known of images (N,): their classes, what was predicted and, with probabilities, how surely."""

    truth: Classes
    predicted: Classes
    loss: Floats | None = None  # negative log likelihood of the true class
    confidence: Floats | None = None  # probability of the predicted class

    @classmethod
    def of(cls, truth: Classes, predicted: Classes, logits: Floats | None) -> Said:
        """Return it from logits (N, K), of which softmax gives the probabilities."""
        if logits is None:
            return cls(truth, predicted)
        with np.errstate(invalid="ignore", over="ignore"):  # of logits that are not finite
            confidence = softmax(logits.astype(np.float64)).max(axis=1)
        return cls(truth, predicted, losses(logits, truth), confidence)

    def __getitem__(self, some: slice | Classes) -> Said:
        """Return what is known of some of the images."""
        parts = (None if one is None else one[some] for one in (self.loss, self.confidence))
        return Said(self.truth[some], self.predicted[some], *parts)


def score(truth: Classes, predicted: Classes, metric: Metric = "accuracy", logits: Floats | None = None) -> Score:
    """Return the score of predictions (N,) against labels (N,), N at least 1.

    logits: (N, K) of which softmax gives the probabilities; log_loss and ece need them, and are nan without.
    """
    return score_of(Said.of(truth, predicted, logits), metric)


def score_of(said: Said, metric: Metric) -> Score:
    """Return the score of what is known of images."""
    value = value_of(said, metric)
    if metric == "accuracy":
        return wilson(int((said.truth == said.predicted).sum()), len(said.truth))
    if np.isnan(value):
        return Score(value, value, value)
    resampled = np.concatenate([values_of(said, counts, metric) for counts in draws(len(said.truth), NUM_RESAMPLES)])
    low, high = np.quantile(resampled, [0.025, 0.975])  # resampling raises the calibration error, at times over itself
    return Score(value, min(value, float(low)), max(value, float(high)))


def value_of(said: Said, metric: Metric) -> float:
    """Return the score alone; nan if it needs probabilities and there are none."""
    if metric not in OF_LABELS and said.loss is None:
        return np.nan
    return float(values_of(said, np.ones((1, len(said.truth))), metric)[0])


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
        shares = np.exp(inverse * wide)  # the largest of each row is 0
        shares /= shares.sum(axis=1, keepdims=True)
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


def draws(num_images: int, resamples: int) -> Iterator[Floats]:
    """Yield counts (B, N), of how often each image is drawn when N are, with replacement; always the same.

    Of many images fewer resamples do.
    """
    rng = np.random.default_rng(0)
    total = max(200, min(resamples, MOST_DRAWS // num_images))
    for at in range(0, total, 50):
        drawn = rng.integers(0, num_images, (min(50, total - at), num_images))
        yield np.stack([np.bincount(one, minlength=num_images) for one in drawn]).astype(np.float64)


def values_of(said: Said, counts: Floats, metric: Metric) -> Floats:
    """Return (B,) the score for each row of counts (B, N), of how often each image stands there."""
    right = said.truth == said.predicted
    if metric in ("balanced_accuracy", "macro_f1"):
        return np.array([_of_classes(said, right, row, metric) for row in counts])
    total = counts.sum(axis=1)
    if metric == "accuracy":
        return np.asarray(counts @ right / total)
    assert said.loss is not None
    assert said.confidence is not None
    if metric == "log_loss":
        return np.asarray(counts @ said.loss / total)
    bins = np.minimum((said.confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    apart = np.eye(NUM_BINS)[bins] * (right - said.confidence)[:, None]
    return np.asarray(np.abs(counts @ apart).sum(axis=1) / total)


def _of_classes(said: Said, right: Any, counts: Floats, metric: Metric) -> float:
    """Return the mean over classes: of those that are there, for F1 also of those that were predicted."""
    most = int(max(said.truth.max(), said.predicted.max())) + 1
    both = np.bincount(said.truth, counts * right, most)
    there = np.bincount(said.truth, counts, most)
    if metric == "macro_f1":
        there, both = there + np.bincount(said.predicted, counts, most), 2 * both
    return float((both[there > 0] / there[there > 0]).mean())
