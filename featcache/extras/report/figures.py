"""Which plots a run asks for: strength of regularisation, depth of tap, what is taken for what, learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from featcache.cache.reader import Cache
from featcache.extras.report.plots import Line, curves, steps
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
LEAST = 3  # values that make a curve
MOST_LINES = 8


def of_scores(run: Run, cache: Cache) -> list[tuple[str, str]]:
    """Return (title, SVG) of how the score depends on each kind of head and on the tap, all on one scale of scores.

    The kind of head with the best trial comes first.
    """
    metric = run.settings.metric
    strengths = _strengths(run)
    depths = _depths(run, cache)
    limits = _limits([line for _, _, lines in strengths for line in lines] + depths)
    figures = []
    for head, axis, lines in strengths:
        numbers = [x for line in lines for x in line.x]
        log = min(numbers) > 0 and max(numbers) / min(numbers) > 20
        about = f"{metric} of {head} against {axis}"
        plot = curves(lines, axis, metric, log=log, limits=limits, about=about)
        figures.append((f"{head}: {metric} against {axis}; the band is the 95 % interval.", plot))
    if depths:
        about = f"Best {metric} of each tap, from early to late layers"
        figures.append((f"{about}.", steps(depths, metric, limits=limits, about=about)))
    return figures


def _strengths(run: Run) -> list[tuple[str, str, list[Line]]]:
    """Return (head, parameter that regularises it, lines) for each kind of head that has such a parameter."""
    by_head: dict[str, list[Trial]] = {}
    for trial in run.ranked:
        if trial.few is None:
            by_head.setdefault(trial.head, []).append(trial)
    strengths = []
    for head, trials in by_head.items():
        axis = _axis(trials)
        if axis is not None:
            strengths.append((head, axis, _lines(run, axis, trials)))
    return strengths


def _limits(lines: Sequence[Line]) -> tuple[float, float] | None:
    """Return where the scale of all these lines begins and ends; None if no value is a number."""
    ends = [end for line in lines for end in (*line.y, *(line.low or ()), *(line.high or ())) if math.isfinite(end)]
    if not ends:
        return None
    margin = 0.03 * (max(ends) - min(ends)) or 0.03
    return min(ends) - margin, max(ends) + margin


def _depths(run: Run, cache: Cache) -> list[Line]:
    """Return the best score of every tap of the backbones that have several, in the order of depth."""
    best: dict[str, Trial] = {}
    for trial in run.ranked:
        if trial.tap in cache.taps:
            best.setdefault(trial.tap, trial)
    names = by_depth(cache, list(best))
    lines = []
    for backbone, group in groupby(names, key=lambda name: cache.taps[name].backbone.name):
        taps = list(group)
        if len(taps) > 1:
            layers = [cache.taps[name].layer for name in taps]
            lines.append(Line(backbone, layers, *_judged([best[name] for name in taps])))
    return lines


def learning(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (title, SVG) of the validation score by epoch and of both losses, with controls; epoch 0 is the head."""
    metric = record["metric"]
    ways = {"fine-tuned": record["history"], **record["controls"]}
    scores, losses = [], []
    for name, history in ways.items():
        epochs = [epoch for epoch in history if epoch["mixture"] is None]
        numbers = [epoch["epoch"] for epoch in epochs]
        value, low, high = zip(*(epoch["val"] for epoch in epochs), strict=True)
        scores.append(Line(name, numbers, value, low, high))
        losses.append(Line(f"{name}, validation", numbers, [epoch["val_loss"] for epoch in epochs]))
        trained = [epoch for epoch in epochs if epoch["train_loss"] is not None]
        if trained:
            in_training = [epoch["train_loss"] for epoch in trained]
            losses.append(Line(f"{name}, training", [epoch["epoch"] for epoch in trained], in_training, dashed=True))
    score_title = f"Validation {metric} by epoch, with 95 % intervals"
    loss_title = "Loss by epoch: of training as it is minimised, of validation as log loss"
    return [
        (score_title, curves(scores, "epoch", f"validation {metric}", about=score_title)),
        (loss_title, curves(losses, "epoch", "loss", about=loss_title)),
    ]


def _axis(trials: Sequence[Trial]) -> str | None:
    """Return the parameter that most of them differ in, of those that regularise."""
    values = {
        name: {trial.params[name] for trial in trials if _is_number(trial.params.get(name))} for name in STRENGTHS
    }
    name = max(STRENGTHS, key=lambda one: len(values[one]))
    return name if len(values[name]) >= LEAST else None


def _lines(run: Run, axis: str, trials: Sequence[Trial]) -> list[Line]:
    lines: dict[str, list[Trial]] = {}
    for trial in trials:  # the best first, so that the best lines are
        if _is_number(trial.params.get(axis)):
            lines.setdefault(_rest(run, trial, axis), []).append(trial)
    return [_line(name, axis, some) for name, some in list(lines.items())[:MOST_LINES]]


def _line(name: str, axis: str, trials: Sequence[Trial]) -> Line:
    some = sorted(trials, key=lambda one: one.params[axis])
    return Line(name, [one.params[axis] for one in some], *_judged(some))


def _judged(trials: Sequence[Trial]) -> list[list[float]]:
    """Return the scores, and the low and high ends of their intervals."""
    return [[getattr(one.judged, part) for one in trials] for part in ("value", "low", "high")]


def _rest(run: Run, trial: Trial, axis: str) -> str:
    """Return what sets a line apart from the others of its head: the tap, and the other parameters."""
    others = {name: value for name, value in trial.params.items() if name not in (axis, "hidden")}
    said = [trial.tap] if len(run.settings.taps) > 1 else []
    said += [f"{name}={spelt(value)}" for name, value in others.items()]
    said += [trial.prepare] if len(run.settings.prepare) > 1 else []
    return " ".join(said) or trial.head


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
