"""Run a recipe: extract -> a sweep of exactly its head -> fine-tune -> table; or name photos."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featcache.backbones import tutorials
from featcache.backbones.imagenet import imagenet_classifier, imagenet_files
from featcache.backbones.weights import file_of
from featcache.errors import DataError, UsageError
from featcache.extraction import Extracted
from featcache.extras.main_path import MainPath, check_folder
from featcache.extras.recipes import cifar
from featcache.extras.recipes.catalogue import MODEL, RUN, Naming, Training, find
from featcache.extras.recipes.overrides import Settings
from featcache.heads.grids import parse_grid
from featcache.images.embedded import write_digits
from featcache.images.manifest import Images, scan
from featcache.prediction import Prediction, predictions
from featcache.spec import BackboneSpec, ImageRow, Progress, Tick, silent
from featcache.sweeps import Advice, Chosen, Run, advise
from featcache.tuning import Recipe, Tuned
from featcache.tuning.train import Epoch
from featcache.tuning.training_recipe import control_names

MEANINGLESS = "`small=True`: random weights, a handful of images, hardly any training. The figures mean NOTHING"
CONTROLS = {
    "frozen": "frozen",
    "unfrozen": "unfrozen",
    "scratch": "from scratch",
    "own": "the file's own classifier, trained on",
}


@dataclass(frozen=True)
class Line:
    """One way to a classifier, and how it does on validation."""

    name: str
    val: float
    interval: tuple[float, float]
    epochs: int  # that it trained
    seconds: float  # of the head: extraction, too; of fine-tuning: what was computed once, too


@dataclass(frozen=True)
class Trained:
    """What a recipe that trains did."""

    recipe: Training
    small: bool
    folder: Path
    images: Images
    extracted: Extracted
    run: Run
    head: Chosen
    tuned: Tuned
    table: tuple[Line, ...]
    commands: tuple[str, ...]  # its steps as they are typed
    advice: Advice | None
    seconds: float


@dataclass(frozen=True)
class Named:
    """What the recipe that names photos found."""

    recipe: Naming
    small: bool
    predictions: tuple[Prediction, ...]
    seconds: float


def run_recipe(
    name: str,
    images: str | Path | None = None,
    out: str | Path | None = None,
    *,
    model: str | None = None,
    tap: str | None = None,
    epochs: int | None = None,
    settings: Settings | None = None,
    small: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> Trained | Named:
    """Run the recipe of that name on these images and return what it did; all that it makes lies in `out`.

    model, tap: of "own-model", the file and the layer to cut at. epochs: most epochs of fine-tuning, instead of the
    recipe's. settings: other options of its steps, as in {"finetune": {"learning_rate": 1e-5}, "head": {"epochs": 5}};
    the steps are scan, extract, sweep, head and finetune, of "imagenet" predict. small: the same path in seconds, with
    random weights and few images (the embedded digits if there are none), to try it. force: replace files in `out` that
    stand where the recipe writes and are not its own.
    The same call again computes no feature twice and goes on where it was stopped.
    Raises UsageError, NoImages (which data to put where), WeightsMissing (which weights), DataError.
    """
    started = time.perf_counter()
    recipe = find(name)
    if small and isinstance(recipe, Training):
        recipe = recipe.small()
    recipe = recipe.with_settings(settings or {})
    _check(recipe, images, model, tap, epochs, small)
    folder = Path(out if out is not None else name)
    if small:
        progress(Tick("small", 0, 0, MEANINGLESS))
    if isinstance(recipe, Naming):
        return _name(recipe, images, folder, small, force, progress)

    recipe = recipe.with_settings({"extract": _given(backbone=model, tap=tap), "finetune": _given(epochs=epochs)})
    training = recipe.step("finetune")
    Recipe(**{name: value for name, value in training.items() if name != "controls"})  # refuses what cannot be meant
    inputs = [] if images is None else [Path(images)]
    check_folder(folder, [MODEL], controls=control_names(training["controls"]), inputs=inputs, force=force)
    place = _place(recipe, images, folder, small, force)
    if recipe.takes_model:
        small_model = tutorials.write_small_model(folder / "model.hdf5")
        recipe = recipe.with_settings({"extract": {"backbone": str(small_model)}})
    commands = recipe.commands(str(place), folder)
    for line in (f"{recipe.name}, step by step:", *commands):
        progress(Tick("recipe", 0, 0, line))

    manifest = _images(recipe, place, is_given=images is not None, progress=progress)
    path = MainPath(folder, manifest, force, progress)
    extracted = path.extract(**recipe.step("extract"))
    advice = advise(path.cache, progress=progress) if recipe.advice else None
    step = recipe.step("sweep")
    run = path.sweep(extracted, folder / RUN, **step | {"grid": parse_grid(step["grid"])})
    head = run.best_handoff
    tuned = path.finetune(head, MODEL, **training)
    return Trained(
        recipe=recipe,
        small=small,
        folder=folder,
        images=manifest,
        extracted=extracted,
        run=run,
        head=head,
        tuned=tuned,
        table=_table(recipe, extracted, run, head, tuned),
        commands=tuple(commands),
        advice=advice,
        seconds=time.perf_counter() - started,
    )


def weights_of(recipe: Training | Naming) -> list[Path]:
    """Return the files that a recipe needs beside its images, where they are looked for."""
    if isinstance(recipe, Naming):
        return imagenet_files()
    if recipe.takes_model:
        return []
    reads = recipe.step("extract")
    file = file_of(BackboneSpec(reads["backbone"]), reads["size"])
    return [] if file is None else [file]


def _given(**options: Any) -> dict[str, Any]:
    """Return the options that have a value."""
    return {name: value for name, value in options.items() if value is not None}


def _check(
    recipe: Training | Naming,
    images: str | Path | None,
    model: str | None,
    tap: str | None,
    epochs: int | None,
    small: bool,
) -> None:
    """Raise UsageError for what cannot be meant."""
    trains, own = isinstance(recipe, Training), isinstance(recipe, Training) and recipe.takes_model
    if (model is not None or tap is not None) and not own:
        raise UsageError(f"`model` and `tap` go with the recipe own-model; '{recipe.name}' has its network")
    if own and model is None and not small:
        raise UsageError(f"Recipe '{recipe.name}' takes {recipe.data}")
    if epochs is not None and not trains:
        raise UsageError(f"Recipe '{recipe.name}' trains nothing, so it takes no `epochs`")
    if epochs is not None and epochs < 1:
        raise UsageError(f"`epochs` takes a number from 1; got {epochs}")
    if images is None and not small and recipe.name != "cifar":
        raise UsageError(f"Recipe '{recipe.name}' takes IMAGES: {recipe.data}. To try it without: `small=True`")


def _images(recipe: Training, place: Path, *, is_given: bool, progress: Progress) -> Images:
    """Return the manifest of the recipe's images. is_given: by the user."""
    scanned = scan(place, progress=progress, **recipe.step("scan")).require_classes()
    manifest = scanned
    if recipe.test_as_val:
        manifest = _test_as_val(manifest)
    if not is_given and recipe.num_classes:
        labels = list(manifest.classes)[: recipe.num_classes]
        manifest = replace(manifest, rows=tuple(row for row in manifest.rows if row.label in labels))
    if recipe.num_classes not in (None, len(manifest.classes)):
        raise DataError(
            f"Recipe '{recipe.name}' is about {recipe.num_classes} classes; {place} has {len(manifest.classes)}: "
            f"{', '.join(manifest.classes)}"
        )
    rows = _few(manifest.rows, recipe.per_class)
    # Other rows, or other splits, than options of `scan` give: no command lists these images again.
    return replace(manifest, rows=rows, listing=scanned.listing if rows == scanned.rows else None)


def _place(recipe: Training | Naming, images: str | Path | None, folder: Path, small: bool, force: bool) -> Path:
    """Return where the images are: where the user says, CIFAR-10 where Keras has it, or the embedded digits."""
    if images is None and small:
        return write_digits(folder / "digits", force=force)
    if recipe.name != "cifar":
        return Path(str(images))
    path = Path(images) if images is not None else cifar.at_home()
    folder.mkdir(parents=True, exist_ok=True)
    return cifar.as_arrays(path, folder / "cifar10.npz", num_train=10_000, num_val=2_000)


def _test_as_val(images: Images) -> Images:
    """Return the images with a test folder, if any, as validation and all other images as training."""
    is_test = [row.split == "test" and row.path in images.given for row in images.rows]
    if not any(is_test):
        return images
    splits = ["val" if test else "train" for test in is_test]
    rows = [row._replace(split=split) for row, split in zip(images.rows, splits, strict=True)]
    return replace(images, rows=tuple(rows), given=frozenset(row.path for row in rows))


def _few(rows: tuple[ImageRow, ...], per_class: Mapping[str, int]) -> tuple[ImageRow, ...]:
    """Return the first rows of every class and split, at most as many as per_class allows; all rows if it is empty."""
    if not per_class:
        return rows
    seen: Counter[tuple[str, str]] = Counter()
    kept = []
    for row in rows:
        seen[row.label, row.split] += 1
        if seen[row.label, row.split] <= per_class.get(row.split, 0):
            kept.append(row)
    return tuple(kept)


def _table(recipe: Training, extracted: Extracted, run: Run, head: Chosen, tuned: Tuned) -> tuple[Line, ...]:
    requested: int = recipe.options["head"]["epochs"]
    epochs = getattr(head.estimator[-1], "n_epochs_", requested)  # fewer, where it stopped early
    lines = [_line("head on frozen features", tuned.start, int(epochs), extracted.seconds + run.seconds)]
    lines.append(_line(recipe.tuned, tuned.best, len(tuned.trained), tuned.seconds))
    for name, control in tuned.controls.items():
        if name == "own":  # it starts from a classifier that somebody has trained
            lines.append(_line("the file's own classifier, as it is", control.start, 0, control.start.seconds))
        lines.append(_line(CONTROLS[name], control.best, len(control.trained), control.seconds))
    return tuple(lines)


def _line(name: str, epoch: Epoch, epochs: int, seconds: float) -> Line:
    return Line(name, epoch.val.value, (epoch.val.low, epoch.val.high), epochs, seconds)


def _name(
    recipe: Naming, images: str | Path | None, folder: Path, small: bool, force: bool, progress: Progress
) -> Named:
    started = time.perf_counter()
    network = imagenet_classifier(random=small or recipe.weights == "none", small=small)
    where = _place(recipe, images, folder, small, force)
    photos = _one_of_each(scan(where)) if small else where
    named = predictions(network.model, network.names, network.preprocess, photos, top=recipe.top, progress=progress)
    return Named(recipe, small, tuple(named), time.perf_counter() - started)


def _one_of_each(images: Images) -> Images:
    """Return the first image of every class."""
    first = {row.label: row for row in reversed(images.rows)}
    return replace(images, rows=tuple(sorted(first.values())))
