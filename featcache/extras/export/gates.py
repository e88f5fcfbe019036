"""`--assert balanced_accuracy>=0.9`: the score that an exported file must reach to be written."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from featcache.arrays import Classes, Floats
from featcache.errors import UsageError
from featcache.spec import choose
from featcache.sweeps.metrics import LOWER_IS_BETTER, METRICS, Metric, Score, score

LEAST_PROBABILITY = 1e-7  # 8-bit files round probabilities to 0, and log(0) is not finite
_FORM = re.compile(r"\s*(\w+)\s*(>=|<=)\s*([-+.\deE]+)\s*")


@dataclass(frozen=True)
class Gate:
    """A metric and the value that it must reach."""

    metric: Metric
    value: float

    @property
    def comparison(self) -> str:
        """Return the sign between metric and value: "<=" where lower is better."""
        return "<=" if self.metric in LOWER_IS_BETTER else ">="

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Read "accuracy>=0.9", or "log_loss<=0.3" for a metric where lower is better. Raises UsageError.

        >>> Gate.parse("accuracy >= 0.9")
        Gate(metric='accuracy', value=0.9)
        """
        match = _FORM.fullmatch(text)
        value: float | None = None
        if match is not None:
            with suppress(ValueError):  # such as 0.9.9, whose characters the form allows
                value = float(match[3])
        if match is None or value is None:
            raise UsageError(f"`gates` takes a metric and a value, such as 'balanced_accuracy>=0.9'; got '{text}'")
        metric: Metric = choose("gates", match[1], METRICS)
        gate = cls(metric, value)
        # "log_loss>=0.3" would accept only bad files, so nobody can mean it.
        if match[2] != gate.comparison:
            better = "Lower" if metric in LOWER_IS_BETTER else "Higher"
            raise UsageError(f"{better} {metric} is better, so `gates` takes {gate}; got '{text}'")
        return gate

    def __str__(self) -> str:
        return f"{self.metric}{self.comparison}{self.value:g}"

    def holds(self, score: Score) -> bool:
        """Return whether a score reaches the value. NaN does not."""
        # The score itself counts, not the end of its interval. Both comparisons are false for NaN.
        if self.metric in LOWER_IS_BETTER:
            return bool(score.value <= self.value)
        return bool(score.value >= self.value)


def score_probabilities(probabilities: Floats, labels: Classes, metric: Metric) -> Score:
    """Return the score of probabilities (N, K) on labels (N,)."""
    predicted = probabilities.argmax(axis=1)
    # Files give probabilities, metrics take logits: softmax(log p) is p again.
    logits = np.log(np.maximum(probabilities, LEAST_PROBABILITY))
    return score(labels, predicted, metric, logits)
