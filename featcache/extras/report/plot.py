"""Scores by tap and by head parameter as text: on each line a point with its 95 % interval."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from featcache.extras.report.table import shortened
from featcache.heads.estimators import family_of
from featcache.sweeps import Run, Trial
from featcache.sweeps.metrics import better
from featcache.sweeps.trial import spelt
from featcache.text import table

WIDTH = 34  # characters from the lowest to the highest end of an interval


def plots(run: Run) -> str:
    """Return a plot of the best score by tap, then for each parameter that was varied on the best tap.

    On each line all other settings are at their best.
    """
    ranked = [trial for trial in run.ranked if all(map(math.isfinite, trial.judged))]
    trials_of_tap: dict[str, list[Trial]] = {}
    for tap in run.settings.taps:
        trials = [trial for trial in ranked if trial.tap == tap]
        if trials:
            trials_of_tap[tap] = trials

    blocks: list[str] = []
    if len(trials_of_tap) > 1:
        short_names, notes = shortened(trials_of_tap)
        lines = {short_names[tap]: trials for tap, trials in trials_of_tap.items()}
        blocks += [*notes, _plot("tap", lines, run), ""]

    trials_of_family: dict[str, list[Trial]] = {}
    for trial in ranked:
        if trial.tap == ranked[0].tap:
            trials_of_family.setdefault(family_of(trial.head).name, []).append(trial)
    for family, trials in trials_of_family.items():
        for name, lines in _parameters(trials).items():
            blocks += [f"{family} on {ranked[0].tap}:", _plot(name, lines, run), ""]
    if not blocks:
        return "Nothing to plot: there is one tap only, and no parameter of a head has two values."
    return "\n".join([*blocks, f"o {run.settings.metric} of the best trial there, --- its 95 % interval."])


def _parameters(trials: Sequence[Trial]) -> dict[str, dict[str, list[Trial]]]:
    """Return {"alpha": {value: its trials}} of each parameter with several values; numbers from low to high."""
    names = dict.fromkeys(chain.from_iterable(trial.params for trial in trials))
    names.pop("hidden", None)  # is in the name of the head
    parameters: dict[str, dict[str, list[Trial]]] = {}
    for name in names:
        # By repr, which tells 1, 1.0 and True apart, and which a list has too.
        values: dict[str, Any] = {}
        trials_of_value: dict[str, list[Trial]] = {}
        for trial in trials:
            value = trial.params.get(name)
            values[repr(value)] = value
            trials_of_value.setdefault(repr(value), []).append(trial)
        if len(values) == 1:
            continue
        keys = list(values)
        if all(isinstance(value, (int, float)) for value in values.values()):
            keys.sort(key=values.__getitem__)
        short_names = Counter(map(spelt, values.values()))
        parameters[name] = {}
        for key in keys:
            short_name = spelt(values[key])
            is_unique = short_names[short_name] == 1
            parameters[name][short_name if is_unique else key] = trials_of_value[key]
    return parameters


def _plot(name: str, lines: Mapping[str, Sequence[Trial]], run: Run) -> str:
    """Return a line for the best trial of each label, all on one scale."""
    metric = run.settings.metric
    best_of: dict[str, Trial] = {}
    for label, trials in lines.items():
        best_of[label] = max(trials, key=lambda trial: better(metric, trial.judged.value))
    lowest = min(trial.judged.low for trial in best_of.values())
    highest = max(trial.judged.high for trial in best_of.values())
    spread = (highest - lowest) or 1.0

    def column(score: float) -> int:
        return round((score - lowest) / spread * (WIDTH - 1))

    def drawn(trial: Trial) -> str:
        value, low, high = map(column, trial.judged)
        line = [" "] * WIDTH
        line[low : high + 1] = "-" * (high + 1 - low)
        line[value] = "o"
        return "".join(line)

    # The highest number ends where the scale ends; its five characters are "0.987".
    axis = f"{lowest:<{WIDTH - 5}.3f}{highest:.3f}"
    rows = [[label, f"{trial.judged.value:.3f}", f"|{drawn(trial)}|"] for label, trial in best_of.items()]
    return table([name, metric, f" {axis} "], rows)
