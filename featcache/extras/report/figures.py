"""Choose the plots of a run: strength of regularisation, depth of the tap, learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain, groupby
from typing import Any

from featcache.cache.reader import Cache
from featcache.extras.report.plots import Curve, curves, steps
from featcache.sweeps import Run, Trial
from featcache.sweeps.inputs import by_depth
from featcache.sweeps.trial import spelt

STRENGTHS = (
    "C",
    "alpha",
    "weight_decay",
    "shrinkage",
    "n_neighbors",
    "gamma",
    "learning_rate",
    "max_depth",
    "var_smoothing",
)
LEAST = 3  # values from which a curve is drawn
MOST_LINES = 8


def of_scores(run: Run, cache: Cache) -> list[tuple[str, str]]:
    """Return (title, SVG) of plots of the score by the strength of each kind of head, and by tap, on one scale.

    The kind of head with the best trial comes first.
    """
    metric = run.settings.metric
    strengths = _strengths(run)
    depths = _depths(run, cache)
    all_lines = [*depths]
    for _, _, lines in strengths:
        all_lines += lines
    # One scale for all plots, so that heads and taps can be compared by eye.
    limits = _limits(all_lines)
    figures: list[tuple[str, str]] = []
    for head, axis, lines in strengths:
        numbers = list(chain.from_iterable(line.x for line in lines))
        # Strengths are searched by factors. On a linear scale the small ones would fall on one point.
        log = min(numbers) > 0 and max(numbers) / min(numbers) > 20
        about = f"{metric} of {head} against {axis}"
        plot = curves(lines, axis, metric, log=log, limits=limits, about=about)
        figures.append((f"{head}: {metric} against {axis}; the band is the 95 % interval.", plot))
    if depths:
        about = f"Best {metric} of each tap, from early to late layers"
        figures.append((f"{about}.", steps(depths, metric, limits=limits, about=about)))
    return figures


def _strengths(run: Run) -> list[tuple[str, str, list[Curve]]]:
    """Return (head, its strength parameter, curves) for each kind of head whose strength was varied."""
    by_head: dict[str, list[Trial]] = {}
    for trial in run.ranked:
        if trial.few is None:  # trials on a few images per class score lower, whatever their strength
            by_head.setdefault(trial.head, []).append(trial)
    strengths = []
    for head, trials in by_head.items():
        axis = _axis(trials)
        if axis is not None:
            strengths.append((head, axis, _lines(run, axis, trials)))
    return strengths


def _limits(lines: Sequence[Curve]) -> tuple[float, float] | None:
    """Return the ends of a scale that fits all these curves; None if no value is a number."""
    values: list[float] = []
    for line in lines:
        values += line.y
        values += line.low or ()
        values += line.high or ()
    # A head that diverged has a loss that is no number, and would leave the others without a scale.
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return None
    low, high = min(values), max(values)
    margin = 0.03 * (high - low) or 0.03
    return low - margin, high + margin


def _depths(run: Run, cache: Cache) -> list[Curve]:
    """Return a curve of the best score by tap, from early to late layers, for each backbone with several taps."""
    best: dict[str, Trial] = {}
    for trial in run.ranked:
        if trial.tap in cache.taps:
            best.setdefault(trial.tap, trial)
    # `groupby` needs the taps of a backbone side by side, which is how `by_depth` sorts them.
    names = by_depth(cache, list(best))
    lines = []
    for backbone, group in groupby(names, key=lambda name: cache.taps[name].backbone.name):
        taps = list(group)
        if len(taps) == 1:
            continue
        layers = [cache.taps[name].layer for name in taps]
        trials = [best[name] for name in taps]
        lines.append(Curve(backbone, layers, *_scores(trials)))
    return lines


def learning(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (title, SVG) of the validation score by epoch and of both losses, with controls; epoch 0 is the head."""
    metric = record["metric"]
    histories = {"fine-tuned": record["history"], **record["controls"]}
    scores: list[Curve] = []
    losses: list[Curve] = []
    for name, history in histories.items():
        # Mixtures of weights (--wise-ft) follow the last epoch and are no points of time.
        epochs = [epoch for epoch in history if epoch["mixture"] is None]
        numbers = [epoch["epoch"] for epoch in epochs]
        values, lows, highs = zip(*[epoch["val"] for epoch in epochs], strict=True)
        scores.append(Curve(name, numbers, values, lows, highs))
        val_losses = [epoch["val_loss"] for epoch in epochs]
        losses.append(Curve(f"{name}, validation", numbers, val_losses))
        # Epoch 0 is the head before any step, so it has no training loss.
        trained = [epoch for epoch in epochs if epoch["train_loss"] is not None]
        if trained:
            trained_numbers = [epoch["epoch"] for epoch in trained]
            train_losses = [epoch["train_loss"] for epoch in trained]
            losses.append(Curve(f"{name}, training", trained_numbers, train_losses, dashed=True))
    score_title = f"Validation {metric} by epoch, with 95 % intervals"
    loss_title = "Loss by epoch: of training as it is minimised, of validation as log loss"
    return [
        (score_title, curves(scores, "epoch", f"validation {metric}", about=score_title)),
        (loss_title, curves(losses, "epoch", "loss", about=loss_title)),
    ]


def _axis(trials: Sequence[Trial]) -> str | None:
    """Return the strength parameter with the most values in these trials; None if it has too few for a curve."""
    num_values: dict[str, int] = {}
    for name in STRENGTHS:
        values = [trial.params.get(name) for trial in trials]
        numbers = [value for value in values if is_number(value)]
        num_values[name] = len(set(numbers))
    best = max(STRENGTHS, key=num_values.__getitem__)
    return best if num_values[best] >= LEAST else None


def _lines(run: Run, axis: str, trials: Sequence[Trial]) -> list[Curve]:
    """Return a curve over `axis` for each setting of everything else. trials: best first, so the best are kept."""
    by_setting: dict[str, list[Trial]] = {}
    for trial in trials:
        if is_number(trial.params.get(axis)):
            others = _other_settings(run, trial, axis)
            by_setting.setdefault(others, []).append(trial)
    lines: list[Curve] = []
    for name, trials_of_line in list(by_setting.items())[:MOST_LINES]:
        in_order = sorted(trials_of_line, key=lambda trial: trial.params[axis])
        strengths = [trial.params[axis] for trial in in_order]
        lines.append(Curve(name, strengths, *_scores(in_order)))
    return lines


def _scores(trials: Sequence[Trial]) -> tuple[list[float], list[float], list[float]]:
    """Return the scores, and the low and high ends of their intervals."""
    values = [trial.judged.value for trial in trials]
    lows = [trial.judged.low for trial in trials]
    highs = [trial.judged.high for trial in trials]
    return values, lows, highs


def _other_settings(run: Run, trial: Trial, axis: str) -> str:
    """Return what distinguishes the curve of a trial from others of its head: the tap and the other parameters."""
    words: list[str] = []
    if len(run.settings.taps) > 1:
        words.append(trial.tap)
    for name, value in trial.params.items():
        if name not in (axis, "hidden"):
            words.append(f"{name}={spelt(value)}")
    if len(run.settings.prepare) > 1:
        words.append(trial.prepare)
    return " ".join(words) or trial.head


def is_number(value: Any) -> bool:
    """Return whether the value of a setting is a number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
