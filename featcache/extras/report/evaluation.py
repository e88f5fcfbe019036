"""What a model predicts of images whose class is known, and where it is wrong."""

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
class Evaluation:
    """The predictions of a model of labelled images, seen from several sides."""

    rows: Sequence[ImageRow]  # (N,)
    predictions: Predictions
    classes: tuple[str, ...]  # names as they can be shown, (K,)

    @property
    def is_right(self) -> Any:
        """Return (N,): whether each prediction is the label."""
        return self.predictions.truth == self.predictions.predicted

    @property
    def sure(self) -> Any:
        """Return (N,): the probability of the predicted class; 1 if the head gives no probabilities."""
        if self.predictions.confidence is None:
            return np.ones(len(self.rows))
        return self.predictions.confidence

    @cached_property
    def counts(self) -> Classes:
        """Return (K, K): images by true class (row) and predicted class (column)."""
        return plots.confusions(self.predictions, len(self.classes))

    @property
    def confused(self) -> list[dict[str, Any]]:
        """Return the most frequent mistakes: true class, predicted class and number of images."""
        wrong = self.counts.copy()
        np.fill_diagonal(wrong, 0)
        # `axis=None` sorts the flattened table; its cells are numbered line by line.
        order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]
        confusions: list[dict[str, Any]] = []
        for cell in order:
            true, predicted = divmod(int(cell), len(self.classes))
            num_images = int(wrong[true, predicted])
            if num_images:
                names = {"true": self.classes[true], "predicted": self.classes[predicted]}
                confusions.append({**names, "images": num_images})
        return confusions

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """Return precision, recall with its 95 % interval (Wilson) and F1 of each class."""
        scores: list[dict[str, Any]] = []
        for number, name in enumerate(self.classes):
            hits = int(self.counts[number, number])
            num_true = int(self.counts[number].sum())
            num_predicted = int(self.counts[:, number].sum())
            # A share of no images is unknown, which is not 0.
            recall = wilson(hits, num_true) if num_true else None
            precision = hits / num_predicted if num_predicted else None
            # 2 / (1 / precision + 1 / recall), without dividing by zero hits
            f1 = 2 * hits / (num_true + num_predicted) if num_true + num_predicted else None
            scores.append({"name": name, "images": num_true, "recall": recall, "precision": precision, "f1": f1})
        return scores

    @property
    def calibration(self) -> str | None:
        """Return an SVG of how often predictions are right by how sure they were; None without probabilities."""
        if self.predictions.confidence is None:
            return None
        return plots.calibration(self.predictions, about="How often predictions are right against how sure they were")

    @property
    def mistakes(self) -> Classes:
        """Return the numbers of wrong predictions, the surest first."""
        wrong = np.flatnonzero(~self.is_right)
        surest_first = np.argsort(-self.sure[wrong], kind="stable")
        return wrong[surest_first][:SHOWN]

    @property
    def uncertain(self) -> Classes:
        """Return the numbers of the least certain predictions; none without probabilities."""
        if self.predictions.confidence is None:
            return np.zeros(0, np.int64)
        least_certain_first = np.argsort(self.sure, kind="stable")
        return np.asarray(least_certain_first[:SHOWN])
