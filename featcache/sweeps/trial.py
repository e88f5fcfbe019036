"""One trial of a sweep as a record: read from run.json, written there and into trials.csv."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from featcache.heads.estimators import complexity
from featcache.heads.steps import NONE, STANDARDISE
from featcache.notebook import html, never_raising
from featcache.sweeps.metrics import METRICS, Metric, Score, better
from featcache.text import interval

DROPPED = "dropped:"  # how the status of a trial begins that a budget left out
COLUMNS = (
    *("trial", "tap", "width", "prepare", "shots", "head", "params", "status", "score", "low", "high", "std"),
    *("fit_s", "size", "handoff", "converged"),
    *METRICS,
)


@dataclass(frozen=True)
class Trial:
    """One head setting on one tap, with its score on the images that choose."""

    trial: int
    tap: str
    width: int
    head: str
    params: dict[str, Any]
    status: str  # "ok", or the reason why it has no score
    score: float | None  # None without a score
    interval: tuple[float, float] | None
    fit_s: float  # of one fit, the mean over folds
    handoff: bool
    converged: bool
    temperature: float
    rank: int  # from simple to complex; decides between equal scores
    log_loss: float | None = None  # on the images that choose; None if the head gives no logits
    prepare: str = STANDARDISE
    scores: Mapping[str, float | None] = field(default_factory=dict)  # by every metric
    fold_scores: tuple[float, ...] = ()  # by the metric that chooses, one for each fold
    few: tuple[int, int] | None = None  # images per class and seed of its small training set, if it had one
    size: int = 0  # bytes of the stored head; 0: it is fitted again when it is wanted

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Trial:
        """Return the trial that run.json holds: numbers may be written there as integers, tuples are lists."""
        changed: dict[str, Any] = {
            "few": None if facts["few"] is None else tuple(facts["few"]),
            "temperature": float(facts["temperature"]),
            "fit_s": float(facts["fit_s"]),
            "fold_scores": tuple(map(float, facts["fold_scores"])),
            "score": None,
            "interval": None,
        }
        if facts["status"] == "ok":
            changed["score"] = float(facts["score"])
            changed["interval"] = tuple(map(float, facts["interval"]))
        return cls(**{**facts, **changed})

    @never_raising
    def _repr_html_(self) -> str:
        return html(f"Trial {self.trial}", trial_fields(self))

    @property
    def dropped(self) -> bool:
        """Return whether a budget left it out."""
        return self.status.startswith(DROPPED)

    @property
    def failed(self) -> bool:
        """Return whether its classifier raised."""
        return self.status != "ok" and not self.dropped

    @property
    def judged(self) -> Score:
        """Return its score with the interval, nan without one."""
        value = math.nan if self.score is None else self.score
        low, high = (math.nan, math.nan) if self.interval is None else self.interval
        return Score(value, low, high)

    @property
    def std(self) -> float | None:
        """Return the standard deviation over folds, if there are several."""
        return float(np.std(self.fold_scores, ddof=1)) if len(self.fold_scores) > 1 else None


def best_first(trials: Sequence[Trial], metric: Metric) -> list[Trial]:
    """Return the trials that have a score, best first.

    At equal scores the simpler kind of head comes first, within one kind the setting with the lower log loss.
    """

    def order(trial: Trial) -> tuple[float, int, float, int, int]:
        loss = math.inf if trial.log_loss is None else trial.log_loss
        return -better(metric, trial.judged.value), complexity(trial.head), loss, trial.rank, trial.trial

    return sorted((trial for trial in trials if trial.status == "ok"), key=order)


def trial_fields(trial: Trial) -> dict[str, object]:
    """Return the facts about one trial, as a person reads them."""
    facts: dict[str, object] = {
        "trial": trial.trial,
        "tap": trial.tap,
        "width": trial.width,
        "head": trial.head,
        "setting": settings_of(trial),
        "status": trial.status,
    }
    if trial.status != "ok":
        return facts
    facts["score"] = interval(*trial.judged)
    if trial.std is not None:
        facts["std"] = f"{trial.std:.3f}"
    scores = [f"{name} {value:.3f}" for name, value in trial.scores.items() if value is not None]
    megabytes = f"{trial.size / 1e6:.2f}" if trial.size else None
    return facts | {
        "scores": ", ".join(scores),
        "temperature": f"{trial.temperature:.3g}",
        "fit s": f"{trial.fit_s:.2f}",
        "MB": megabytes,
        "handoff": "exact" if trial.handoff else "taught",
        "converged": trial.converged,
    }


def settings_of(trial: Trial) -> str:
    """Return the settings of a trial on one line: parameters, steps before the head, and the few images per class."""
    words: list[str] = []
    for key, value in trial.params.items():
        if key != "hidden":  # is in the name of the head
            words.append(f"{key}={spelt(value)}")
    if trial.prepare == NONE:
        words.append("not standardised")
    elif trial.prepare != STANDARDISE:
        words.append(f"after {trial.prepare}")
    if trial.few:
        shots, seed = trial.few
        words.append(f"{shots} per class, seed {seed}")
    return " ".join(words)


def trials_csv(trials: Sequence[Trial]) -> str:
    """Return the text of trials.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for trial in trials:
        cells = row_of(trial).values()
        writer.writerow(f"{cell:.4f}" if isinstance(cell, float) else cell for cell in cells)
    return text.getvalue()


def row_of(trial: Trial) -> dict[str, Any]:
    """Return {column: value} of a trial, in the order of COLUMNS; None where it has no value."""
    facts = asdict(trial)
    facts["std"] = trial.std
    facts["low"], facts["high"] = trial.interval or (None, None)
    facts["shots"] = None if trial.few is None else trial.few[0]
    facts["params"] = " ".join(f"{key}={spelt(value)}" for key, value in trial.params.items())
    facts |= {name: trial.scores.get(name) for name in METRICS}
    return {name: facts[name] for name in COLUMNS}


def spelt(value: Any) -> str:
    """Return the value of a parameter as short as it can be read.

    >>> spelt(1e-06), spelt(256), spelt("euclidean"), spelt(None)
    ('1e-06', '256', 'euclidean', 'None')
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{value:g}" if is_number else str(value)
