"""Two trials on the same images: is one better, or is it chance?

The difference has a 95 % interval by paired bootstrap over images, and a p-value by McNemar's exact test on the images
of which only one trial is right (McNemar 1947; exact as in Edwards 1948, a binomial test with one half).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Protocol

import numpy as np
from scipy.stats import binomtest

from featcache.arrays import Classes, Floats
from featcache.errors import NotARun, UsageError
from featcache.files import raise_if_of_the_system, read_arrays
from featcache.spec import ImageRow, choose
from featcache.sweeps.metrics import LOWER_IS_BETTER, METRICS, Metric, Said, draws, values_of
from featcache.sweeps.run import LOO, NOT_JUDGED, Chosen, predictions_file

log = logging.getLogger(__name__)

NUM_RESAMPLES = 10_000
PREDICTIONS = frozenset({"predicted", "loss", "confidence"})  # arrays of a file of predictions


@dataclass(frozen=True)
class Comparison:
    """How much better a is than b: a - b, or b - a where less is better."""

    a: str
    b: str
    metric: Metric
    scores: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    p_value: float  # of McNemar's test, which looks at accuracy whatever the metric
    only_a: int  # images of which a alone is right
    only_b: int
    images: int

    @property
    def verdict(self) -> str:
        """Return what can be said: which one is better, or that they cannot be told apart."""
        low, high = self.interval
        if not np.isfinite(self.interval).all():
            return f"{self.metric} is not a number of one of them, so they cannot be compared"
        if low <= 0 <= high:
            return f"tie: the interval of the difference holds 0, so {self.images} images cannot tell them apart"
        return f"{self.a if low > 0 else self.b} is better"


class Model(Protocol):
    """A model that was trained from a trial, such as `finetune` returns."""

    @property
    def chosen(self) -> Chosen:
        """Return the trial."""
        ...

    @property
    def val_logits(self) -> Floats:
        """Return (M, K) of the validation images of its run."""
        ...

    @property
    def name(self) -> str:
        """Return what to call it."""
        ...


def compare(a: Chosen | Model, b: Chosen | Model, metric: str | None = None) -> Comparison:
    """Return how two trials differ on the images that chose, which must be the same.

    a, b: trials, or models that were fine-tuned from one: with these the images are those of validation, also of a
    trial that was chosen by folds, whose head saw only train. metric: that of the run of `a`, unless told otherwise.
    Raises UsageError if the images are others, or if both are the same trial.
    """
    runs = [one.run if isinstance(one, Chosen) else one.chosen.run for one in (a, b)]
    if _same(a, b):
        raise UsageError(f"Both are {_name(a)}. Name another trial: featcache show {quote(str(runs[0].path))}")
    chosen = choose("metric", metric or runs[0].settings.metric, METRICS)
    of_trials = isinstance(a, Chosen) and isinstance(b, Chosen)
    (rows, first), (other_rows, second) = (
        said_by(one) if of_trials and isinstance(one, Chosen) else _on_val(one) for one in (a, b)
    )
    keys, others = _keys(rows), _keys(other_rows)
    if runs[0].classes != runs[1].classes:
        raise UsageError(f"{_name(a)} and {_name(b)} are about other classes, so they cannot be compared")
    if sorted(keys) != sorted(others):
        raise UsageError(
            f"{_name(a)} and {_name(b)} were chosen on other images or labels "
            f"({', '.join(_how(one.settings.cv) for one in runs)}), so they cannot be compared"
        )
    at = {key: number for number, key in enumerate(others)}
    said = [first, second[np.array([at[key] for key in keys])]]
    if chosen in LOWER_IS_BETTER and any(one.loss is None for one in said):
        raise UsageError(f"{chosen} needs probabilities, which one of {_name(a)} and {_name(b)} does not give")
    truth = first.truth
    sign = -1 if chosen in LOWER_IS_BETTER else 1
    everything = np.ones((1, len(truth)))
    scores = [float(values_of(one, everything, chosen)[0]) for one in said]
    log.info("Computing the interval of the difference")
    counts = draws(len(truth), NUM_RESAMPLES)
    apart = np.concatenate([sign * np.subtract(*(values_of(one, some, chosen) for one in said)) for some in counts])
    low, high = np.quantile(apart, [0.025, 0.975])
    right = [one.predicted == truth for one in said]
    only = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    return Comparison(
        a=_name(a),
        b=_name(b),
        metric=chosen,
        scores=(scores[0], scores[1]),
        difference=sign * (scores[0] - scores[1]),
        interval=(float(low), float(high)),
        p_value=float(binomtest(only[0], sum(only)).pvalue) if sum(only) else 1.0,
        only_a=only[0],
        only_b=only[1],
        images=len(truth),
    )


def said_by(one: Chosen) -> tuple[list[ImageRow], Said]:
    """Return the images that chose, and what the trial said of them.

    Raises UsageError if it has no score, or was fitted on them; NotARun if its predictions are damaged.
    """
    if one.trial.status != "ok":
        raise UsageError(f"{_name(one)} has no score: {one.trial.status}")
    if one.refit:
        raise UsageError(f"{one.run.path}@refit was fitted on the images that chose. Compare {one.run.path}@best")
    cache = one.run.cache()
    rows = one.run.rows(cache, "train" if one.run.settings.cv else "val")
    path = predictions_file(one.run.path, one.trial.trial)
    required = {"predicted"} if one.trial.log_loss is None else PREDICTIONS
    said = read_predictions(path, cache.labels(rows), required, "Sweep again")
    judged = np.flatnonzero(said.predicted != NOT_JUDGED)
    return [rows[at] for at in judged], said[judged]


def read_predictions(path: Path, truth: Classes, required: Collection[str], do: str) -> Said:
    """Return what a file says of images with these labels. required: the arrays that it must have.

    Raises NotARun, with what to do, if it is damaged or says something of other images.
    """
    try:
        arrays = read_arrays(path)
        # The checksums of a zip do not cover its names: an array under another name must not count as absent.
        if not set(required) <= arrays.keys() <= PREDICTIONS:
            raise ValueError(f"its arrays are {', '.join(sorted(map(ascii, arrays)))}")
        lengths = {len(values) for values in arrays.values()}
    except Exception as error:  # a damaged file can raise anything
        raise_if_of_the_system(path, error)
        raise NotARun(f"Cannot read the predictions {path}: {error}. {do}") from error
    if lengths != {len(truth)}:
        raise NotARun(f"{path} does not fit the images of its run. {do}")
    return Said(truth, **arrays)


def _on_val(one: Chosen | Model) -> tuple[list[ImageRow], Said]:
    """Return the validation images, and what a trial or a model says of them."""
    run = one.run if isinstance(one, Chosen) else one.chosen.run
    cache = run.cache()
    rows = run.rows(cache, "val")
    logits = one.logits(rows) if isinstance(one, Chosen) else one.val_logits
    return rows, Said.of(cache.labels(rows), logits.argmax(axis=1), logits)


def _keys(rows: Sequence[ImageRow]) -> list[str]:
    return [f"{row.digest} {row.label} {row.path}" for row in rows]


def _same(a: Chosen | Model, b: Chosen | Model) -> bool:
    if not isinstance(a, Chosen) or not isinstance(b, Chosen):
        return a is b
    return (a.run.path.resolve(), a.trial.trial, a.refit) == (b.run.path.resolve(), b.trial.trial, b.refit)


def _name(one: Chosen | Model) -> str:
    return f"{one.run.path}@{one.trial.trial}" if isinstance(one, Chosen) else one.name


def _how(cv: int | str | None) -> str:
    return "one left out" if cv == LOO else f"{cv} folds" if cv else "validation"
