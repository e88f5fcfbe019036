"""What a head said of images whose class is known, and where it was wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from featcache.arrays import Classes
from featcache.extras.report import plots
from featcache.spec import ImageRow
from featcache.sweeps.metrics import Predictions, wilson

SHOWN = 24  # mistakes, and least certain images
MOST_CONFUSED = 12


@dataclass(frozen=True)
class Judged:
    """What the best head said of the images that chose."""

    rows: Sequence[ImageRow]
    said: Predictions
    classes: tuple[str, ...]

    @property
    def right(self) -> Any:
        """Return (N,) whether the prediction is the label."""
        return self.said.truth == self.said.predicted

    @property
    def sure(self) -> Any:
        """Return (N,) the probability of the predicted class, 1 of a head without probabilities."""
        return np.ones(len(self.rows)) if self.said.confidence is None else self.said.confidence

    @cached_property
    def counts(self) -> Classes:
        """Return (K, K) true classes by predicted ones."""
        return plots.confusions(self.said, len(self.classes))

    @property
    def confused(self) -> list[dict[str, Any]]:
        """Return the pairs of classes that are taken for one another most often."""
        wrong = self.counts.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]
        found = [(int(at // len(wrong)), int(at % len(wrong))) for at in order]
        return [
            {"true": self.classes[row], "predicted": self.classes[column], "images": int(wrong[row, column])}
            for row, column in found
            if wrong[row, column]
        ]

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """Return precision, recall with its 95 % interval (Wilson) and F1 of each class."""
        found = []
        for at, name in enumerate(self.classes):
            hits, there, named = int(self.counts[at, at]), int(self.counts[at].sum()), int(self.counts[:, at].sum())
            found.append(
                {
                    "name": name,
                    "images": there,
                    "recall": wilson(hits, there) if there else None,
                    "precision": hits / named if named else None,
                    "f1": 2 * hits / (there + named) if there + named else None,
                }
            )
        return found

    @property
    def calibration(self) -> str | None:
        """Return how often it was right against how sure it was, as SVG; None of a head without probabilities."""
        if self.said.confidence is None:
            return None
        return plots.calibration(self.said, about="How often predictions are right against how sure they were")

    @property
    def mistakes(self) -> Classes:
        """Return the images that are wrong, the surest first."""
        wrong = np.flatnonzero(~self.right)
        return wrong[np.argsort(-self.sure[wrong], kind="stable")][:SHOWN]

    @property
    def uncertain(self) -> Classes:
        """Return the images whose class is least certain; none of a head without probabilities."""
        if self.said.confidence is None:
            return np.zeros(0, np.int64)
        return np.asarray(np.argsort(self.sure, kind="stable")[:SHOWN])
