"""The main path in one go: extract, sweep, handoff, fine-tune, and a table that shows what transfer was worth."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featcache.cache.reader import Cache
from featcache.errors import TooFewClasses
from featcache.extraction import Extracted
from featcache.extras.main_path import MainPath, check_folder
from featcache.extras.report.final import Final, head_predictions, model_predictions, opening, rows_of_split
from featcache.extras.report.html import REPORT, write_report
from featcache.images.embedded import write_digits
from featcache.images.manifest import Images, scan
from featcache.models import Certificate
from featcache.models.modelfile import MODEL
from featcache.outputs import check_output
from featcache.spec import Progress, silent
from featcache.sweeps import Chosen, Run
from featcache.sweeps.choosing import MIN_SELECT
from featcache.sweeps.metrics import score_of
from featcache.sweeps.run_paths import free_folder
from featcache.text import counted
from featcache.tuning import Tuned, from_scratch

SHOTS = 5
HEAD = "head.keras"
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
    """What suits the images: tiny ones allow more epochs and larger steps than photographs."""

    backbone: str
    pixels: str
    training: Mapping[str, Any]  # options of `finetune`


DIGITS = Course("glyphnet", "pixels:size=8", {"unfreeze": "all", "epochs": 6, "learning_rate": 5e-4, "batch": 64})
PHOTOS = Course("mobilenet_v2", "pixels:size=32", {"unfreeze": "last", "epochs": 3, "learning_rate": 3e-5, "batch": 32})


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
    inputs = [] if images is None else [Path(images)]
    check_folder(folder, [_model_name(None), _model_name(SHOTS)], inputs=inputs, force=force)
    for name, kind in ((HEAD, MODEL), ("report.html", REPORT)):
        check_output(folder / name, kind, inputs=inputs, force=force)
    root = write_digits(folder / "digits", force=force) if images is None else Path(images)
    manifest = scan(root, split=split, group_from=group_from, seed=seed, progress=progress).require_classes()
    _require_validation(manifest, root)
    seen(manifest)

    path = MainPath(folder, manifest, force, progress)
    ways = _Ways(path, backbone or course.backbone, course, seed, controls)
    extracted = ways.extract("features")
    seen(extracted)
    run = ways.sweep("features")
    seen(run)
    head = run.best_handoff
    model = path.handoff(head, HEAD)
    seen(model.certificate)
    tuned = ways.finetune(head)
    seen(tuned)
    comparisons = [ways.compare(run, head, tuned)]
    seen(comparisons[0])
    if controls and _has_more_than(SHOTS, run.cache()):
        few = replace(ways, shots=SHOTS)
        run_on_few = few.sweep("features")
        head_of_few = run_on_few.best_handoff
        comparisons.append(few.compare(run_on_few, head_of_few, few.finetune(head_of_few)))
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
        extracted=extracted,
        run=run,
        head=head,
        model=model,
        tuned=tuned,
        table=tuple(line for compared in comparisons for line in compared.lines),
        judged_on=comparisons[0].judged_on,
        report=report,
        seconds=time.perf_counter() - started,
    )


def _require_validation(manifest: Images, root: Path) -> None:
    """Raise TooFewClasses if there are too few validation images to choose on, before anything is computed."""
    num_val = manifest.splits.get("val", 0)
    if num_val < MIN_SELECT:
        raise TooFewClasses(
            f"{root} has {counted(num_val, 'validation image')}, and quickstart chooses on at least {MIN_SELECT}. Add "
            "images, or give more of them to validation: `split=50/50/0`. Or choose by cross-validation, step by step: "
            "featcache extract IMAGES -o CACHE.h5, then featcache sweep CACHE.h5 --cv 5"
        )


def _has_more_than(shots: int, cache: Cache) -> bool:
    """Return whether every class has more than `shots` training images."""
    labels = [row.label for row in cache.usable("train")]
    return min(labels.count(name) for name in cache.classes) > shots


@dataclass(frozen=True)
class _Ways:
    """The ways to a classifier that quickstart compares. shots: images per class, None for all."""

    path: MainPath
    backbone: str
    course: Course
    seed: int
    controls: bool
    shots: int | None = None

    def extract(self, kind: str) -> Extracted:
        """Extract the tap of this kind: features, random or pixels."""
        backbones = {"features": self.backbone, "random": f"{self.backbone}:weights=none", "pixels": self.course.pixels}
        return self.path.extract(backbone=backbones[kind])

    def sweep(self, kind: str) -> Run:
        """Fit heads on the tap of this kind."""
        heads = HEADS if self.shots is None else FEW_HEADS
        return self.path.sweep(
            self.extract(kind),
            free_folder(self.path.folder / "runs" / f"{kind}-{_label(self.shots)}"),
            heads="logreg" if kind == "pixels" else heads,
            cv=None if self.shots is None else SHOTS,
            shots=self.shots,
            seed=self.seed,
        )

    def finetune(self, head: Chosen) -> Tuned:
        """Fine-tune from a head."""
        return self.path.finetune(head, _model_name(self.shots), seed=self.seed, **self.course.training)

    def compare(self, run: Run, head: Chosen, tuned: Tuned) -> Compared:
        """Judge the best head on frozen features, the fine-tuned model and, if asked for, their controls."""
        runs, models = {"features": run}, {"tuned": tuned}
        if self.controls:
            runs |= {kind: self.sweep(kind) for kind in ("pixels", "random")}
            batch = self.course.training["batch"]
            models["scratch"] = from_scratch(
                head, max_seconds=tuned.seconds, batch=batch, seed=self.seed, progress=self.path.progress
            )
        spent = {kind: self.extract(kind).seconds + run.seconds for kind, run in runs.items()}
        spent |= {kind: model.seconds for kind, model in models.items()}
        spent["tuned"] += spent["features"]  # it starts from the head on the features
        judge = _judge(run.cache())
        with opening([run.best for run in runs.values()], judge) as scores:
            predictions = {kind: head_predictions(run.best, judge) for kind, run in runs.items()}
            for kind, model in models.items():
                predictions[kind] = model_predictions(head, model.model, judge, progress=self.path.progress)
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


def _model_name(shots: int | None) -> str:
    """Return the file of the fine-tuned model."""
    return "model.keras" if shots is None else f"model-{_label(shots)}.keras"


def _label(shots: int | None) -> str:
    return "all" if shots is None else f"{shots}-per-class"


def _judge(cache: Cache) -> str:
    return "test" if cache.splits.get("test") else "val"
