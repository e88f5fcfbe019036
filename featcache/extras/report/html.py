"""One HTML file about a run that needs nothing else: no network, no other file, opened from disk.

It runs only its own script, whose digest is in its content security policy. Text from users is escaped.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from featcache.arrays import Classes, Features
from featcache.cache.reader import Cache, stored_rows
from featcache.errors import DataError
from featcache.extras.report import figures, plots
from featcache.extras.report.checks import checked, doubts_of, pairs_of
from featcache.extras.report.commands import commands
from featcache.extras.report.embedding import MOST, places
from featcache.extras.report.evaluation import Evaluation
from featcache.extras.report.final import Final, predictions_of_rows
from featcache.extras.report.pictures import bits_of, picture, sheet
from featcache.extras.report.table import looks_text, reviewed_text, unjudged_text
from featcache.extras.report.templates import has_mark, render_page
from featcache.extras.report.tuned_models import TunedModel, best_of, tuned_models_of
from featcache.files import write_whole
from featcache.images.manifest import Images
from featcache.images.sources import Source
from featcache.models import image_source
from featcache.models.probe import by_digest
from featcache.outputs import Kind, check_output
from featcache.spec import SPLITS, ImageRow, Progress, silent
from featcache.sweeps import Chosen, Run
from featcache.sweeps.comparing import predictions_on_selection
from featcache.sweeps.metrics import LOWER_IS_BETTER, Score, score_of, value_of
from featcache.sweeps.trial import settings_of
from featcache.text import counted, interval, printable

log = logging.getLogger(__name__)

MARKS = (b'<meta name="generator" content="featcache">', b": featcache report</title>")  # the latter in older pages
REPORT = Kind("report of featcache", lambda path: has_mark(path, *MARKS))


@dataclass(frozen=True)
class Report:
    """The content of the page."""

    run: Run
    chosen: Chosen | None  # the head, as the images chose it; None if no trial has a score
    source: Source | None  # of the images; None if they are gone
    is_named: bool = False  # the user asked for this head, so the page leaves out models tuned from other heads
    final: Mapping[str, Score] | None = None
    tested: Final | None = None  # predictions behind the final scores
    moved: str | Path | None = None  # where the images are now
    progress: Progress = field(default=silent, repr=False)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Return the class names as they can be shown."""
        return tuple(map(printable, self.run.classes))

    @cached_property
    def cache(self) -> Cache:
        """Return the cache of the run."""
        return self.run.cache()

    @cached_property
    def tuned_models(self) -> list[TunedModel]:
        """Return the models that were fine-tuned from the run."""
        return tuned_models_of(self.run, self.cache)

    @cached_property
    def head(self) -> Evaluation | None:
        """Return the head's predictions of the images that chose it; beside a tuned model, of the validation images."""
        if self.chosen is None:
            return None
        if self.tuned_models and self.run.settings.selection.is_within_train:
            # Folds chose the head, but the validation images chose the tuned models: compare on these.
            rows = self.run.rows(self.cache, "val")
            return Evaluation(rows, predictions_of_rows(self.chosen, self.cache, rows), self.classes)
        return self._head_as_chosen

    @cached_property
    def tuned(self) -> TunedModel | None:
        """Return the fine-tuned model that the page is about; None if it is about the head."""
        if self.chosen is None or self.head is None:
            return None
        trial = self.chosen.trial.trial if self.is_named else None
        metric = self.run.settings.metric
        score_of_head = value_of(self.head.predictions, metric)
        return best_of(self.tuned_models, trial, metric, score_of_head)

    @cached_property
    def main(self) -> Evaluation | None:
        """Return the predictions of the model that the page is about, of the images that chose it."""
        if self.tuned is not None and self.tuned.predictions is not None:
            return Evaluation(self.tuned.rows, self.tuned.predictions, self.classes)
        return self._head_as_chosen

    @cached_property
    def _head_as_chosen(self) -> Evaluation | None:
        """Return the head's predictions of the images that chose it."""
        if self.chosen is None:
            return None
        rows, predictions = predictions_on_selection(self.chosen)
        return Evaluation(rows, predictions, self.classes)

    @cached_property
    def tested_names(self) -> list[str]:
        """Return the names in the final scores of the model that the page is about and, if that is tuned, its head."""
        if self.tested is None:
            return []
        names = [next(iter(self.tested.predictions))]
        if self.tuned is not None and self.tuned.path in self.tested.models:
            names.insert(0, self.tested.models[self.tuned.path])
        return names

    def context(self) -> dict[str, Any]:
        """Return the variables of the template."""
        run, main = self.run, self.main
        beside = self.head if self.tuned else None
        # To doubt the labels of test is to look at it, so this waits until it is opened.
        hidden = "test" if self.final is None else ""
        log.info("Looking for leaks and wrong labels")
        checks = checked(self.cache, hidden, self.moved if self.source else None, self.progress)
        trial = self.chosen.trial if self.chosen else None
        refit = "" if run.refitted is None else "@refit"
        cache_file = quote(str(self.cache.path))
        log.info("Drawing the plots")
        return {
            "run": run,
            "best": trial,
            "is_best": trial is not None and trial == run.best.trial,
            "final": self.final,
            "looks": looks_text(run),
            "test_reviewed": reviewed_text(run),
            "has_test": "test" in self.cache.splits,
            "how": _how(run),
            "less_is_better": run.settings.metric in LOWER_IS_BETTER,
            "final_command": f"featcache report {quote(f'{run.path}{refit}')} --final",
            "review_command": f"featcache leaks {cache_file} --labels --html labels.html",
            "fix_command": f"featcache leaks {cache_file} --fix",
            "facts": self._facts(),
            "taps": self._taps(),
            "splits": self._splits(),
            "trials": [(trial, settings_of(trial)) for trial in run.ranked],
            "left_out": [trial for trial in run.trials if trial.status != "ok"],
            "curves": figures.of_scores(run, self.cache),
            "tuned": self.tuned,
            "score": main and score_of(main.predictions, run.settings.metric),
            "head_score": beside and score_of(beside.predictions, run.settings.metric),
            "test_score": self.tested.scores[self.tested_names[0]] if self.tested else None,
            "judged": main,
            "plots_of_models": self._plots(main, beside),
            "confused": main and main.confused,
            "classes_of": _classes(main, beside),
            "tests": self._tests(),
            "mistakes": main and self._pictures(main.mistakes),
            "uncertain": main and self._pictures(main.uncertain),
            "checks": checks,
            "pairs": pairs_of(checks, self.cache, self.source),
            "doubts": doubts_of(checks, self.cache, self.source),
            "map": self._map(),
            "trainings": self.tuned_models,
            "commands": commands(run, self.cache, [model.record for model in self.tuned_models]),
            "failures": self.cache.failures,
            "has_pictures": self.source is not None,
        }

    def _facts(self) -> list[tuple[str, str]]:
        run, cache = self.run, self.cache
        files = [cache.path]
        if cache.path.is_dir():
            files = [file for file in cache.path.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        heads = sum(trial.size for trial in run.trials)
        facts = [
            ("Images", f"{len(cache.rows)} in {cache.images_from}, {len(cache.failures)} could not be read"),
            ("Classes", str(len(run.classes))),
            ("Chosen on", _how(run)),
            ("Features", f"{cache.path}, {size / 1e6:.1f} MB"),
            ("Sweep", f"{counted(len(run.trials), 'trial')} in {run.seconds:.1f} s; heads of {heads / 1e6:.1f} MB"),
            ("Seed", str(run.settings.seed)),
        ]
        settings = _settings(run)
        if settings:
            facts.append(("Settings", settings))
        return facts + _makers(run)

    def _taps(self) -> list[dict[str, Any]]:
        stored = stored_rows(self.cache.path)
        taps: list[dict[str, Any]] = []
        for name in self.run.fingerprints:
            tap = self.cache.taps[name]
            rows = stored[tap.fingerprint]
            width = int(np.prod(rows.shape))
            taps.append({"tap": tap, "width": width, "makers": [_maker(facts) for facts in rows.makers]})
        return taps

    def _splits(self) -> list[dict[str, Any]]:
        splits: list[dict[str, Any]] = []
        for split in SPLITS:
            if split == "test" and "test" not in self.cache.splits:
                continue
            labels = [row.label for row in self.cache.usable(split)]
            splits.append({"split": split, "images": len(labels), "classes": len(set(labels))})
        return splits

    def _plots(self, main: Evaluation | None, beside: Evaluation | None) -> list[tuple[str, str]]:
        """Return (title, SVG) of confusion and calibration; for a fine-tuned model, the head's plots beside them."""
        prefix = f"{self.tuned.name}: " if self.tuned else ""
        figures: list[tuple[str, str]] = []
        for name, model in ((prefix, main), ("The head: ", beside)):
            if model is None:
                continue
            title = f"{name}true classes (down) by predicted ones (across); shaded by share of the true class."
            figures.append((title, plots.confusion(model.counts, self.classes, about=title)))
            if model.calibration is not None:
                title = (
                    f"{name}calibration: points on the dashed line are as right as they were sure. Expected "
                    f"calibration error {value_of(model.predictions, 'ece'):.3f}."
                )
                figures.append((title, model.calibration))
        return figures

    def _tests(self) -> dict[str, Any] | None:
        """Return the test results of the model that the page is about; None unless the test split was opened."""
        if self.tested is None:
            return None
        evaluations: list[Evaluation] = []
        for tested_name in self.tested_names:
            predictions = self.tested.predictions[tested_name]
            evaluations.append(Evaluation(self.tested.rows, predictions, self.classes))
        model, *head = evaluations
        name = printable(self.tested_names[0])
        title = f"{name}, on the test split: true classes (down) by predicted ones (across)."
        return {
            "name": name,
            "images": len(self.tested.rows),
            "classes": _classes(model, *head),
            "has_head": bool(head),
            "matrix": (title, plots.confusion(model.counts, self.classes, about=title)),
        }

    def _pictures(self, numbers: Classes) -> list[dict[str, Any]]:
        assert self.main is not None
        predictions, classes = self.main.predictions, self.main.classes
        bits = bits_of(self.cache)
        pictures: list[dict[str, Any]] = []
        for number in numbers:
            row = self.main.rows[number]
            card: dict[str, Any] = {
                "data": picture(self.source, row, bits),
                "path": printable(row.path),
                "true": classes[predictions.truth[number]],
                "predicted": classes[predictions.predicted[number]],
                "sure": None,
                "head": "",
            }
            if predictions.confidence is not None:
                card["sure"] = float(predictions.confidence[number])
            if self.tuned and self.head:
                # A tuned model and its head are compared on the same images, in the same order.
                card["head"] = classes[self.head.predictions.predicted[number]]
            pictures.append(card)
        return pictures

    def _map(self) -> dict[str, Any] | None:
        """Return the map of the training and validation images, and of test images once test was opened."""
        if self.chosen is None:
            return None
        splits = ["train", "val"]
        if self.final is not None and "test" in self.cache.splits:
            splits.append("test")
        rows: list[ImageRow] = []
        for split in splits:
            rows += self.run.rows(self.cache, split)
        sample = by_digest(rows)[:MOST]
        shown = sorted(sample, key=lambda row: (row.label, row.path))
        log.info("Arranging %d images on the map", len(shown))
        predicted_by_path = self._predicted_by_path()
        points: list[dict[str, Any]] = []
        # As the classifier gets them: without its scaling, a few large features would decide the map alone.
        coordinates = places(self._prepared_features(shown))
        for row, (x, y) in zip(shown, coordinates, strict=True):
            predicted = predicted_by_path.get(row.path)
            points.append(
                {
                    "x": round(float(x), 4),
                    "y": round(float(y), 4),
                    "path": printable(row.path),
                    "class": printable(row.label),
                    "split": row.split,
                    "predicted": printable(predicted or ""),
                    "verdict": _verdict(predicted, row.label),
                }
            )
        # In the order of the points, by which the page finds the thumbnail of each.
        pictures = sheet(self.source, shown, bits_of(self.cache), self.progress)
        colours = {
            "class": plots.palette(self.classes),
            "split": plots.palette(splits),
            "verdict": {"right": plots.COLOURS[0], "mistake": "#e0443e", "not judged": plots.COLOURS[7]},
        }
        return {"points": points, "sheet": pictures, "colours": colours, "of": len(rows), "tap": self.chosen.trial.tap}

    def _prepared_features(self, rows: Sequence[ImageRow]) -> Features:
        """Return features as the classifier gets them, after the steps before it."""
        assert self.chosen is not None
        features = self.chosen.features(rows)
        steps = self.chosen.estimator[:-1]
        if not len(steps):
            return features
        return np.asarray(steps.transform(features))

    def _predicted_by_path(self) -> dict[str, str]:
        """Return {path: name of the predicted class}."""
        assert self.main is not None
        rows = list(self.main.rows)
        numbers = list(self.main.predictions.predicted)
        if self.tested is not None:
            name = self.tested_names[0]
            rows += self.tested.rows
            numbers += list(self.tested.predictions[name].predicted)
        class_of: dict[str, str] = {}
        for row, number in zip(rows, numbers, strict=True):
            class_of[row.path] = self.run.classes[number]
        return class_of


def _classes(main: Evaluation | None, beside: Evaluation | None = None) -> list[dict[str, Any]]:
    """Return the scores of each class, with the head's recall if there is a head beside the model."""
    if main is None:
        return []
    if beside is None:
        return [{**scores, "head": None} for scores in main.per_class]
    both = zip(main.per_class, beside.per_class, strict=True)
    return [{**scores, "head": head_scores["recall"]} for scores, head_scores in both]


def check_page(run: Run, out: str | Path, images: Images | str | Path | None = None, *, force: bool = False) -> None:
    """Raise early what `write_report` would raise: DiskFault, ImagesChanged, UsageError if another file is there."""
    path = Path(out)
    source = _source(run.best if run.ranked else None, images)
    check_output(path, REPORT, inputs=_files_read(run, path, source), force=force)


def _files_read(run: Run, out: Path, source: Source | None) -> list[Path]:
    """Return the files that a report reads (run, cache, images), if there is a file at `out` that could be one."""
    if not out.is_file():
        return []
    cache = run.cache()
    root = cache.root
    if source is not None and source.location is not None:
        root = source.location
    archive = [root] if root.is_file() else []
    images = [root / row.path for row in cache.rows]
    return [run.path, cache.path, *archive, *images]


def write_report(
    run: Run,
    out: str | Path | None = None,
    *,
    images: Images | str | Path | None = None,
    chosen: Chosen | None = None,
    final: Mapping[str, Score] | None = None,
    tested: Final | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Path:
    """Write one HTML file of a run (default: report.html in its folder) and return its path.

    The page is about the best model that was fine-tuned from the run, beside its best head; else about that head.
    images: where the images lie now; if they are gone, the page has no thumbnails. chosen: the head to report on; the
    page then shows only models tuned from it. final: scores on the test split, if it was opened. tested: what
    `open_test` returned, for the scores of each class and the map. force: replace any file at `out`.
    Raises NotARun, DiskFault, ImagesChanged, UsageError if something else than a report lies at `out`.
    """
    path = run.path / "report.html" if out is None else Path(out)
    check_page(run, path, images, force=force)
    head = chosen or (run.best if run.ranked else None)
    if head is not None:
        # The refitted head has seen the validation images, which must not judge it.
        head = replace(head, refit=False)
    source = _source(head, images)
    moved = None if isinstance(images, Images) else images
    report = Report(run, head, source, chosen is not None, final, tested, moved, progress)
    page = render(report).encode("utf-8", "replace")
    # Again, because rendering takes a while and another file may lie there by now.
    check_output(path, REPORT, inputs=_files_read(run, path, source), force=force)
    write_whole(path, page)
    return path


def render(report: Report) -> str:
    """Return the page."""
    filters = {"interval": lambda score: interval(*score), "share": lambda value: f"{value:.3f}"}
    return render_page("page.html", script="page.js", styles=("page.css",), context=report.context(), filters=filters)


def _maker(text: str) -> str:
    """Return on one line which engine and versions computed rows."""
    facts = json.loads(text)
    return ", ".join(f"{name} {value}" for name, value in facts.items() if name != "weights_source")


def _verdict(predicted: str | None, label: str) -> str:
    if predicted is None:
        return "not judged"
    return "right" if predicted == label else "mistake"


def _source(head: Chosen | None, images: Images | str | Path | None) -> Source | None:
    if head is None:
        return None
    try:
        return image_source(head, images)
    except DataError:  # the images are gone, or in an archive that is damaged
        if images is not None:
            raise
        return None


def _how(run: Run) -> str:
    selection = run.settings.selection
    origin = f"train, {selection.describe()}" if selection.is_within_train else "the validation split"
    text = f"{counted(run.num_select, 'image')} of {origin}; {run.num_train} trained"
    if not run.unjudged:
        return text
    images = "training" if selection.is_within_train else "validation"
    return f"{text}. {unjudged_text(run.unjudged, len(run.classes), images)}"


def _settings(run: Run) -> str:
    settings = run.settings
    values = {
        "preset": settings.preset,
        "class weight": settings.class_weight,
        "images per class": settings.shots,
        "training images in": "all cached views" if settings.train_views else None,
        "budget": None if settings.budget is None else f"{settings.budget:g} s",
    }
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _makers(run: Run) -> list[tuple[str, str]]:
    """Return the versions and machines that made the trials; several if a sweep was continued elsewhere."""
    if not run.makers:
        return [("Versions", "not recorded: an earlier version of featcache made this run")]
    facts: list[tuple[str, str]] = []
    for maker in run.makers:
        versions = ", ".join(f"{name} {number}" for name, number in maker["versions"].items())
        facts.append(("Versions", f"{versions}; code {maker['code']}"))
        cores = counted(maker["cores"], "core")
        hardware = [maker["processor"], cores, *maker["gpus"], maker["system"]]
        facts.append(("Machine", ", ".join(filter(None, hardware))))
    return facts
