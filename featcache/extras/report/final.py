"""The one place that opens the test split; that it was opened is recorded in the run and beside the cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featcache.cache.layout import looks_beside
from featcache.cache.reader import Cache
from featcache.errors import DataError, DiskFault, UsageError
from featcache.extras.report.judged import Judged
from featcache.files import remove
from featcache.images.manifest import Images
from featcache.models import image_source, load_model
from featcache.models.assemble import logits_of
from featcache.spec import ImageRow, Progress, silent
from featcache.sweeps import Chosen, Run
from featcache.sweeps.inputs import digest_of_rows, features_of, single_taps
from featcache.sweeps.metrics import Predictions, Score, score_of
from featcache.sweeps.records import LOOKS, new_look, read_record, write_record
from featcache.sweeps.unseen import rows_that_judge
from featcache.text import printable
from featcache.tuning.data import ImageSet
from featcache.tuning.train import predict_logits
from featcache.tuning.tuned import record_of


@dataclass(frozen=True)
class Final:
    """What came out on the test split."""

    run: Run  # with the record that test was opened
    scores: Mapping[str, Score]  # {name of the head or of a fine-tuned model: its score}, the head first
    rows: Sequence[ImageRow] = field(repr=False)  # the test images
    said: Mapping[str, Predictions] = field(repr=False)  # {name: what it predicts of them}
    models: Mapping[Path, str]  # {file of a fine-tuned model: its name}

    @property
    def classes(self) -> dict[str, list[dict[str, Any]]]:
        """Return by name what `Judged.per_class` tells of each class."""
        names = tuple(map(printable, self.run.classes))
        return {name: Judged(self.rows, said, names).per_class for name, said in self.said.items()}


def head_score(chosen: Chosen, split: str = "test") -> Score:
    """Return the score of a head on a split, from cached features. Raises DataError if the split is empty."""
    return score_of(head_said(chosen, split), chosen.run.settings.metric)


def head_said(chosen: Chosen, split: str) -> Predictions:
    """Return what a head predicts of the images of a split. Raises DataError if it is empty."""
    cache = chosen.run.cache()
    rows = rows_of_split(chosen.run, cache, split)
    predicted = chosen.estimator.predict(features_of(cache, rows, chosen.trial.tap))
    has_logits = chosen.trial.log_loss is not None
    return Predictions.of(cache.labels(rows), predicted, chosen.logits(rows) if has_logits else None)


def model_score(
    chosen: Chosen,
    model: Any,
    split: str = "test",
    images: Images | str | Path | None = None,
    progress: Progress = silent,
) -> Score:
    """Return the score of an assembled Keras model on the images of a split."""
    return score_of(model_said(chosen, model, split, images, progress), chosen.run.settings.metric)


def model_said(
    chosen: Chosen,
    model: Any,
    split: str,
    images: Images | str | Path | None = None,
    progress: Progress = silent,
) -> Predictions:
    """Return what an assembled Keras model predicts of the images of a split. Raises DataError if it is empty."""
    cache = chosen.run.cache()
    rows = rows_of_split(chosen.run, cache, split)
    judged = ImageSet(image_source(chosen, images), rows, cache.labels(rows), chosen.preprocess)
    logits = predict_logits(logits_of(model), judged, progress=progress, step=f"judge on {split} images")
    return Predictions.of(judged.labels, logits.argmax(axis=1), logits)


def final_scores(
    run: Run,
    images: Images | str | Path | None = None,
    chosen: Chosen | None = None,
    progress: Progress = silent,
) -> tuple[Run, dict[str, Score]]:
    """Open the test split as `open_test` does; return the run as it is then, and the scores alone."""
    final = open_test(run, images, chosen, progress)
    return final.run, dict(final.scores)


def open_test(
    run: Run,
    images: Images | str | Path | None = None,
    chosen: Chosen | None = None,
    progress: Progress = silent,
) -> Final:
    """Open the test split: return what a head and the models fine-tuned from this run predict there.

    chosen: the head, by default the best. That test was opened, when and with what result is recorded, see `opening`.
    Raises UsageError if the trial has no head, DiskFault if the run cannot be written: then test is not opened.
    """
    run = Run.open(run.path)  # models may have been fine-tuned from it since
    chosen = chosen or run.best
    number, status = chosen.trial.trial, chosen.trial.status
    if status != "ok":
        raise UsageError(f"{run.path}@{number} has no head to judge: {status}. Take {run.path}@best")
    run.looks()  # raises now if a record is damaged, not when test has been opened
    again = ", fitted on train and val" if chosen.refit else ""
    said: dict[str, Predictions] = {}
    models: dict[Path, str] = {}
    with opening([chosen]) as scores:
        said[f"head {number} ({chosen.trial.head}{again})"] = head_said(chosen, "test")
        for path in filter(Path.exists, map(Path, run.tuned)):
            model, facts = load_model(path)
            if (facts.get("run"), "finetuned" in facts) != (run.path.name, True):
                continue  # something else has taken its place
            models[path] = _tuned_name(run, path)
            said[models[path]] = model_said(run[facts["trial"]], model, "test", images, progress)
        scores |= {name: score_of(of_model, run.settings.metric) for name, of_model in said.items()}
    return Final(Run.open(run.path), scores, rows_of_split(run, run.cache(), "test"), said, models)


def _tuned_name(run: Run, model: Path) -> str:
    """Return what to call a model, which may be the head itself if no epoch was better on validation."""
    record = record_of(run.path, model)
    is_head = record.exists() and read_record(record)["best"]["epoch"] == 0
    is_only = sum(Path(other).name == model.name for other in run.tuned) == 1
    name = f"fine-tuned {model.name if is_only else model}"
    return name + (" (epoch 0, the head: no other was better)" if is_head else "")


@contextmanager
def opening(heads: Iterable[Chosen], split: str = "test") -> Iterator[dict[str, Score]]:
    """Record that the test split is opened for these heads, then let the block compute, and put into the scores.

    In the run of each head, and beside the cache, lies a record before the first score is computed, so that a kill
    after somebody saw a score cannot lose it. Afterwards it holds the scores, too. If the block fails nobody saw
    any, and the record is withdrawn. Several heads in one block are one look at the data set. Where nothing can be
    written beside the cache the record says so. Other splits leave no trace.
    Raises DiskFault if a run cannot be written, DataError without test images.
    """
    scores: dict[str, Score] = {}
    looks: dict[Path, dict[str, Any]] = {}
    name, at = new_look()
    try:
        for head in heads if split == "test" else ():
            _begin_look(head, name, at, looks)
        yield scores
    except BaseException:
        for file in looks:
            with suppress(DiskFault):
                remove(file)
            with suppress(OSError):  # other looks are in it
                file.parent.rmdir()
        raise
    for file, look in looks.items():
        write_record(file, look | {"scores": {name: list(found) for name, found in scores.items()}})


def _begin_look(head: Chosen, name: str, at: str, looks: dict[Path, dict[str, Any]]) -> None:
    """Record a look without scores in the run and beside its cache; put {file: look} into `looks`.

    name: of the file in both places, by which `Run.looks` knows that they are the same look.
    """
    run, cache = head.run, head.run.cache()
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
    judged = {row.label for row in rows}
    if unjudged := [name for name in run.classes if name not in judged]:
        look["unjudged"] = unjudged
    own, beside = run.path / LOOKS / name, looks_beside(cache.path) / name
    try:
        write_record(beside, look)
        looks[beside] = look
    except DiskFault as error:
        look = look | {"only_in_run": str(error)}
    looks[own] = look
    write_record(own, look)


def rows_of_split(run: Run, cache: Cache, split: str) -> list[ImageRow]:
    """Return the images of a split that can judge. Raises DataError if there are none."""
    labelled = [row for row in cache.usable(split) if row.label]
    rows = rows_that_judge(cache, labelled, split, single_taps(cache, run.settings.taps))
    if labelled and not rows:
        raise DataError(
            f"All {len(labelled)} {split} images trained or chose the backbone of {', '.join(run.settings.taps)}, so "
            "none can judge it. Extract with the --split and --seed that it was tuned with, into another -o"
        )
    if not rows:
        raise DataError(
            f"{cache.path} has no {split} images. Add a folder '{split}' of class folders, or have all in class folders"
        )
    return rows
