"""How the score depends on the tap and on the parameters of heads, as text: a point and its 95 % interval a line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from featcache.extras.report.table import shortened
from featcache.heads.estimators import family_of
from featcache.sweeps import Run, Trial
from featcache.sweeps.metrics import better
from featcache.sweeps.run import spelt
from featcache.text import table

WIDE = 34  # characters from the lowest to the highest end of an interval


def plots(run: Run) -> str:
    """Return a plot of the best score of every tap, then on the best tap one of every parameter that was varied.

    What else was varied is at its best in every line.
    """
    ranked = [trial for trial in run.ranked if all(map(math.isfinite, trial.judged))]
    shown = []
    taps = {tap: [trial for trial in ranked if trial.tap == tap] for tap in run.settings.taps}
    taps = {tap: trials for tap, trials in taps.items() if trials}
    if len(taps) > 1:
        short, backbones = shortened(taps)
        shown += [*backbones, _plot("tap", {short[tap]: trials for tap, trials in taps.items()}, run), ""]
    best = [trial for trial in ranked if trial.tap == ranked[0].tap]
    for family in dict.fromkeys(family_of(trial.head).name for trial in best):
        trials = [trial for trial in best if family_of(trial.head).name == family]
        for name, lines in _parameters(trials).items():
            shown += [f"{family} on {best[0].tap}:", _plot(name, lines, run), ""]
    if not shown:
        return "Nothing to plot: there is one tap only, and no parameter of a head has two values."
    return "\n".join([*shown, f"o {run.settings.metric} of the best trial there, --- its 95 % interval."])


def _parameters(trials: Sequence[Trial]) -> dict[str, dict[str, list[Trial]]]:
    """Return {"alpha": {value: its trials}} of each parameter with several values; numbers from low to high."""
    found = {}
    for name in dict.fromkeys(name for trial in trials for name in trial.params if name != "hidden"):
        values = list({repr(trial.params.get(name)): trial.params.get(name) for trial in trials}.values())
        if all(isinstance(value, (int, float)) for value in values):
            values.sort()
        if len(values) > 1:
            lines = {spelt(value): [trial for trial in trials if trial.params.get(name) == value] for value in values}
            found[name] = lines
    return found


def _plot(name: str, lines: Mapping[str, Sequence[Trial]], run: Run) -> str:
    """Return a line for the best trial of each, all on one scale."""
    metric = run.settings.metric
    tops = {label: max(trials, key=lambda trial: better(metric, trial.judged.value)) for label, trials in lines.items()}
    lowest = min(trial.judged.low for trial in tops.values())
    highest = max(trial.judged.high for trial in tops.values())

    def place(score: float) -> int:
        return round((score - lowest) / ((highest - lowest) or 1.0) * (WIDE - 1))

    def drawn(trial: Trial) -> str:
        value, low, high = map(place, trial.judged)
        return "".join("o" if at == value else "-" if low <= at <= high else " " for at in range(WIDE))

    axis = f"{lowest:<{WIDE - 5}.3f}{highest:.3f}"
    rows = [[label, f"{trial.judged.value:.3f}", f"|{drawn(trial)}|"] for label, trial in tops.items()]
    return table([name, metric, f" {axis} "], rows)
