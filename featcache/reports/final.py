"""The one place that opens the test split; that it was opened is written into the run."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from featcache.assembly import image_source, load_model
from featcache.assembly.assemble import logits_of
from featcache.cache.reader import Cache
from featcache.errors import DataError, UsageError
from featcache.files import read_json
from featcache.images.manifest import Images
from featcache.spec import ImageRow
from featcache.sweeps import Chosen, Run
from featcache.sweeps.metrics import OF_LABELS, Score, score
from featcache.sweeps.run import features_of, single_taps
from featcache.sweeps.unseen import judging
from featcache.tuning.data import ImageSet
from featcache.tuning.train import predict_logits
from featcache.tuning.tuned import record_of


def head_score(chosen: Chosen, split: str = "test") -> Score:
    """Return the score of a head on a split, from cached features. Raises DataError if the split is empty."""
    cache = chosen.run.cache()
    rows = _rows(chosen.run, cache, split)
    metric = chosen.run.settings.metric
    predicted = chosen.estimator.predict(features_of(cache, rows, chosen.trial.tap))
    return score(cache.labels(rows), predicted, metric, None if metric in OF_LABELS else chosen.logits(rows))


def model_score(chosen: Chosen, model: Any, split: str = "test", images: Images | str | Path | None = None) -> Score:
    """Return the score of an assembled Keras model on the images of a split."""
    cache = chosen.run.cache()
    rows = _rows(chosen.run, cache, split)
    judged = ImageSet(image_source(chosen, images), rows, cache.labels(rows), chosen.preprocess)
    logits = predict_logits(logits_of(model), judged)
    return score(judged.labels, logits.argmax(axis=1), chosen.run.settings.metric, logits)


def final_scores(
    run: Run, images: Images | str | Path | None = None, chosen: Chosen | None = None
) -> tuple[Run, dict[str, Score]]:
    """Open the test split: return the scores there of a head and of the models fine-tuned from this run.

    chosen: the head, by default the best. That test was opened, when and with what result is written into the run.
    Raises UsageError if the trial has no head.
    """
    run = Run.open(run.path)  # models may have been fine-tuned from it since
    chosen = chosen or run.best
    number, status = chosen.trial.trial, chosen.trial.status
    if status != "ok":
        raise UsageError(f"{run.path}@{number} has no head to judge: {status}. Take {run.path}@best")
    again = ", fitted on train and val" if chosen.refit else ""
    scores = {f"head {number} ({chosen.trial.head}{again})": head_score(chosen)}
    for path in filter(Path.exists, map(Path, run.tuned)):
        model, facts = load_model(path)
        if (facts.get("run"), "finetuned" in facts) != (run.path.name, True):
            continue  # something else has taken its place
        scores[_tuned_name(run, path)] = model_score(run[facts["trial"]], model, "test", images)
    return record_opened(run, "test", scores), scores


def _tuned_name(run: Run, model: Path) -> str:
    """Return what to call a model, which may be the head itself if no epoch was better on validation."""
    record = record_of(run.path, model)
    is_head = record.exists() and read_json(record)["best"]["epoch"] == 0
    return f"fine-tuned {model.name}" + (" (epoch 0, the head: no other was better)" if is_head else "")


def record_opened(run: Run, split: str, scores: Mapping[str, Score]) -> Run:
    """Write into the run that its test split was opened, when, and what was seen. Other splits leave no trace."""
    if split != "test":
        return run
    opened: dict[str, Any] = {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "scores": {name: list(found) for name, found in scores.items()},
    }
    now = Run.open(run.path)
    cache = now.cache()
    labelled = [row for row in cache.usable(split) if row.label]
    if left_out := len(labelled) - len(now.rows(cache, split)):
        opened["left_out"] = left_out  # images that trained or chose a backbone
    now = replace(now, test_opened=(*now.test_opened, opened))
    now.save()
    return now


def _rows(run: Run, cache: Cache, split: str) -> list[ImageRow]:
    """Return the images of a split that can judge. Raises DataError if there are none."""
    labelled = [row for row in cache.usable(split) if row.label]
    rows = judging(cache, labelled, split, single_taps(cache, run.settings.taps))
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
