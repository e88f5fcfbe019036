"""`--assert balanced_accuracy>=0.9`: what an exported file must reach, or it is not written."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from featcache.arrays import Classes, Floats
from featcache.errors import UsageError
from featcache.spec import choose
from featcache.sweeps.metrics import LOWER_IS_BETTER, METRICS, Metric, Score, score

LEAST_PROBABILITY = 1e-7  # 8 bits round to 0, of which the logarithm is not finite
_FORM = re.compile(r"\s*(\w+)\s*(>=|<=)\s*([-+.\deE]+)\s*")


@dataclass(frozen=True)
class Gate:
    """A metric and the value that it must reach."""

    metric: Metric
    value: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Read "accuracy>=0.9", or "log_loss<=0.3" where less is better. Raises UsageError.

        >>> Gate.parse("accuracy >= 0.9")
        Gate(metric='accuracy', value=0.9)
        """
        match = _FORM.fullmatch(text)
        try:
            value = float(match[3]) if match else None
        except ValueError:
            value = None
        if match is None or value is None:
            raise UsageError(f"--assert takes a metric and a value, such as 'balanced_accuracy>=0.9'; got '{text}'")
        metric: Metric = choose("--assert", match[1], METRICS)
        wanted = "<=" if metric in LOWER_IS_BETTER else ">="
        if match[2] != wanted:
            raise UsageError(f"Of {metric} {'less' if wanted == '<=' else 'more'} is better: {metric}{wanted}{value:g}")
        return cls(metric, value)

    def __str__(self) -> str:
        return f"{self.metric}{'<=' if self.metric in LOWER_IS_BETTER else '>='}{self.value:g}"

    def holds(self, found: Score) -> bool:
        """Tell whether a score reaches the value; one that is no number does not."""
        if self.metric in LOWER_IS_BETTER:
            return bool(found.value <= self.value)
        return bool(found.value >= self.value)


def judged(probabilities: Floats, labels: Classes, metric: Metric) -> Score:
    """Return the score of probabilities (N, K) on labels (N,)."""
    logits = np.log(np.maximum(probabilities, LEAST_PROBABILITY))
    return score(labels, probabilities.argmax(axis=1), metric, logits)
