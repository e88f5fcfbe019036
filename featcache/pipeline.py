"""The main job in one go: extract, sweep, handoff, fine-tune, and the table that says what transfer was worth."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.assembly import handoff
from featcache.assembly.modelfile import MODEL
from featcache.cache.reader import Cache
from featcache.errors import TooFewClasses
from featcache.extraction import Extracted, extract
from featcache.extraction.job import CACHE
from featcache.images.embedded import write_digits
from featcache.images.manifest import Images, scan
from featcache.outputs import check_output
from featcache.reports.final import head_score, model_score, opening
from featcache.reports.html import REPORT, write_report
from featcache.spec import Progress, silent
from featcache.sweeps import Chosen, Run, sweep
from featcache.sweeps.metrics import Score
from featcache.sweeps.run import free_folder
from featcache.sweeps.tasks import MIN_SELECT
from featcache.tuning import Tuned, finetune, from_scratch

SHOTS = 5
HEADS = "ridge,logreg,svm,softmax,knn,mlp:256"
FEW_HEADS = "ridge,logreg,svm,knn"  # what a handful of images can tell apart


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
class Line:
    """One way to a classifier, and how it does on images that neither trained nor chose it."""

    name: str
    train_images: int
    test_score: float
    interval: tuple[float, float]
    seconds: float  # from images to classifier


@dataclass(frozen=True)
class Quickstart:
    """What the job did. `judged_on` is "test", or "val" where the folders have no test split."""

    folder: Path
    images: Images
    extracted: Extracted
    run: Run
    head: Chosen
    model: Any  # the head handed over: keras.Model with its certificate
    tuned: Tuned
    table: tuple[Line, ...]
    judged_on: str
    report: Path  # one HTML file
    seconds: float


@dataclass(frozen=True)
class _Taps:
    """The cache with its three taps, and how long each took to extract."""

    cache: Cache
    seconds: dict[str, float]  # {"features" | "random" | "pixels": seconds}
    names: dict[str, str]


@dataclass(frozen=True)
class _Half:
    """One half of the table: all training images, or a few per class."""

    run: Run
    head: Chosen
    tuned: Tuned
    lines: tuple[Line, ...]


def quickstart(
    images: str | Path | None = None,
    out: str | Path = "quickstart",
    *,
    backbone: str | None = None,
    split: str | None = None,
    group_from: str | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress = silent,
) -> Quickstart:
    """Run the whole path on a folder of images, or on the embedded digits, and return what it did.

    Everything is written under `out`; running again computes no feature twice. backbone: mobilenet_v2 with
    ImageNet weights unless told otherwise, glyphnet for the embedded digits. force: replace files under `out` that
    stand where quickstart writes and are not its own. The table compares, on the test
    split, once with all training images and once with 5 per class (for training and for validation): raw pixels
    with logistic regression, the backbone with random weights, its frozen features, the model fine-tuned from the
    best head, and the same network trained from scratch for as long as fine-tuning took.
    """
    started = time.perf_counter()
    folder = Path(out)
    course = DIGITS if images is None else PHOTOS
    _check_folder(folder, [] if images is None else [Path(images)], force)
    root = write_digits(folder / "digits", force=force) if images is None else Path(images)
    manifest = scan(root, split=split, group_from=group_from, seed=seed, progress=progress).require_classes()
    _require_validation(manifest, root)
    taps, extracted = _extract(manifest, backbone or course.backbone, course, folder / "features.h5", force, progress)
    halves = [_half(taps, course, shots, folder, seed, progress) for shots in _shots(taps.cache)]
    first = halves[0]
    (folder / "head.keras").unlink(missing_ok=True)  # of an earlier quickstart into this folder
    judge = _judge(taps.cache)
    found = {line.name: Score(line.test_score, *line.interval) for line in first.lines} if judge == "test" else None
    report = write_report(Run.open(first.run.path), folder / "report.html", final=found, force=force, progress=progress)
    return Quickstart(
        folder=folder,
        images=manifest,
        extracted=extracted,
        run=first.run,
        head=first.head,
        model=handoff(first.head, folder / "head.keras"),
        tuned=first.tuned,
        table=tuple(line for half in halves for line in half.lines),
        judged_on=judge,
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
    """Raise TooFewClasses if next to no image is left to choose on, before anything is computed."""
    num_val = manifest.splits.get("val", 0)
    if num_val < MIN_SELECT:
        raise TooFewClasses(
            f"{root} has {num_val} validation images, and quickstart chooses on at least {MIN_SELECT}. Add images, or "
            "give more of them to validation: --split 50/50/0. Or choose by cross-validation, step by step: featcache "
            "extract, then featcache sweep --cv 5"
        )


def _extract(
    manifest: Images, backbone: str, course: Course, out: Path, force: bool, progress: Progress
) -> tuple[_Taps, Extracted]:
    specs = {"features": backbone, "random": f"{backbone}:weights=none", "pixels": course.pixels}
    caches = {kind: extract(manifest, spec, out=out, force=force, progress=progress) for kind, spec in specs.items()}
    reports: dict[str, Extracted] = {kind: cache.report for kind, cache in caches.items()}
    seconds = {kind: report.seconds for kind, report in reports.items()}
    names = {kind: report.taps[0].tap for kind, report in reports.items()}
    return _Taps(caches["pixels"], seconds, names), reports["features"]


def _shots(cache: Cache) -> list[int | None]:
    """All images, and a few per class where every class has more than that."""
    labels = [row.label for row in cache.usable("train")]
    return [None, SHOTS] if min(labels.count(name) for name in cache.classes) > SHOTS else [None]


def _half(taps: _Taps, course: Course, shots: int | None, folder: Path, seed: int, progress: Progress) -> _Half:
    judge = _judge(taps.cache)
    label = "all" if shots is None else f"{shots}-per-class"

    def swept(kind: str, heads: str) -> Run:
        return sweep(
            taps.cache,
            heads,
            taps=[taps.names[kind]],
            out=free_folder(folder / "runs" / f"{kind}-{label}"),
            cv=None if shots is None else SHOTS,
            shots=shots,
            seed=seed,
            progress=progress,
        )

    heads = HEADS if shots is None else FEW_HEADS
    runs = {
        "pixels": swept("pixels", "logreg"),
        "random": swept("random", heads),
        "features": swept("features", heads),
    }
    head = runs["features"].best_handoff
    model = folder / ("model.keras" if shots is None else f"model-{label}.keras")
    model.unlink(missing_ok=True)
    tuned = finetune(
        head,
        model,
        unfreeze=course.unfreeze,
        epochs=course.epochs,
        batch=course.batch,
        learning_rate=course.learning_rate,
        seed=seed,
        progress=progress,
    )
    scratch = from_scratch(head, max_seconds=tuned.seconds, batch=course.batch, seed=seed, progress=progress)
    spent = {kind: taps.seconds[kind] + run.seconds for kind, run in runs.items()}
    num_train = head.run.num_train
    with opening([run.best for run in runs.values()], judge) as scores:
        of_heads = {kind: head_score(run.best, judge) for kind, run in runs.items()}
        lines = (
            _line("raw pixels + logistic regression", num_train, of_heads["pixels"], spent["pixels"]),
            _line("random weights + best head", num_train, of_heads["random"], spent["random"]),
            _line("frozen features + best head", num_train, of_heads["features"], spent["features"]),
            _line(
                "fine-tuned from the best head",
                num_train,
                model_score(head, tuned.model, judge),
                spent["features"] + tuned.seconds,
            ),
            _line(
                "trained from scratch, equal time",
                num_train,
                model_score(head, scratch.model, judge),
                scratch.seconds,
            ),
        )
        scores |= {line.name: Score(line.test_score, *line.interval) for line in lines}
    return _Half(runs["features"], head, tuned, lines)


def _line(name: str, num_train: int, score: Score, seconds: float) -> Line:
    return Line(name, num_train, score.value, (score.low, score.high), seconds)


def _judge(cache: Cache) -> str:
    return "test" if cache.splits.get("test") else "val"
