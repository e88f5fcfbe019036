"""The only place that opens the test split. Every opening is recorded in the run and beside the cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featcache.cache.layout import looks_beside
from featcache.cache.reader import Cache
from featcache.errors import DataError, DiskFault, UsageError
from featcache.extras.report.evaluation import Evaluation
from featcache.extras.report.file_logits import logits_of_file
from featcache.extras.report.tuned_models import checked_record
from featcache.files import remove
from featcache.images.manifest import Images
from featcache.models import image_source
from featcache.models.assemble import logits_of
from featcache.models.modelfile import read_facts
from featcache.spec import ImageRow, Progress, silent
from featcache.sweeps import Chosen, Run
from featcache.sweeps.inputs import digest_of_rows, features_of, single_taps
from featcache.sweeps.metrics import Predictions, Score, score_of
from featcache.sweeps.records import LOOKS, new_look, write_record
from featcache.sweeps.unseen import rows_that_judge
from featcache.text import printable
from featcache.tuning.data import ImageSet
from featcache.tuning.train import predict_logits
from featcache.tuning.tuned import record_of


@dataclass(frozen=True)
class Final:
    """Scores and predictions on the test split."""

    run: Run  # with the record of this opening
    scores: Mapping[str, Score]  # {name of the head or of a fine-tuned model: its score}, the head first
    rows: Sequence[ImageRow] = field(repr=False)  # the test images
    predictions: Mapping[str, Predictions] = field(repr=False)  # {name: its predictions}
    models: Mapping[Path, str]  # {file of a fine-tuned model: its name}

    @property
    def classes(self) -> dict[str, list[dict[str, Any]]]:
        """Return {name: `Evaluation.per_class`}."""
        class_names = tuple(map(printable, self.run.classes))
        scores: dict[str, list[dict[str, Any]]] = {}
        for name, predictions in self.predictions.items():
            evaluation = Evaluation(self.rows, predictions, class_names)
            scores[name] = evaluation.per_class
        return scores


def head_score(chosen: Chosen, split: str = "test") -> Score:
    """Return the score of a head on a split, from cached features. Raises DataError if the split is empty."""
    return score_of(head_predictions(chosen, split), chosen.run.settings.metric)


def head_predictions(chosen: Chosen, split: str) -> Predictions:
    """Return the predictions of a head on a split, from cached features. Raises DataError if the split is empty."""
    cache = chosen.run.cache()
    return predictions_of_rows(chosen, cache, rows_of_split(chosen.run, cache, split))


def predictions_of_rows(chosen: Chosen, cache: Cache, rows: Sequence[ImageRow]) -> Predictions:
    """Return what a head predicts for these images of its cache."""
    predicted = chosen.estimator.predict(features_of(cache, rows, chosen.trial.tap))
    logits = None
    if chosen.trial.log_loss is not None:  # else the head only names a class
        logits = chosen.logits(rows)
    return Predictions.of(cache.labels(rows), predicted, logits)


def model_score(
    chosen: Chosen,
    model: Any,
    split: str = "test",
    images: Images | str | Path | None = None,
    progress: Progress = silent,
) -> Score:
    """Return the score of an assembled Keras model on the images of a split."""
    return score_of(model_predictions(chosen, model, split, images, progress), chosen.run.settings.metric)


def model_predictions(
    chosen: Chosen,
    model: Any,
    split: str,
    images: Images | str | Path | None = None,
    progress: Progress = silent,
) -> Predictions:
    """Return the predictions of an assembled Keras model on a split. Raises DataError if the split is empty."""
    image_set = _image_set(chosen, split, images)
    logits = predict_logits(logits_of(model), image_set, progress=progress, step=_judging(split))
    return Predictions.of(image_set.labels, logits.argmax(axis=1), logits)


def _image_set(chosen: Chosen, split: str, images: Images | str | Path | None) -> ImageSet:
    """Return the images of a split as pixels: a fine-tuned backbone computes other features than the cache holds."""
    cache = chosen.run.cache()
    rows = rows_of_split(chosen.run, cache, split)
    return ImageSet(image_source(chosen, images), rows, cache.labels(rows), chosen.preprocess)


def _judging(split: str) -> str:
    """Return how progress calls the judging of a model."""
    return f"judge on {split} images"


def open_test(
    run: Run,
    images: Images | str | Path | None = None,
    chosen: Chosen | None = None,
    progress: Progress = silent,
) -> Final:
    """Open the test split: return what a head and the models fine-tuned from this run predict there.

    chosen: the head, by default the best. The opening is recorded, with its time and its result: see `opening`.
    Raises UsageError if the trial has no head. Raises DiskFault if the run cannot be written; test is then not opened.
    """
    run = Run.open(run.path)  # models may have been fine-tuned from it since
    chosen = chosen or run.best
    trial = chosen.trial
    if trial.status != "ok":
        raise UsageError(f"{run.path}@{trial.trial} has no head to judge: {trial.status}. Take {run.path}@best")
    run.looks()  # a damaged record must raise now, and not when test has been opened
    predictions: dict[str, Predictions] = {}
    models: dict[Path, str] = {}
    with opening([chosen]) as scores:
        refit = ", fitted on train and val" if chosen.refit else ""
        predictions[f"head {trial.trial} ({trial.head}{refit})"] = head_predictions(chosen, "test")
        for path in map(Path, run.tuned):
            if not path.exists():
                continue
            facts = read_facts(path)
            is_tuned_from_run = facts.get("run") == run.path.name and "finetuned" in facts
            if not is_tuned_from_run:
                continue  # another model has taken its file name
            image_set = _image_set(run[facts["trial"]], "test", images)
            logits = logits_of_file(path, image_set, progress, _judging("test"))
            name = _tuned_name(run, path)
            models[path] = name
            predictions[name] = Predictions.of(image_set.labels, logits.argmax(axis=1), logits)
        # After all predictions, so that nobody has seen a score if one of the models fails.
        for name, predictions_of_model in predictions.items():
            scores[name] = score_of(predictions_of_model, run.settings.metric)
    return Final(Run.open(run.path), scores, rows_of_split(run, run.cache(), "test"), predictions, models)


def _tuned_name(run: Run, model: Path) -> str:
    """Return the name of a model in the scores. It says so if no epoch was better, and the model is the head itself."""
    names = [Path(path).name for path in run.tuned]
    is_only_of_its_name = names.count(model.name) == 1
    name = f"fine-tuned {model.name if is_only_of_its_name else model}"
    file = record_of(run.path, model)
    if file.exists() and checked_record(file)["best"]["epoch"] == 0:
        name += " (epoch 0, the head: no other was better)"
    return name


@contextmanager
def opening(heads: Iterable[Chosen], split: str = "test") -> Iterator[dict[str, Score]]:
    """Record that the test split is opened for these heads, and let the block put scores into what it gets.

    The record is written before the first score is computed, in the run of each head and beside the cache, so that a
    kill after somebody saw a score cannot lose it. Afterwards the scores are added. If the block fails, nobody saw a
    score, and the record is withdrawn. Several heads in one block are one look at the data set. If nothing can be
    written beside the cache, the record in the run says so. Other splits leave no trace.
    Raises DiskFault if a run cannot be written, DataError without test images.
    """
    scores: dict[str, Score] = {}
    looks: dict[Path, dict[str, Any]] = {}
    # One name for the files of all heads, by which they count as one look.
    name, at = new_look()
    try:
        if split == "test":
            for head in heads:
                _begin_look(head, name, at, looks)
        yield scores
    except BaseException:  # also Ctrl-C
        for file in looks:
            with suppress(DiskFault):
                remove(file)
            with suppress(OSError):  # the folder holds other looks
                file.parent.rmdir()
        raise
    scores_of_models = {model: list(score) for model, score in scores.items()}
    # The records stand already. If this write fails, a look without scores is left, and that is the truth.
    for file, look in looks.items():
        write_record(file, look | {"scores": scores_of_models})


def _begin_look(head: Chosen, name: str, at: str, looks: dict[Path, dict[str, Any]]) -> None:
    """Record a look without scores in the run and beside its cache; put {file: look} into `looks`.

    name: of the file in both places, by which `Run.looks` recognises one look.
    """
    run = head.run
    cache = run.cache()
    rows = rows_of_split(run, cache, "test")
    num_labelled = sum(bool(row.label) for row in cache.usable("test"))
    look: dict[str, Any] = {
        "at": at,
        "run": str(run.path.resolve()),
        "trial": head.trial.trial,
        "images": digest_of_rows(rows),
        "num_images": len(rows),
        "scores": {},
    }
    if num_labelled > len(rows):
        look["left_out"] = num_labelled - len(rows)  # images that trained or chose a backbone
    if reviews := run.test_reviews():
        look["reviewed"] = len(reviews)  # labels of test images that a review changed
    labels = {row.label for row in rows}
    if unjudged := [class_name for class_name in run.classes if class_name not in labels]:
        look["unjudged"] = unjudged

    beside_cache = looks_beside(cache.path) / name
    in_run = run.path / LOOKS / name
    # A cache may lie where nobody can write. The record in the run is the one that must not fail.
    try:
        write_record(beside_cache, look)
        looks[beside_cache] = look
    except DiskFault as error:
        look = look | {"only_in_run": str(error)}
    # Before the file is written: if a write fails halfway, `opening` must still remove what is there.
    looks[in_run] = look
    write_record(in_run, look)


def rows_of_split(run: Run, cache: Cache, split: str) -> list[ImageRow]:
    """Return the images of a split that no backbone has seen. Raises DataError if there are none."""
    labelled = [row for row in cache.usable(split) if row.label]
    # The features of an image that trained a backbone are better than those of a new one, so it must not judge a head.
    rows = rows_that_judge(cache, labelled, split, single_taps(cache, run.settings.taps))
    if labelled and not rows:
        raise DataError(
            f"All {len(labelled)} {split} images trained or chose the backbone of {', '.join(run.settings.taps)}, so "
            "none can judge it. Extract with the `split` and `seed` that it was tuned with, into another `out`"
        )
    if not rows:
        raise DataError(
            f"{cache.path} has no {split} images. Add a folder '{split}' of class folders, or have all in class folders"
        )
    return rows
