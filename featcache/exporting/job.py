"""Export: write into a folder aside, load with the runtime, compare, judge, and only then put it in its place."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from featcache.arrays import Floats
from featcache.assembly.modelfile import kind_of, read_facts
from featcache.backend import keras_backend, quietly, start_keras
from featcache.errors import EnvironmentFault, ExportFailed, FeatcacheError, UsageError
from featcache.exporting.formats import FORMATS, Format, format_of
from featcache.exporting.gates import Gate, judged
from featcache.exporting.graph import INPUT, OUTPUT
from featcache.exporting.origin import Origin, open_origin
from featcache.exporting.sample import Runner, Sample, sample_of
from featcache.files import disk_faults, place_folder, temporary_folder, write_whole
from featcache.outputs import Kind, check_output
from featcache.spec import choose
from featcache.sweeps.metrics import Metric, Score

log = logging.getLogger(__name__)

NUM_IMAGES = 64
OTHER_SIZE = 4  # images that are also compared at another size, where any size is taken
TOLERANCE = 1e-4  # of probabilities
LEAST_AGREEMENT = 0.9  # share of images on which 8 bits name the model's class
T = TypeVar("T")


@dataclass(frozen=True)
class Exported:
    """A file for another runtime, and how near it is to the model."""

    path: Path
    format: str
    runtime: str  # what loaded it again
    input: tuple[int | None, ...]  # the shape that it takes, uint8; None: any
    bytes: int
    sample: str  # which images it was compared on
    images: int
    difference: float  # of probabilities, the largest
    agreement: float  # share of the images on which both name the same class
    scores: Mapping[Metric, Score]  # of the file, on `judged_on` images
    model_scores: Mapping[Metric, Score]  # of the model
    judged_on: int = 0
    gates: tuple[str, ...] = ()


def export(
    model: str | Path,
    to: str | None,
    out: str | Path,
    *,
    int8: bool = False,
    images: str | Path | None = None,
    run: str | Path | None = None,
    gates: Sequence[str] = (),
    force: bool = False,
) -> Exported:
    """Write a model in another format, once its own runtime has given the model's probabilities there.

    model: MODEL.keras or RUN@best. to: keras, savedmodel, litert, onnx or openvino; None: by the name of `out`.
    out: the file to write, or the folder of a SavedModel. int8: quantise, of LiteRT. images: what to compare and judge
    on, instead of the validation images of the run. run: where that is, if not beside the model. gates: such as
    "balanced_accuracy>=0.9". force: replace what lies at `out` even if it is no earlier export to this format.
    Raises ExportFailed (and writes nothing) if it cannot be converted, differs by more than 1e-4 on 64 images, or
    misses a gate; EnvironmentFault if a package is missing; UsageError, NotAModel, NotARun, DataError.
    """
    path = Path(out)
    kind: Format = FORMATS[choose("--to", to or format_of(path), FORMATS)]
    asked = [Gate.parse(one) for one in gates]
    _check(kind, path, int8)
    _check_free(kind, path, model, [], force)
    kind.check_installed()  # now, not when Keras has started
    start_keras()
    with quietly():
        kind.require()
    origin = open_origin(str(model), run)
    sample = sample_of(origin, images)
    read = _files_of(origin, sample)
    _check_free(kind, path, model, read, force)
    judging = sample.labelled() if asked or int8 else None
    path = Path(os.path.realpath(path)) if path.is_symlink() else path  # the link stays one
    with disk_faults(path), temporary_folder(beside=path) as folder:
        made = folder / path.name
        runner = _made(kind, origin, sample, made, int8)
        found = _compared(kind, origin, sample, runner, int8)
        if judging is not None:
            found = _judged(found, origin, judging, runner, asked)
        _check_free(kind, path, model, read, force)
        _place(made, path)
    return replace(found, path=Path(out), bytes=_size(path))


def _check(kind: Format, path: Path, int8: bool) -> None:
    """Raise UsageError or EnvironmentFault for what cannot be meant, or cannot be done here."""
    if path.suffix != kind.suffix and kind.suffix:
        raise UsageError(f"--to {kind.name} takes an -o that ends in {kind.suffix}; got {path}")
    if int8 and kind.name != "litert":
        raise UsageError(f"--int8 goes with --to litert; got --to {kind.name}")
    if keras_backend() != "tensorflow":
        raise EnvironmentFault(f"Keras exports from TensorFlow: KERAS_BACKEND=tensorflow (now {keras_backend()})")


def _check_free(kind: Format, path: Path, model: str | Path, read: Sequence[Path], force: bool) -> None:
    """Raise UsageError or DiskFault unless the file, and the one beside it, may be written."""
    output = Kind(f"{kind.name} export of featcache", kind.is_ours, is_folder=not kind.suffix)
    if kind.name == "keras":
        facts = read_facts(Path(model)) if Path(model).is_file() else {}
        output = kind_of(facts)
    inputs = [Path(model), *read]
    check_output(path, output, inputs=inputs, force=force)
    for weights in _beside(path):
        of_ours = Kind(f"weights file of an earlier {path.name}", lambda _: kind.is_ours(path))
        check_output(weights, of_ours, inputs=inputs, force=force)


def _files_of(origin: Origin, sample: Sample) -> list[Path]:
    """Return what the export reads beside the model."""
    home = sample.source.location or Path()
    files = [home / row.path for row in sample.rows]
    if home.is_file():
        files = [home]
    if origin.chosen is not None:
        files += [origin.chosen.run.path, origin.chosen.run.cache().path]
    return files


def _made(kind: Format, origin: Origin, sample: Sample, made: Path, int8: bool) -> Runner:
    """Write the file and return what its runtime computes. Raises ExportFailed."""
    pixels = None
    if int8:
        few = replace(sample, rows=sample.calibration)
        pixels = few.first(len(few.rows), origin.preprocess)
    path = made.parent.parent / made.name  # what it will be called

    def write() -> None:
        with disk_faults(path):
            kind.write(origin, made, _facts(kind, origin, int8), pixels)

    def read() -> Runner:
        with disk_faults(path):  # a full disk may have cut the file off without a word
            return kind.read(made)

    log.info("Converting the model to %s", kind.name)
    _tried(kind, "cannot be made", write)
    log.info("Loading the %s file with %s", kind.name, kind.runtime)
    return _tried(kind, f"is not one that {kind.runtime} loads", read)


def _facts(kind: Format, origin: Origin, int8: bool) -> dict[str, Any]:
    preprocess = origin.preprocess
    return {
        **origin.facts,
        "format": kind.name,
        "int8": int8,
        "input": {"name": INPUT, "shape": kind.shape(preprocess.size), "dtype": "uint8", "channels": "RGB"},
        "output": {"name": OUTPUT, "shape": [kind.batch, len(origin.classes)]},
        "resize": preprocess.resize,
        "size": preprocess.size,
        "bits": preprocess.bits,
        "made_by": {name: version(name) for name in ("featcache", "keras", "tensorflow")},
    }


def _compared(kind: Format, origin: Origin, sample: Sample, runner: Runner, int8: bool) -> Exported:
    """Compare file and model on the first images. Raises ExportFailed, naming the image and class that differ most."""
    pixels = sample.first(NUM_IMAGES, origin.preprocess)
    log.info("Comparing file and model on %d images", len(pixels))
    found, wanted = _tried(kind, "does not run", lambda: runner(pixels)), _probabilities(origin)(pixels)
    _check_same(kind, origin, sample, found, wanted, 1.0 if int8 else TOLERANCE)
    if kind.any_size:
        other = replace(origin.preprocess, size=origin.preprocess.size * 3 // 2)
        pixels = sample.first(OTHER_SIZE, other)
        again = _tried(kind, "does not run", lambda: runner(pixels))
        _check_same(kind, origin, sample, again, _probabilities(origin)(pixels), TOLERANCE)
    return Exported(
        path=Path(),
        format=kind.name,
        runtime=kind.ran_by,
        input=tuple(kind.shape(origin.preprocess.size)),
        bytes=0,
        sample=sample.name,
        images=len(found),
        difference=float(np.abs(found - wanted).max()),
        agreement=float((found.argmax(axis=1) == wanted.argmax(axis=1)).mean()),
        scores={},
        model_scores={},
    )


def _check_same(kind: Format, origin: Origin, sample: Sample, found: Floats, wanted: Floats, tolerance: float) -> None:
    if found.shape != wanted.shape:
        raise ExportFailed(f"The {kind.name} file gives {found.shape}, the model {wanted.shape}. Nothing was written")
    apart = np.abs(found - wanted)
    if apart.max() <= tolerance:
        return
    image, at = divmod(int(np.argmax(np.nan_to_num(apart, nan=np.inf))), apart.shape[1])
    raise ExportFailed(
        f"The {kind.name} file does not give the model's probabilities: of {sample.rows[image].path}, class "
        f"'{origin.classes[at]}', {found[image, at]:.6f} instead of {wanted[image, at]:.6f} (allowed {tolerance:g}). "
        "Nothing was written"
    )


def _judged(found: Exported, origin: Origin, sample: Sample, runner: Runner, gates: Sequence[Gate]) -> Exported:
    """Judge file and model on all labelled images. Raises ExportFailed if a gate is missed."""
    log.info("Judging file and model on %d images", len(sample.rows))
    of_file, of_model = sample.probabilities([runner, _probabilities(origin)], origin.preprocess)
    metrics: list[Metric] = list(dict.fromkeys(["accuracy", *(gate.metric for gate in gates)]))
    scores = {name: judged(of_file, sample.labels, name) for name in metrics}
    agreement = float((of_file.argmax(axis=1) == of_model.argmax(axis=1)).mean())
    count = len(sample.rows)
    for gate in gates:
        if not gate.holds(scores[gate.metric]):
            raise ExportFailed(
                f"--assert {gate} is not met: {scores[gate.metric].value:.4f} on {count} of {sample.name}. "
                "Nothing was written"
            )
    if agreement < LEAST_AGREEMENT:
        raise ExportFailed(
            f"The {found.format} file names the model's class on {agreement:.1%} of {count} of {sample.name} only, "
            f"less than {LEAST_AGREEMENT:.0%}. Nothing was written"
        )
    model_scores = {name: judged(of_model, sample.labels, name) for name in metrics}
    said = tuple(map(str, gates))
    return replace(found, scores=scores, model_scores=model_scores, judged_on=count, gates=said, agreement=agreement)


def _probabilities(origin: Origin) -> Runner:
    return lambda pixels: np.asarray(origin.model.predict_on_batch(pixels))


def _tried(kind: Format, what: str, work: Callable[[], T]) -> T:
    """Return what `work` returns; say in one line what is wrong if it fails: converters raise almost anything."""
    try:
        with quietly():
            return work()
    except (FeatcacheError, OSError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ExportFailed(
            f"The {kind.name} file {what}: {reason}. Nothing was written; another --to may do"
        ) from error


def _place(made: Path, path: Path) -> None:
    """Put what was made where it belongs, whole: a file, a file with its weights beside it, or a folder."""
    if made.is_dir():
        place_folder(made, path)
        return
    for one in sorted(made.parent.iterdir()):  # the .bin of an .xml before it
        write_whole(path.with_name(one.name), one.read_bytes())


def _size(path: Path) -> int:
    parts = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path, *_beside(path)]
    return sum(one.stat().st_size for one in parts)


def _beside(path: Path) -> list[Path]:
    return [path.with_suffix(".bin")] if path.suffix == ".xml" else []
