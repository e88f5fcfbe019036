"""The outcome of a candidate -> its trial: scores, interval, temperature; and its predictions."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from featcache.arrays import Classes, Floats
from featcache.heads.absorb import is_exact
from featcache.sweeps.candidates import Candidate
from featcache.sweeps.fitting import Outcome
from featcache.sweeps.metrics import METRICS, Metric, Predictions, fit_temperature, score_of, value_of
from featcache.sweeps.run import Settings
from featcache.sweeps.tap_data import TapData
from featcache.sweeps.trial import Trial


def unscored_trial(candidate: Candidate, status: str) -> Trial:
    """Return the trial of a candidate without a score; the status says why it has none."""
    setting = candidate.setting
    return Trial(
        trial=candidate.number,
        tap=candidate.tap,
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
        prepare=candidate.chain,
        few=candidate.few,
    )


def scored_trial(data: TapData, candidate: Candidate, outcome: Outcome, settings: Settings) -> Trial:
    """Return the trial of a candidate; if its classifier raised, with the reason instead of a score."""
    mean_s = outcome.seconds / outcome.rounds  # rounds run side by side: their sum may exceed the time of the sweep
    trial = unscored_trial(candidate, outcome.reason or "ok")
    trial = replace(trial, width=data.X.shape[1], fit_s=round(mean_s, 3))
    if outcome.reason:
        return trial

    truth = data.truth
    predicted, logits = _on_choosing(data, outcome)
    # Every head gets a temperature: LDA and naive Bayes give probabilities of 0 or 1 for nearly every image.
    temperature = 1.0 if logits is None else fit_temperature(logits, truth)
    predictions = Predictions.of(truth, predicted, None if logits is None else logits / temperature)
    score = score_of(predictions, settings.metric)
    values = {metric: value_of(predictions, metric) for metric in METRICS}
    classifier = outcome.estimator[-1]
    return replace(
        trial,
        score=score.value,
        interval=(score.low, score.high),
        converged=has_converged(classifier),
        handoff=data.is_one_model and is_exact(classifier),
        temperature=temperature,
        log_loss=None if predictions.loss is None else values["log_loss"],
        scores={metric: None if np.isnan(value) else value for metric, value in values.items()},
        fold_scores=_fold_scores(data, predictions, settings.metric),
    )


def predictions_of_trial(data: TapData, outcome: Outcome, trial: Trial) -> Predictions:
    """Return the predictions on the images that choose, with the temperature of the trial."""
    predicted, logits = _on_choosing(data, outcome)
    return Predictions.of(data.truth, predicted, None if logits is None else logits / trial.temperature)


def has_converged(classifier: Any) -> bool:
    """Return whether a fitted classifier stopped before its limit of iterations; True if it does not count them."""
    iterations, limit = getattr(classifier, "n_iter_", None), getattr(classifier, "max_iter", None)
    if iterations is None or limit is None or limit < 0:
        return True
    if hasattr(classifier, "do_early_stopping_"):
        return True  # boosting: its limit is a number of trees, which it reaches as a rule
    return bool(np.max(iterations) < limit)


def _on_choosing(data: TapData, outcome: Outcome) -> tuple[Classes, Floats | None]:
    """Return the predictions and logits of the images that choose, in the order of `data.choosing`."""
    predicted = np.concatenate(outcome.predicted)
    logits = np.concatenate(outcome.logits) if outcome.logits else None
    if data.folds:
        return predicted, logits
    # Leaving one out predicts all images, also those that are the only one of their class.
    return predicted[data.choosing], None if logits is None else logits[data.choosing]


def _fold_scores(data: TapData, predictions: Predictions, metric: Metric) -> tuple[float, ...]:
    """Return the score of each fold; none if there are not several folds."""
    if data.is_split or not data.folds:
        return ()
    ends = np.cumsum([len(choose_on) for _, choose_on in data.folds])
    return tuple(value_of(predictions[begin:end], metric) for begin, end in pairwise([0, *ends.tolist()]))
