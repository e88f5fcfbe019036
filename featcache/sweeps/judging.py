"""What came of a setting -> its trial: scores, interval, temperature, predictions."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from featcache.arrays import Classes, Floats
from featcache.files import write_arrays
from featcache.heads.absorb import is_exact
from featcache.sweeps.fitting import Outcome
from featcache.sweeps.groups import Planned
from featcache.sweeps.metrics import METRICS, Said, fit_temperature, score_of, value_of
from featcache.sweeps.run import NOT_JUDGED, Settings, Trial
from featcache.sweeps.tasks import Task


def untried(planned: Planned, status: str) -> Trial:
    """Return the trial of a setting that has no score, and why."""
    setting = planned.setting
    return Trial(
        trial=planned.number,
        tap=planned.tap,
        width=0,
        head=setting.head,
        params=dict(setting.params),
        status=status,
        score=None,
        interval=None,
        fit_s=0.0,
        handoff=False,
        converged=True,
        temperature=1.0,
        rank=setting.rank,
        prepare=planned.chain,
        few=planned.few,
    )


def judged_trial(task: Task, planned: Planned, outcome: Outcome, asked: Settings) -> Trial:
    """Return the trial; a classifier that raised has its reason instead of a score."""
    trial = untried(planned, outcome.reason or "ok")
    mean_s = outcome.seconds / outcome.rounds  # rounds run side by side: their sum may exceed the time of the sweep
    trial = replace(trial, width=task.X.shape[1], fit_s=round(mean_s, 3))
    return trial if outcome.reason else replace(trial, **_judged(task, outcome, asked))


def _judged(task: Task, outcome: Outcome, asked: Settings) -> dict[str, Any]:
    """Return what the images that choose say of a trial."""
    truth = task.truth
    predicted, logits = _of_choosing(task, outcome)
    # Every head gets a temperature: what LDA and naive Bayes call probabilities is 0 or 1 for nearly every image.
    temperature = 1.0 if logits is None else fit_temperature(logits, truth)
    said = Said.of(truth, predicted, None if logits is None else logits / temperature)
    found = score_of(said, asked.metric)
    every = {one: value_of(said, one) for one in METRICS}
    return {
        "score": found.value,
        "interval": (found.low, found.high),
        "converged": _converged(outcome.estimator[-1]),
        "handoff": task.is_one_model and is_exact(outcome.estimator[-1]),
        "temperature": temperature,
        "log_loss": None if said.loss is None else every["log_loss"],
        "scores": {one: None if np.isnan(value) else value for one, value in every.items()},
        "fold_scores": () if task.is_split or not task.folds else _by_fold(task, said, asked),
    }


def _of_choosing(task: Task, outcome: Outcome) -> tuple[Classes, Floats | None]:
    """Return the predictions and logits of the images that choose, in the order of `task.choosing`.

    Leaving one out gives predictions of all images; folds give those of the images that choose.
    """
    predicted = np.concatenate(outcome.predicted)
    logits = np.concatenate(outcome.logits) if outcome.logits else None
    if task.folds:
        return predicted, logits
    return predicted[task.choosing], None if logits is None else logits[task.choosing]


def _by_fold(task: Task, said: Said, asked: Settings) -> tuple[float, ...]:
    ends = np.cumsum([len(choose_on) for _, choose_on in task.folds])
    return tuple(value_of(said[at:to], asked.metric) for at, to in pairwise([0, *ends.tolist()]))


def _converged(classifier: Any) -> bool:
    iterations, limit = getattr(classifier, "n_iter_", None), getattr(classifier, "max_iter", None)
    if iterations is None or limit is None or limit < 0 or hasattr(classifier, "do_early_stopping_"):
        return True  # boosting takes all the iterations it is given
    return bool(np.max(iterations) < limit)


def save_predictions(path: Path, trial: Trial, outcome: Outcome, task: Task) -> None:
    """Write the class of each image and, where the head gives it, the confidence, in the order of the images.

    Under cross-validation these are all images of train; the class of those that choose nothing is NOT_JUDGED.
    """
    classes, logits = _of_choosing(task, outcome)
    arrays: dict[str, Any] = {"predicted": classes.astype(np.int32)}
    if logits is not None:
        said = Said.of(task.truth, arrays["predicted"], logits / trial.temperature)
        arrays |= {"loss": said.loss, "confidence": said.confidence}
    if task.is_split:
        order = np.argsort(task.choosing)
        write_arrays(path, {name: values[order] for name, values in arrays.items()})
        return
    for name, values in arrays.items():
        of_all = np.full(task.num_train, NOT_JUDGED, values.dtype)
        of_all[task.choosing] = values
        arrays[name] = of_all
    write_arrays(path, arrays)
