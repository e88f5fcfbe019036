"""Models made from a run: the records of its fine-tunings, and what a model file predicts of the validation images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featcache.arrays import Floats
from featcache.cache.reader import Cache
from featcache.errors import NotARun, UsageError
from featcache.extras.report import figures
from featcache.extras.report.file_logits import logits_of_file
from featcache.files import file_digest
from featcache.images.manifest import Images
from featcache.models import image_source
from featcache.models.modelfile import read_facts
from featcache.spec import ImageRow, Progress, silent
from featcache.sweeps import Chosen, Run
from featcache.sweeps.metrics import Metric, Predictions, Score, better, value_of
from featcache.sweeps.records import TUNED, predictions_of, read_record
from featcache.sweeps.stored_predictions import PREDICTIONS, read_predictions
from featcache.text import interval, printable
from featcache.tuning.data import ImageSet
from featcache.tuning.train import VALIDATE

ADVICE = "Delete it: only reports read it"
NEEDED = (
    *("model", "trial", "flags", "controls", "metric", "unfrozen", "seconds", "stopped", "certificate"),
    *("best", "history"),
)


@dataclass(frozen=True)
class TunedModel:
    """One fine-tuned model, by its record."""

    record: Mapping[str, Any] = field(repr=False)
    plots: Sequence[tuple[str, str]] = field(repr=False)  # (title, SVG): score, and losses, by epoch
    rows: Sequence[ImageRow] = field(repr=False)  # the validation images
    predictions: Predictions | None = field(repr=False)  # of these; None if an earlier version did not store them

    @property
    def path(self) -> Path:
        """Return the file of the model."""
        return Path(self.record.get("file", self.record["model"]))

    @property
    def name(self) -> str:
        """Return the name of the file, as it can be shown."""
        return printable(self.path.name)

    @property
    def score(self) -> Score:
        """Return its score on the validation images, in the view of them that judged."""
        return Score(*self.record["best"]["val"])

    @property
    def augmented_view(self) -> str:
        """Return the augmented view of the validation images that judged; "" if these were the images as they are."""
        return str(self.record.get("val_view", ""))

    @property
    def plain_value(self) -> float:
        """Return its score on the validation images as they are, which compares with the score of a head."""
        if self.augmented_view and self.predictions is not None:
            return value_of(self.predictions, self.record["metric"])
        return self.score.value

    @property
    def start(self) -> Score:
        """Return the score of the head that it started from, on the same images."""
        return Score(*self.record["history"][0]["val"])

    @property
    def mixtures(self) -> list[tuple[float, Score]]:
        """Return (share, score) of each mixture of the start's weights with the end's that --wise-ft evaluated."""
        mixtures: list[tuple[float, Score]] = []
        for epoch in self.record["history"]:
            if epoch["mixture"] is not None:
                mixtures.append((epoch["mixture"], Score(*epoch["val"])))
        return mixtures

    @property
    def is_head(self) -> bool:
        """Return whether no epoch was better than the head, so that the model is the head."""
        return bool(self.record["best"]["epoch"] == 0)


@dataclass(frozen=True)
class ModelFile:
    """A model that was handed over or fine-tuned from a trial, and its logits of the validation images."""

    name: str
    chosen: Chosen
    val_logits: Floats = field(repr=False)  # (M, K)


def tuned_models_of(run: Run, cache: Cache) -> list[TunedModel]:
    """Return the models that were fine-tuned from a run, by the names of their records. Raises NotARun."""
    rows = run.rows(cache, "val")
    return [_tuned_model(path, rows, cache) for path in sorted((run.path / TUNED).glob("*.json"))]


def best_of(
    models: Sequence[TunedModel], trial: int | None, metric: Metric, at_least: float | None
) -> TunedModel | None:
    """Return the best model on validation; None if there is none, or if it is worse than the head.

    Models that are still the head, or whose predictions are not stored, do not count. trial: only models of this
    trial; None for all. metric: of the run; a model chosen by another metric does not compare. at_least: the score of
    the head; None if it is unknown.
    """
    candidates: list[TunedModel] = []
    for model in models:
        is_of_trial = trial is None or model.record["trial"] == trial
        is_comparable = model.predictions is not None and model.record["metric"] == metric
        if is_of_trial and is_comparable and not model.is_head:
            candidates.append(model)
    if not candidates:
        return None

    def value(model: TunedModel) -> float:
        return better(metric, model.plain_value)

    # Among equal scores the lower loss decides.
    best = max(candidates, key=lambda model: (value(model), -model.record["best"]["val_loss"]))
    if at_least is not None and value(best) < better(metric, at_least):
        return None
    return best


def tuned_lines(run: Run) -> list[str]:
    """Return a line for each model that was fine-tuned from a run: its validation score, and its start's.

    Raises NotARun if a record is damaged.
    """
    lines: list[str] = []
    for path in sorted((run.path / TUNED).glob("*.json")):
        record = checked_record(path)
        model = TunedModel(record, (), (), None)
        images = "augmented validation images" if model.augmented_view else "validation images"
        line = (
            f"Fine-tuned from head {record['trial']}: {printable(str(record['model']))}, {record['metric']} "
            f"{interval(*model.score)} on the {images} (the head: {model.start.value:.3f})"
        )
        if model.is_head:
            line += "; it is the head: no epoch was better"
        if not model.path.exists():
            line += "; its file is gone"
        lines.append(f"{line}.")
    return lines


def checked_record(path: Path) -> dict[str, Any]:
    """Return the record of a fine-tuning. Raises NotARun if it is damaged or of another version."""
    record, _ = _record_and_plots(path)
    return record


def _record_and_plots(path: Path) -> tuple[dict[str, Any], Sequence[tuple[str, str]]]:
    """Return the record of a fine-tuning and its plots. Raises NotARun."""
    record = read_record(path)
    try:
        for name in NEEDED:
            if name not in record:
                raise KeyError(name)
        if not isinstance(record["best"]["epoch"], int):
            raise TypeError("its best epoch is no number")
        return record, figures.learning(record)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise NotARun(f"{path} is damaged or of another version: {error!r}. {ADVICE}") from error


def _tuned_model(path: Path, rows: Sequence[ImageRow], cache: Cache) -> TunedModel:
    record, plots = _record_and_plots(path)
    stored = predictions_of(path)
    predictions: Predictions | None = None
    # The record names the digest, so predictions of an earlier training under the same name are not taken for these.
    if stored.exists() and file_digest(stored) == record.get("predictions"):
        predictions = read_predictions(stored, cache.labels(rows), PREDICTIONS, ADVICE)
    return TunedModel(record, plots, rows, predictions)


def model_on_val(
    run: Run, path: Path, images: Images | str | Path | None = None, progress: Progress = silent
) -> ModelFile:
    """Return a model file with its logits of the validation images of the run that it came from.

    Raises NotAModel, UsageError if it came from another run, DataError if there are no validation images.
    """
    facts = read_facts(path)
    if facts.get("run") != run.path.name or facts["classes"] != list(run.classes):
        raise UsageError(f"{path} came from the run {facts.get('run')}, so it cannot be compared with {run.path}")
    chosen = run[facts["trial"]]
    cache = run.cache()
    rows = run.rows(cache, "val")
    if not rows:
        raise UsageError(f"{cache.path} has no validation images to compare {path} on")
    val_set = ImageSet(image_source(chosen, images), rows, cache.labels(rows), chosen.preprocess)
    val_logits = logits_of_file(path, val_set, progress, VALIDATE)
    return ModelFile(str(path), chosen, val_logits)
