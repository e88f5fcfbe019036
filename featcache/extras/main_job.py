"""The main path in one go: extract, sweep, handoff, fine-tune, and a table that shows what transfer was worth."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featcache.cache.reader import Cache
from featcache.errors import TooFewClasses
from featcache.extraction import Extracted, extract
from featcache.extraction.api import CACHE
from featcache.extras.report.final import Final, head_predictions, model_predictions, opening, rows_of_split
from featcache.extras.report.html import REPORT, write_report
from featcache.images.embedded import write_digits
from featcache.images.manifest import Images, scan
from featcache.models import Certificate, handoff
from featcache.models.modelfile import MODEL
from featcache.outputs import check_output
from featcache.spec import Progress, silent
from featcache.sweeps import Chosen, Run, sweep
from featcache.sweeps.choosing import MIN_SELECT
from featcache.sweeps.metrics import score_of
from featcache.sweeps.run_paths import free_folder
from featcache.text import counted
from featcache.tuning import Tuned, finetune, from_scratch

SHOTS = 5
HEADS = "ridge,logreg,svm,softmax,knn,mlp:256"
WAYS = {
    "pixels": "raw pixels + logistic regression",
    "random": "random weights + best head",
    "features": "frozen features + best head",
    "tuned": "fine-tuned from the best head",
    "scratch": "trained from scratch, equal time",
}
FEW_HEADS = "ridge,logreg,svm,knn"  # the heads that a handful of images can train


@dataclass(frozen=True)
class Course:
    """How the stages run: tiny images allow more epochs and larger steps than photographs."""

    backbone: str
    pixels: str
    epochs: int
    batch: int
    learning_rate: float
    unfreeze: str


DIGITS = Course("glyphnet", "pixels:size=8", epochs=6, batch=64, learning_rate=5e-4, unfreeze="all")
PHOTOS = Course("mobilenet_v2", "pixels:size=32", epochs=3, batch=32, learning_rate=3e-5, unfreeze="last")


@dataclass(frozen=True)
class Way:
    """One way to a classifier, and its score on images that neither trained nor chose it."""

    name: str
    train_images: int
    test_score: float
    interval: tuple[float, float]
    seconds: float  # from images to classifier


@dataclass(frozen=True)
class Quickstart:
    """The results of all stages. `judged_on` is "test", or "val" if the folders have no test split."""

    folder: Path
    images: Images
    extracted: Extracted
    run: Run
    head: Chosen
    model: Any  # the head handed over: keras.Model with its certificate
    tuned: Tuned
    table: tuple[Way, ...]
    judged_on: str
    report: Path  # one HTML file
    seconds: float


@dataclass(frozen=True)
class ExtractedTap:
    """A tap of the cache, and how long it took to extract."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Compared:
    """The ways to a classifier from the same training images, side by side."""

    lines: tuple[Way, ...]
    metric: str
    judged_on: str  # as in Quickstart
    tested: Final | None = None  # the predictions on test; None without a test split


Part = Images | Extracted | Run | Certificate | Tuned | Compared  # what a quickstart makes, in this order


def quickstart(
    images: str | Path | None = None,
    out: str | Path = "quickstart",
    *,
    backbone: str | None = None,
    split: str | None = None,
    group_from: str | None = None,
    seed: int = 0,
    controls: bool = True,
    force: bool = False,
    progress: Progress = silent,
    seen: Callable[[Part], None] = lambda part: None,
) -> Quickstart:
    """Run the whole path on a folder of images, or on the embedded digits, and return the results.

    Everything is written under `out`; running again computes no feature twice. backbone: by default mobilenet_v2 with
    ImageNet weights, or glyphnet for the embedded digits. force: replace files under `out` that quickstart would write
    to, even if it did not make them. seen: called with each result as soon as it exists.

    The table compares, on the test split, the frozen features of the backbone and the model fine-tuned from the best
    head; and with controls, once with all training images and once with 5 per class (for training and for validation),
    also raw pixels with logistic regression, the backbone with random weights, and the same network trained from
    scratch for as long as fine-tuning took.
    """
    started = time.perf_counter()
    folder = Path(out)
    course = DIGITS if images is None else PHOTOS
    _check_folder(folder, [] if images is None else [Path(images)], force)
    root = write_digits(folder / "digits", force=force) if images is None else Path(images)
    manifest = scan(root, split=split, group_from=group_from, seed=seed, progress=progress).require_classes()
    _require_validation(manifest, root)
    seen(manifest)
    stages = _Stages(manifest, backbone or course.backbone, course, folder, seed, force, progress)

    cache = stages.extract("features")
    seen(cache.report)
    run = stages.sweep("features", None)
    seen(run)
    head = run.best_handoff
    (folder / "head.keras").unlink(missing_ok=True)  # of an earlier quickstart into this folder
    model = handoff(head, folder / "head.keras")
    seen(model.certificate)
    tuned = stages.finetune(head, None)
    seen(tuned)
    comparisons = [stages.compare(run, head, tuned, None, controls)]
    seen(comparisons[0])
    if controls and _has_more_than(SHOTS, cache):
        few = stages.sweep("features", SHOTS)
        comparisons.append(
            stages.compare(few, few.best_handoff, stages.finetune(few.best_handoff, SHOTS), SHOTS, controls)
        )
        seen(comparisons[1])

    tested = comparisons[0].tested
    report = write_report(
        Run.open(run.path),
        folder / "report.html",
        final=None if tested is None else tested.scores,
        tested=tested,
        force=force,
        progress=progress,
    )
    return Quickstart(
        folder=folder,
        images=manifest,
        extracted=cache.report,
        run=run,
        head=head,
        model=model,
        tuned=tuned,
        table=tuple(line for compared in comparisons for line in compared.lines),
        judged_on=comparisons[0].judged_on,
        report=report,
        seconds=time.perf_counter() - started,
    )


def _check_folder(folder: Path, read: list[Path], force: bool) -> None:
    """Raise UsageError or DiskFault unless all files of a quickstart may be written."""
    check_output(folder / "features.h5", CACHE, inputs=read, force=force)
    for name in ("head.keras", "model.keras", f"model-{SHOTS}-per-class.keras"):
        check_output(folder / name, MODEL, inputs=read, force=force)
    check_output(folder / "report.html", REPORT, inputs=read, force=force)


def _require_validation(manifest: Images, root: Path) -> None:
    """Raise TooFewClasses if there are too few validation images to choose on, before anything is computed."""
    num_val = manifest.splits.get("val", 0)
    if num_val < MIN_SELECT:
        raise TooFewClasses(
            f"{root} has {counted(num_val, 'validation image')}, and quickstart chooses on at least {MIN_SELECT}. Add "
            "images, or give more of them to validation: `split=50/50/0`. Or choose by cross-validation, step by step: "
            "featcache extract, then featcache sweep --cv 5"
        )


def _has_more_than(shots: int, cache: Cache) -> bool:
    """Return whether every class has more than `shots` training images."""
    labels = [row.label for row in cache.usable("train")]
    return min(labels.count(name) for name in cache.classes) > shots


@dataclass
class _Stages:
    """The stages of a quickstart. shots: images per class, None for all."""

    manifest: Images
    backbone: str
    course: Course
    folder: Path
    seed: int
    force: bool
    progress: Progress
    taps: dict[str, ExtractedTap] = field(default_factory=dict)  # {"features" | "random" | "pixels": tap}

    @property
    def cache_file(self) -> Path:
        """Return the cache, which holds all taps."""
        return self.folder / "features.h5"

    def extract(self, kind: str) -> Cache:
        """Extract the tap of this kind, unless it has been extracted, and return the cache."""
        specs = {"features": self.backbone, "random": f"{self.backbone}:weights=none", "pixels": self.course.pixels}
        if kind in self.taps:
            return Cache.open(self.cache_file)
        cache = extract(self.manifest, specs[kind], out=self.cache_file, force=self.force, progress=self.progress)
        self.taps[kind] = ExtractedTap(cache.report.taps[0].tap, cache.report.seconds)
        return cache

    def sweep(self, kind: str, shots: int | None) -> Run:
        """Fit heads on the tap of this kind."""
        cache = self.extract(kind)
        heads = HEADS if shots is None else FEW_HEADS
        return sweep(
            cache,
            "logreg" if kind == "pixels" else heads,
            taps=[self.taps[kind].name],
            out=free_folder(self.folder / "runs" / f"{kind}-{_label(shots)}"),
            cv=None if shots is None else SHOTS,
            shots=shots,
            seed=self.seed,
            progress=self.progress,
        )

    def finetune(self, head: Chosen, shots: int | None) -> Tuned:
        """Fine-tune from a head."""
        model = self.folder / ("model.keras" if shots is None else f"model-{_label(shots)}.keras")
        model.unlink(missing_ok=True)
        return finetune(
            head,
            model,
            unfreeze=self.course.unfreeze,
            epochs=self.course.epochs,
            batch=self.course.batch,
            learning_rate=self.course.learning_rate,
            seed=self.seed,
            progress=self.progress,
        )

    def compare(self, run: Run, head: Chosen, tuned: Tuned, shots: int | None, controls: bool) -> Compared:
        """Judge the best head on frozen features, the fine-tuned model and, if asked for, their controls."""
        runs, models = {"features": run}, {"tuned": tuned}
        if controls:
            runs |= {kind: self.sweep(kind, shots) for kind in ("pixels", "random")}
            models["scratch"] = from_scratch(
                head, max_seconds=tuned.seconds, batch=self.course.batch, seed=self.seed, progress=self.progress
            )
        spent = {kind: self.taps[kind].seconds + run.seconds for kind, run in runs.items()}
        spent |= {kind: model.seconds for kind, model in models.items()}
        spent["tuned"] += spent["features"]  # it starts from the head on the features
        judge = _judge(run.cache())
        with opening([run.best for run in runs.values()], judge) as scores:
            predictions = {kind: head_predictions(run.best, judge) for kind, run in runs.items()}
            for kind, model in models.items():
                predictions[kind] = model_predictions(head, model.model, judge, progress=self.progress)
            lines = []
            for kind, name in WAYS.items():
                if kind in predictions:
                    score = score_of(predictions[kind], run.settings.metric)
                    lines.append(Way(name, run.num_train, score.value, (score.low, score.high), spent[kind]))
                    scores[name] = score
        tested = None
        if judge == "test" and tuned.path is not None:
            shown = {WAYS[kind]: predictions[kind] for kind in ("features", "tuned")}
            rows = rows_of_split(run, run.cache(), judge)
            tested = Final(run, scores, rows, shown, {tuned.path: WAYS["tuned"]})
        return Compared(tuple(lines), run.settings.metric, judge, tested)


def _label(shots: int | None) -> str:
    return "all" if shots is None else f"{shots}-per-class"


def _judge(cache: Cache) -> str:
    return "test" if cache.splits.get("test") else "val"
