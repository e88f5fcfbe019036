"""The models that were fine-tuned from a run: how each got there, and what it predicts of the validation images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featcache.cache.reader import Cache
from featcache.errors import NotARun
from featcache.extras.report import figures
from featcache.files import file_digest
from featcache.spec import ImageRow
from featcache.sweeps import Run
from featcache.sweeps.metrics import Predictions, Score, better
from featcache.sweeps.records import TUNED, predictions_of, read_record
from featcache.sweeps.stored_predictions import PREDICTIONS, read_predictions
from featcache.text import printable

NEEDED = (
    *("model", "trial", "flags", "controls", "metric", "unfrozen", "seconds", "stopped", "certificate"),
    *("best", "history"),
)


@dataclass(frozen=True)
class Training:
    """One fine-tuned model and its record."""

    record: Mapping[str, Any] = field(repr=False)
    plots: Sequence[tuple[str, str]] = field(repr=False)  # (title, SVG): score, and losses, by epoch
    rows: Sequence[ImageRow] = field(repr=False)  # the validation images
    said: Predictions | None = field(repr=False)  # of these; None where an earlier version did not store it

    @property
    def path(self) -> Path:
        """Return the file of the model."""
        return Path(self.record.get("file", self.record["model"]))

    @property
    def name(self) -> str:
        """Return what to call it."""
        return printable(self.path.name)

    @property
    def score(self) -> Score:
        """Return its score on the validation images."""
        return Score(*self.record["best"]["val"])

    @property
    def start(self) -> Score:
        """Return the score of the head that it started from, on the same images."""
        return Score(*self.record["history"][0]["val"])

    @property
    def is_head(self) -> bool:
        """Return whether no epoch was better than the head, so that the model is the head."""
        return bool(self.record["best"]["epoch"] == 0)


def trainings_of(run: Run, cache: Cache) -> list[Training]:
    """Return the models that were fine-tuned from a run, by the names of their records. Raises NotARun."""
    rows = run.rows(cache, "val")
    return [_training(path, rows, cache) for path in sorted((run.path / TUNED).glob("*.json"))]


def best_of(trainings: Sequence[Training], trial: int | None, metric: str, at_least: float | None) -> Training | None:
    """Return the best of them on validation that is not a head still and whose predictions are known; None without one.

    trial: only models from this one, None for all. metric: of the run; a model that was chosen by another does not
    compare. at_least: the score of the head there, of which a worse model takes nothing; None where it is unknown.
    """
    candidates = [
        training
        for training in trainings
        if training.said is not None and not training.is_head and training.record["metric"] == metric
    ]
    if trial is not None:
        candidates = [training for training in candidates if training.record["trial"] == trial]
    if not candidates:
        return None
    best = max(candidates, key=lambda training: (_value(training), -training.record["best"]["val_loss"]))
    is_worse = at_least is not None and _value(best) < better(best.record["metric"], at_least)
    return None if is_worse else best


def _value(training: Training) -> float:
    return better(training.record["metric"], training.score.value)


def _training(path: Path, rows: Sequence[ImageRow], cache: Cache) -> Training:
    record = read_record(path)
    do = "Delete it: only reports read it"
    try:
        if missing := [name for name in NEEDED if name not in record]:
            raise KeyError(missing[0])
        if not isinstance(record["best"]["epoch"], int):
            raise TypeError("its best epoch is no number")
        training = Training(record, figures.learning(record), rows, None)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise NotARun(f"{path} is damaged or of another version: {error!r}. {do}") from error
    predictions = predictions_of(path)
    if not predictions.exists() or file_digest(predictions) != record.get("predictions"):
        return training
    said = read_predictions(predictions, cache.labels(rows), PREDICTIONS, do)
    return Training(record, training.plots, rows, said)
