"""Which plots a run asks for: strength of regularisation, depth of tap, what is taken for what, learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from featcache.cache.reader import Cache
from featcache.reports.plots import Line, curves, steps
from featcache.sweeps import Run, Trial
from featcache.sweeps.run import by_depth, spelt

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


def strengths(run: Run) -> list[tuple[str, str]]:
    """Return (title, SVG) for each kind of head: its score against the parameter that regularises it."""
    scored = sorted((one for one in run.ranked if one.few is None), key=lambda one: one.head)
    found = []
    for head, group in groupby(scored, key=lambda one: one.head):
        trials = list(group)
        axis = _axis(trials)
        if axis is not None:
            found.append((f"{head}: {run.settings.metric} against {axis}", _strength(run, head, axis, trials)))
    return found


def depths(run: Run, cache: Cache) -> str | None:
    """Return the best score of every tap of a backbone that has several, in the order of depth; None if none has."""
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
    metric = run.settings.metric
    return steps(lines, metric, about=f"Best {metric} of each tap, from early to late layers") if lines else None


def learning(record: dict[str, Any]) -> str:
    """Return validation loss by epoch of a fine-tuning and of its controls; epoch 0 is the head."""
    ways = {"fine-tuned": record["history"], **record["controls"]}
    lines = []
    for name, history in ways.items():
        epochs = [one for one in history if one["mixture"] is None]
        low, high = ([one["val"][at] for one in epochs] for at in (1, 2))
        lines.append(Line(name, [one["epoch"] for one in epochs], [one["val"][0] for one in epochs], low, high))
    about = f"Validation {record['metric']} by epoch; epoch 0 is the head"
    return curves(lines, "epoch", f"validation {record['metric']}", about=about)


def _axis(trials: Sequence[Trial]) -> str | None:
    """Return the parameter that most of them differ in, of those that regularise."""
    values = {
        name: {trial.params[name] for trial in trials if _is_number(trial.params.get(name))} for name in STRENGTHS
    }
    name = max(STRENGTHS, key=lambda one: len(values[one]))
    return name if len(values[name]) >= LEAST else None


def _strength(run: Run, head: str, axis: str, trials: Sequence[Trial]) -> str:
    lines: dict[str, list[Trial]] = {}
    for trial in trials:  # the best first, so that the best lines are
        if _is_number(trial.params.get(axis)):
            lines.setdefault(_rest(run, trial, axis), []).append(trial)
    drawn = [_line(name, axis, some) for name, some in list(lines.items())[:MOST_LINES]]
    numbers = [x for line in drawn for x in line.x]
    log = min(numbers) > 0 and max(numbers) / min(numbers) > 20
    metric = run.settings.metric
    return curves(drawn, axis, metric, log=log, about=f"{metric} of {head} against {axis}")


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
