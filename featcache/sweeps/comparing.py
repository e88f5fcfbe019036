"""Two trials on the same images: is one better, or is it chance?

The difference has a 95 % interval by paired bootstrap over images, and a p-value by McNemar's exact test on the images
that only one trial gets right (McNemar 1947; exact as in Edwards 1948, a binomial test with one half).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Protocol

import numpy as np

from featcache.arrays import Floats
from featcache.errors import UsageError
from featcache.notebook import html, never_raising
from featcache.spec import ImageRow, choose
from featcache.sweeps.chosen import Chosen
from featcache.sweeps.metrics import LOWER_IS_BETTER, METRICS, Metric, Predictions, draws, values_of
from featcache.sweeps.run import Run
from featcache.sweeps.run_paths import predictions_file
from featcache.sweeps.stored_predictions import NOT_JUDGED, PREDICTIONS, read_predictions
from featcache.text import Table, counted

log = logging.getLogger(__name__)

NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """How much better a is than b: a - b, or b - a if less is better."""

    a: str
    b: str
    metric: Metric
    scores: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    p_value: float  # of McNemar's test, which looks at accuracy whatever the metric
    only_a: int  # images that a alone gets right
    only_b: int
    images: int

    @never_raising
    def _repr_html_(self) -> str:
        return html("Comparison", self.rows, notes=self.sentences)

    @property
    def rows(self) -> Table:
        """Return the two with their scores, and how many images each alone gets right."""
        first, second = (f"{score:.4f}" for score in self.scores)
        return Table(
            ["", self.metric, "right alone"],
            [[self.a, first, self.only_a], [self.b, second, self.only_b]],
        )

    @property
    def sentences(self) -> list[str]:
        """Return the difference with its interval, the test, and the conclusion."""
        low, high = self.interval
        images = counted(self.images, "image")
        return [
            f"difference {self.difference:+.4f} [{low:+.4f}, {high:+.4f}] over {images}, by bootstrap",
            f"McNemar's exact p = {self.p_value:.3g}",
            self.verdict,
        ]

    @property
    def verdict(self) -> str:
        """Return the conclusion: which one is better, or that the images cannot tell them apart."""
        low, high = self.interval
        if not np.isfinite(self.interval).all():
            return f"{self.metric} is not a number of one of them, so they cannot be compared"
        if low <= 0 <= high:
            images = counted(self.images, "image")
            return f"tie: the interval of the difference holds 0, so {images} cannot tell them apart"
        return f"{self.a if low > 0 else self.b} is better"


class Model(Protocol):
    """A model that was trained from a trial, such as `finetune` returns."""

    @property
    def chosen(self) -> Chosen:
        """Return the trial."""
        ...

    @property
    def val_logits(self) -> Floats:
        """Return the (M, K) logits of the validation images of its run."""
        ...

    @property
    def name(self) -> str:
        """Return its name in the comparison."""
        ...


def compare(a: Chosen | Model, b: Chosen | Model, metric: str | None = None) -> Comparison:
    """Return how two trials differ on the images that chose, which must be the same.

    a, b: trials, or models that were fine-tuned from one. If one is a model, both are compared on validation images,
    also a trial that was chosen by folds: its head saw only train. metric: by default the metric of `a`'s run.
    Raises UsageError if the images differ, or if both are the same trial.
    """
    run, other_run = _run_of(a), _run_of(b)
    name, other_name = _name(a), _name(b)
    if _is_same(a, b):
        raise UsageError(f"Both are {name}. Name another trial: featcache show {quote(str(run.path))}")
    by_metric: Metric = choose("metric", metric or run.settings.metric, METRICS)

    if isinstance(a, Chosen) and isinstance(b, Chosen):
        (rows, first), (other_rows, second) = predictions_on_selection(a), predictions_on_selection(b)
    else:
        (rows, first), (other_rows, second) = _predictions_on_val(a), _predictions_on_val(b)
    keys, other_keys = _keys(rows), _keys(other_rows)
    if run.classes != other_run.classes:
        raise UsageError(f"{name} and {other_name} have different classes, so they cannot be compared")
    if sorted(keys) != sorted(other_keys):
        ways = f"{run.settings.selection.describe()}, {other_run.settings.selection.describe()}"
        raise UsageError(
            f"{name} and {other_name} were chosen on other images or labels ({ways}), so they cannot be compared. "
            "Sweep one of them again with the images and the `cv` of the other"
        )
    # The order of the images may differ: what follows pairs them one by one.
    position = {key: number for number, key in enumerate(other_keys)}
    second = second[np.array([position[key] for key in keys])]
    if by_metric in LOWER_IS_BETTER and (first.loss is None or second.loss is None):
        raise UsageError(f"{by_metric} needs probabilities, which one of {name} and {other_name} does not give")

    truth = first.truth
    sign = -1 if by_metric in LOWER_IS_BETTER else 1
    every_image = np.ones((1, len(truth)))
    scores = tuple(float(values_of(predictions, every_image, by_metric)[0]) for predictions in (first, second))
    log.info("Computing the interval of the difference")
    differences = []
    for counts in draws(len(truth), NUM_RESAMPLES):
        # Both on the same draw: their common luck cancels out.
        differences.append(sign * (values_of(first, counts, by_metric) - values_of(second, counts, by_metric)))
    low, high = np.quantile(np.concatenate(differences), [0.025, 0.975])

    is_right, is_other_right = first.predicted == truth, second.predicted == truth
    only_a = int((is_right & ~is_other_right).sum())
    only_b = int((is_other_right & ~is_right).sum())
    num_discordant = only_a + only_b
    p_value = 1.0
    if num_discordant:
        # Here, because scipy.stats takes 0.7 s to import, and `show` imports this module.
        from scipy.stats import binomtest

        p_value = float(binomtest(only_a, num_discordant).pvalue)
    return Comparison(
        a=name,
        b=other_name,
        metric=by_metric,
        scores=(scores[0], scores[1]),
        difference=sign * (scores[0] - scores[1]),
        interval=(float(low), float(high)),
        p_value=p_value,
        only_a=only_a,
        only_b=only_b,
        images=len(truth),
    )


def predictions_on_selection(chosen: Chosen) -> tuple[list[ImageRow], Predictions]:
    """Return the images that chose, and the trial's predictions of them.

    Raises UsageError if it has no score, or was fitted on them; NotARun if its predictions are damaged.
    """
    run, trial = chosen.run, chosen.trial
    if trial.status != "ok":
        raise UsageError(f"{_name(chosen)} has no score: {trial.status}")
    if chosen.refit:
        raise UsageError(f"{run.path}@refit was fitted on the images that chose. Compare {run.path}@best")
    cache = run.cache()
    rows = run.rows(cache, run.settings.selection.split)
    required = {"predicted"} if trial.log_loss is None else PREDICTIONS
    path = predictions_file(run.path, trial.trial)
    predictions = read_predictions(path, cache.labels(rows), required, "Sweep again")
    choosing = np.flatnonzero(predictions.predicted != NOT_JUDGED)
    return [rows[number] for number in choosing], predictions[choosing]


def _predictions_on_val(model: Chosen | Model) -> tuple[list[ImageRow], Predictions]:
    """Return the validation images, and what a trial or a model predicts for them."""
    run = _run_of(model)
    cache = run.cache()
    rows = run.rows(cache, "val")
    logits = model.logits(rows) if isinstance(model, Chosen) else model.val_logits
    return rows, Predictions.of(cache.labels(rows), logits.argmax(axis=1), logits)


def _run_of(model: Chosen | Model) -> Run:
    return model.run if isinstance(model, Chosen) else model.chosen.run


def _keys(rows: Sequence[ImageRow]) -> list[str]:
    return [f"{row.digest} {row.label} {row.path}" for row in rows]


def _is_same(a: Chosen | Model, b: Chosen | Model) -> bool:
    if not isinstance(a, Chosen) or not isinstance(b, Chosen):
        return a is b
    return (a.run.path.resolve(), a.trial.trial, a.refit) == (b.run.path.resolve(), b.trial.trial, b.refit)


def _name(model: Chosen | Model) -> str:
    return f"{model.run.path}@{model.trial.trial}" if isinstance(model, Chosen) else model.name
