"""The scores of a run as a figure of matplotlib, for notebooks."""

from __future__ import annotations

from typing import Any

from featcache.errors import EnvironmentFault, UsageError
from featcache.extras.report.plots import COLOURS
from featcache.sweeps import Run, Trial
from featcache.sweeps.trial import settings_of

MOST_TRIALS = 20
HEIGHT = 0.3  # inches of a trial


def plot_scores(run: Run, axes: Any = None) -> Any:
    """Draw the best trial of each kind of head on each tap with its 95 % interval, and return the axes.

    axes: of matplotlib, to draw on; by default a new figure's.
    Raises UsageError if no trial has a score, EnvironmentFault without matplotlib.
    """
    trials = _best_of_each(run)
    if not trials:
        raise UsageError(f"{run.path} has no trial with a score to plot")
    if axes is None:
        axes = _new_axes(HEIGHT * len(trials) + 1)
    taps = list(dict.fromkeys(trial.tap for trial in trials))
    for place, trial in enumerate(trials):
        score, low, high = trial.judged
        colour = COLOURS[taps.index(trial.tap) % len(COLOURS)]
        # Lines, not error bars: the interval of a biased metric, such as ece, need not hold the score.
        axes.hlines(place, low, high, color=colour)
        axes.plot(score, place, "o", color=colour)
    names = [f"{trial.head} {settings_of(trial)}".strip() for trial in trials]
    if len(taps) > 1:
        names = [f"{name}, {trial.tap}" for name, trial in zip(names, trials, strict=True)]
    axes.set_yticks(range(len(trials)), names, parse_math=False)
    axes.set_ylim(len(trials) - 0.5, -0.5)  # the best at the top
    axes.set_xlabel(f"{run.settings.metric} [95 %]")
    return axes


def _best_of_each(run: Run) -> list[Trial]:
    """Return the best trial of each kind of head on each tap, best first, at most MOST_TRIALS."""
    best: dict[tuple[str, str], Trial] = {}
    for trial in run.ranked:
        best.setdefault((trial.head, trial.tap), trial)
    return list(best.values())[:MOST_TRIALS]


def _new_axes(height: float) -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise EnvironmentFault(f"A plot needs matplotlib ({error}): pip install matplotlib") from error
    # pyplot, because notebooks show its figures by themselves.
    _, axes = pyplot.subplots(figsize=(6.4, height), layout="constrained")
    return axes
