"""One HTML file of a run that needs nothing else: no network, no other file, opened from disk.

It runs its own script only, whose digest stands in its content security policy; what comes from users is text.
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
from featcache.extras.report.final import Final
from featcache.extras.report.judged import Judged
from featcache.extras.report.pictures import bits_of, picture, sheet
from featcache.extras.report.table import looks_text, reviewed_text, settings_of, unjudged_text
from featcache.extras.report.templates import render_page
from featcache.extras.report.trainings import Training, best_of, trainings_of
from featcache.files import write_whole
from featcache.images.manifest import Images
from featcache.images.sources import Source
from featcache.models import image_source
from featcache.outputs import Kind, check_output
from featcache.spec import ImageRow, Progress, silent
from featcache.sweeps import Chosen, Run
from featcache.sweeps.comparing import said_by
from featcache.sweeps.metrics import LOWER_IS_BETTER, Said, Score, score_of, value_of
from featcache.text import counted, printable

log = logging.getLogger(__name__)

MARKS = (b'<meta name="generator" content="featcache">', b": featcache report</title>")  # the latter of older pages
MARKED_BYTES = 4096  # of the beginning of a page, in which the mark stands


@dataclass(frozen=True)
class Report:
    """What stands in the page."""

    run: Run
    chosen: Chosen | None  # as it was when images chose it; None: no trial has a score
    source: Source | None  # of the images; None: they are gone
    is_named: bool = False  # the user asked for this head, so models from other heads are none of it
    final: Mapping[str, Score] | None = None
    tested: Final | None = None  # what the final scores are made of
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
    def trainings(self) -> list[Training]:
        """Return the models that were fine-tuned from the run."""
        return trainings_of(self.run, self.cache)

    @cached_property
    def head(self) -> Judged | None:
        """Return what the head predicts: of the images that chose it, or of validation where a tuned model was."""
        if self.chosen is None:
            return None
        if self.trainings and self.run.settings.cv:
            rows = self.run.rows(self.cache, "val")
            predicted = self.chosen.estimator.predict(self.chosen.features(rows))
            logits = None if self.chosen.trial.log_loss is None else self.chosen.logits(rows)
            return Judged(rows, Said.of(self.cache.labels(rows), predicted, logits), self.classes)
        return Judged(*said_by(self.chosen), self.classes)

    @cached_property
    def tuned(self) -> Training | None:
        """Return the fine-tuned model that the page is about; None where it is about the head."""
        if self.chosen is None or self.head is None:
            return None
        trial = self.chosen.trial.trial if self.is_named else None
        metric = self.run.settings.metric
        return best_of(self.trainings, trial, metric, value_of(self.head.said, metric))

    @cached_property
    def judged(self) -> Judged | None:
        """Return what the model that the page is about predicts of the images that chose it."""
        if self.tuned is not None and self.tuned.said is not None:
            return Judged(self.tuned.rows, self.tuned.said, self.classes)
        return None if self.chosen is None else Judged(*said_by(self.chosen), self.classes)

    @cached_property
    def tested_names(self) -> list[str]:
        """Return what the final scores call the model that the page is about, and then its head."""
        if self.tested is None:
            return []
        names = [next(iter(self.tested.said))]
        if self.tuned is not None and self.tuned.path in self.tested.models:
            names.insert(0, self.tested.models[self.tuned.path])
        return names

    def context(self) -> dict[str, Any]:
        """Return what the template reads."""
        run, judged = self.run, self.judged
        beside = self.head if self.tuned else None
        hidden = "test" if self.final is None else ""
        log.info("Looking for leaks and wrong labels")
        checks = checked(self.cache, hidden, self.moved if self.source else None, self.progress)
        head = "" if run.refitted is None else "@refit"
        log.info("Drawing the plots")
        return {
            "run": run,
            "best": self.chosen.trial if self.chosen else None,
            "is_best": self.chosen is not None and self.chosen.trial == run.best.trial,
            "final": self.final,
            "looks": looks_text(run),
            "test_reviewed": reviewed_text(run),
            "has_test": "test" in self.cache.splits,
            "how": _how(run),
            "less_is_better": run.settings.metric in LOWER_IS_BETTER,
            "final_command": f"featcache report {quote(f'{run.path}{head}')} --final",
            "review_command": f"featcache leaks {quote(str(self.cache.path))} --labels --html labels.html",
            "fix_command": f"featcache leaks {quote(str(self.cache.path))} --fix",
            "facts": self._facts(),
            "taps": self._taps(),
            "splits": self._splits(),
            "trials": [(trial, settings_of(trial)) for trial in run.ranked],
            "left_out": [trial for trial in run.trials if trial.status != "ok"],
            "curves": figures.of_scores(run, self.cache),
            "tuned": self.tuned,
            "score": judged and score_of(judged.said, run.settings.metric),
            "head_score": beside and score_of(beside.said, run.settings.metric),
            "test_score": self.tested.scores[self.tested_names[0]] if self.tested else None,
            "judged": judged,
            "plots_of_models": self._plots(judged, beside),
            "confused": judged and judged.confused,
            "classes_of": self._classes(judged, beside),
            "tests": self._tests(),
            "mistakes": judged and self._pictures(judged.mistakes),
            "uncertain": judged and self._pictures(judged.uncertain),
            "checks": checks,
            "pairs": pairs_of(checks, self.cache, self.source),
            "doubts": doubts_of(checks, self.cache, self.source),
            "map": self._map(),
            "trainings": self.trainings,
            "commands": commands(run, self.cache, [training.record for training in self.trainings]),
            "failures": self.cache.failures,
            "has_pictures": self.source is not None,
        }

    def _facts(self) -> list[tuple[str, str]]:
        run, cache = self.run, self.cache
        size = sum(file.stat().st_size for file in _files_of(cache.path))
        heads = sum(trial.size for trial in run.trials)
        return [
            ("Images", f"{len(cache.rows)} in {cache.images_from}, {len(cache.failures)} could not be read"),
            ("Classes", str(len(run.classes))),
            ("Chosen on", _how(run)),
            ("Features", f"{cache.path}, {size / 1e6:.1f} MB"),
            ("Sweep", f"{counted(len(run.trials), 'trial')} in {run.seconds:.1f} s; heads of {heads / 1e6:.1f} MB"),
            ("Seed", str(run.settings.seed)),
            *([("Settings", _settings(run))] if _settings(run) else []),
            *_makers(run),
        ]

    def _taps(self) -> list[dict[str, Any]]:
        stored = stored_rows(self.cache.path)
        taps = [self.cache.taps[name] for name in self.run.fingerprints]
        rows = [stored[tap.fingerprint] for tap in taps]
        return [
            {"tap": tap, "width": int(np.prod(one.shape)), "makers": list(map(_maker, one.makers))}
            for tap, one in zip(taps, rows, strict=True)
        ]

    def _splits(self) -> list[dict[str, Any]]:
        shown = ["train", "val", *(["test"] if "test" in self.cache.splits else [])]
        labels = {split: [row.label for row in self.cache.usable(split)] for split in shown}
        return [{"split": split, "images": len(found), "classes": len(set(found))} for split, found in labels.items()]

    def _plots(self, judged: Judged | None, beside: Judged | None) -> list[tuple[str, str]]:
        """Return (title, SVG) of confusion and calibration, those of the head beside those of a fine-tuned model."""
        found = []
        for name, model in (("", judged), ("The head: ", beside)):
            if model is None:
                continue
            name = f"{self.tuned.name}: " if self.tuned and not name else name
            title = f"{name}true classes (down) by predicted ones (across); shaded by share of the true class."
            found.append((title, plots.confusion(model.counts, self.classes, about=title)))
            if model.calibration is not None:
                title = (
                    f"{name}calibration: points on the dashed line are as right as they were sure. Expected "
                    f"calibration error {value_of(model.said, 'ece'):.3f}."
                )
                found.append((title, model.calibration))
        return found

    def _classes(self, judged: Judged | None, beside: Judged | None) -> list[dict[str, Any]]:
        """Return the scores of each class, with the head's recall where the page is about a fine-tuned model."""
        if judged is None:
            return []
        of_head = beside.per_class if beside else [{"recall": None}] * len(self.classes)
        return [{**row, "head": head["recall"]} for row, head in zip(judged.per_class, of_head, strict=True)]

    def _tests(self) -> dict[str, Any] | None:
        """Return what the model that the page is about does on the test split; None unless that was opened."""
        if self.tested is None:
            return None
        model, *head = [Judged(self.tested.rows, self.tested.said[name], self.classes) for name in self.tested_names]
        name = printable(self.tested_names[0])
        title = f"{name}, on the test split: true classes (down) by predicted ones (across)."
        return {
            "name": name,
            "images": len(self.tested.rows),
            "classes": self._classes(model, head[0] if head else None),
            "has_head": bool(head),
            "matrix": (title, plots.confusion(model.counts, self.classes, about=title)),
        }

    def _pictures(self, places_of: Classes) -> list[dict[str, Any]]:
        assert self.judged is not None
        said, classes = self.judged.said, self.judged.classes
        return [
            {
                "data": picture(self.source, self.judged.rows[at], bits_of(self.cache)),
                "path": printable(self.judged.rows[at].path),
                "true": classes[said.truth[at]],
                "predicted": classes[said.predicted[at]],
                "sure": None if said.confidence is None else float(said.confidence[at]),
                "head": classes[self.head.said.predicted[at]] if self.tuned and self.head else "",
            }
            for at in places_of
        ]

    def _map(self) -> dict[str, Any] | None:
        """Return the map of the images that trained and chose, of test only once it was opened."""
        if self.chosen is None:
            return None
        splits = ["train", "val", *(["test"] if self.final is not None and "test" in self.cache.splits else [])]
        rows = [row for split in splits for row in self.run.rows(self.cache, split)]
        shown = sorted(sorted(rows, key=lambda row: row.digest)[:MOST], key=lambda row: (row.label, row.path))
        said = self._said_of()
        log.info("Arranging %d images on the map", len(shown))
        at = places(self._seen(shown))
        points = [
            {
                "x": round(float(x), 4),
                "y": round(float(y), 4),
                "path": printable(row.path),
                "class": printable(row.label),
                "split": row.split,
                "predicted": printable(said.get(row.path, "")),
                "verdict": _verdict(said.get(row.path), row.label),
            }
            for row, (x, y) in zip(shown, at, strict=True)
        ]
        pictures = sheet(self.source, shown, bits_of(self.cache), self.progress)
        colours = {
            "class": plots.palette(self.classes),
            "split": plots.palette(splits),
            "verdict": {"right": plots.COLOURS[0], "mistake": "#e0443e", "not judged": plots.COLOURS[7]},
        }
        return {"points": points, "sheet": pictures, "colours": colours, "of": len(rows), "tap": self.chosen.trial.tap}

    def _seen(self, rows: Sequence[ImageRow]) -> Features:
        """Return features as the classifier sees them, after the steps before it."""
        assert self.chosen is not None
        features = self.chosen.features(rows)
        before = self.chosen.estimator[:-1]
        return np.asarray(before.transform(features)) if len(before) else features

    def _said_of(self) -> dict[str, str]:
        """Return {path: predicted class} of the images that were judged, as the class is called."""
        assert self.judged is not None
        judged = list(zip(self.judged.rows, self.judged.said.predicted, strict=True))
        if self.tested is not None:
            predicted = self.tested.said[self.tested_names[0]].predicted
            judged += zip(self.tested.rows, predicted, strict=True)
        return {row.path: self.run.classes[int(at)] for row, at in judged}


def is_report(path: Path) -> bool:
    """Return whether a file is a page that `write_report` wrote."""
    with path.open("rb") as file:
        beginning = file.read(MARKED_BYTES)
    return any(mark in beginning for mark in MARKS)


REPORT = Kind("report of featcache", is_report)


def check_page(run: Run, out: str | Path, images: Images | str | Path | None = None, *, force: bool = False) -> None:
    """Raise now what `write_report` would raise: DiskFault, ImagesChanged, UsageError if something else lies there."""
    path = Path(out)
    source = _source(run.best if run.ranked else None, images)
    check_output(path, REPORT, inputs=_files_read(run, path, source), force=force)


def _files_read(run: Run, out: Path, source: Source | None) -> list[Path]:
    """Return what a report is made of, if there is a file that it could replace: the run, its cache, its images."""
    if not out.is_file():
        return []
    cache = run.cache()
    root = cache.root if source is None or source.location is None else source.location
    archive = [root] if root.is_file() else []
    return [run.path, cache.path, *archive, *(root / row.path for row in cache.rows)]


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

    The page is about the best model that was fine-tuned from the run, with the best head beside it, or about that head.
    images: where the images lie now, for thumbnails; without any there are none. chosen: the head that is looked at;
    then only models from it count. final: scores on the test split, if it was opened; tested: what `open_test` found
    there, for the scores of each class and the map. force: replace what lies at `out` even if it is no earlier report.
    Raises NotARun, DiskFault, ImagesChanged, UsageError if something else lies at `out`.
    """
    path = run.path / "report.html" if out is None else Path(out)
    check_page(run, path, images, force=force)
    named = chosen or (run.best if run.ranked else None)
    head = named and replace(named, refit=False)
    source = _source(head, images)
    moved = None if isinstance(images, Images) else images
    report = Report(run, head, source, chosen is not None, final, tested, moved, progress)
    page = render(report).encode("utf-8", "replace")
    check_output(path, REPORT, inputs=_files_read(run, path, source), force=force)
    write_whole(path, page)
    return path


def render(report: Report) -> str:
    """Return the page."""
    filters = {"interval": _interval, "share": lambda value: f"{value:.3f}"}
    return render_page("page.html", script="page.js", styles=("page.css",), context=report.context(), filters=filters)


def _maker(text: str) -> str:
    """Return on one line what computed rows: the engine and the versions."""
    facts = json.loads(text)
    return ", ".join(f"{name} {value}" for name, value in facts.items() if name != "weights_source")


def _verdict(said: str | None, label: str) -> str:
    return "not judged" if said is None else "right" if said == label else "mistake"


def _source(head: Chosen | None, images: Images | str | Path | None) -> Source | None:
    if head is None:
        return None
    try:
        return image_source(head, images)
    except DataError:  # gone, or an archive that is damaged now
        if images is not None:
            raise
        return None


def _files_of(path: Path) -> list[Path]:
    return [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]


def _how(run: Run) -> str:
    cv = run.settings.cv
    way = "the validation split"
    if cv:
        way = "train, leaving one out" if cv == "loo" else f"train, by {cv}-fold cross-validation"
    text = f"{counted(run.num_select, 'image')} of {way}; {run.num_train} trained"
    if not run.unjudged:
        return text
    return f"{text}. {unjudged_text(run.unjudged, len(run.classes), 'training' if cv else 'validation')}"


def _settings(run: Run) -> str:
    asked = run.settings
    said = {"preset": asked.preset, "class weight": asked.class_weight, "images per class": asked.shots}
    said["budget"] = None if asked.budget is None else f"{asked.budget:g} s"
    return ", ".join(f"{name} {value}" for name, value in said.items() if value is not None)


def _makers(run: Run) -> list[tuple[str, str]]:
    """Return what the trials were made with; several versions and machines where a sweep went on elsewhere."""
    if not run.makers:
        return [("Versions", "not recorded: an earlier version of featcache made this run")]
    facts = []
    for maker in run.makers:
        versions = ", ".join(f"{name} {number}" for name, number in maker["versions"].items())
        cores = "1 core" if maker["cores"] == 1 else f"{maker['cores']} cores"
        hardware = [maker["processor"], cores, *maker["gpus"], maker["system"]]
        facts.append(("Versions", f"{versions}; code {maker['code']}"))
        facts.append(("Machine", ", ".join(filter(None, hardware))))
    return facts


def _interval(score: Any) -> str:
    value, low, high = score
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
