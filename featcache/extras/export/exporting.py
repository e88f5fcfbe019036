"""Export a model: write a temporary file, load it with its own runtime, compare it with the model, then rename it.

Nothing lies at the output path before the file has passed every check, so a failed export leaves an earlier file alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from featcache.arrays import Floats, Pixels
from featcache.backend import keras_backend, quietly, start_keras
from featcache.errors import EnvironmentFault, ExportFailed, FeatcacheError, UsageError
from featcache.extras.export.formats import FORMATS, Format, format_of
from featcache.extras.export.gates import Gate, score_probabilities
from featcache.extras.export.origin import Origin, check_origin, open_origin
from featcache.extras.export.runtime_model import OUTPUT
from featcache.extras.export.sample import Runner, Sample, sample_of
from featcache.files import disk_faults, place_folder, temporary_folder, write_whole
from featcache.images.manifest import scan
from featcache.models.assemble import INPUT
from featcache.models.certificate import load_pixels
from featcache.models.modelfile import kind_of, read_facts
from featcache.outputs import Kind, check_output
from featcache.spec import choose
from featcache.sweeps.metrics import Metric, Score

log = logging.getLogger(__name__)

NUM_IMAGES = 64
OTHER_SIZE = 4  # images that are also compared at another size, if the format takes any size
TOLERANCE = 1e-4  # largest difference of a probability
LEAST_AGREEMENT = 0.9  # share of images on which file and model must predict the same class
T = TypeVar("T")


@dataclass(frozen=True)
class Exported:
    """A file for another runtime, and how close it is to the model."""

    path: Path
    format: str
    runtime: str  # what loaded the file
    input: tuple[int | None, ...]  # the shape of uint8 images that it takes; None for an axis of any length
    bytes: int
    sample: str  # which images it was compared on
    images: int
    difference: float  # the largest of all probabilities
    agreement: float  # share of the images on which file and model predict the same class
    scores: Mapping[Metric, Score]  # of the file, on `judged_on` images
    model_scores: Mapping[Metric, Score]  # of the model, on the same images
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
    out: the file to write, or the folder of a SavedModel. int8: quantise (LiteRT only). images: compare and score on
    these images instead of the run's validation images. run: the run that the model came from, if it is not beside the
    model. gates: scores that the file must reach, such as "balanced_accuracy>=0.9". force: replace what lies at `out`
    even if it is no earlier export to this format.
    Raises ExportFailed (and writes nothing) if the model cannot be converted, differs by more than 1e-4 on 64 images,
    or misses a gate; EnvironmentFault if a package is missing; UsageError, NotAModel, NotARun, DataError.
    """
    path = Path(out)
    file_format: Format = FORMATS[choose("to", to or format_of(path), FORMATS)]
    required = [Gate.parse(gate) for gate in gates]
    _check_options(file_format, path, int8)
    _check_output(file_format, path, model, [], force)
    # What can be wrong is found before Keras starts, which takes seconds.
    file_format.check_installed()
    check_origin(str(model))
    own_images = None if images is None else scan(images)
    start_keras()
    with quietly():
        file_format.require()

    origin = open_origin(str(model), run)
    sample = sample_of(origin, own_images)
    # Again, because only now it is known which files are read.
    inputs = _files_read(origin, sample)
    _check_output(file_format, path, model, inputs, force)
    labelled = sample.labelled() if required or int8 else None
    if path.is_symlink():
        path = Path(os.path.realpath(path))  # replace the file that the link points to, not the link

    with disk_faults(path), temporary_folder(beside=path) as folder:
        temporary = folder / path.name
        runner = _write_and_load(file_format, origin, sample, temporary, int8)
        exported = _compare(file_format, origin, sample, runner, int8)
        if labelled is not None:
            exported = _score(exported, origin, labelled, runner, required)
        # Converting takes minutes, in which another program may have written to the path.
        _check_output(file_format, path, model, inputs, force)
        place(temporary, path)
    files = [path, *_weights_beside(path)]
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
    num_bytes = sum(file.stat().st_size for file in files)
    return replace(exported, path=Path(out), bytes=num_bytes)


def _check_options(file_format: Format, path: Path, int8: bool) -> None:
    """Raise UsageError for options that contradict each other, EnvironmentFault for a backend that cannot export."""
    if path.suffix != file_format.suffix and file_format.suffix:
        raise UsageError(f"`to={file_format.name}` takes an `out` that ends in {file_format.suffix}; got {path}")
    if int8 and file_format.name != "litert":
        raise UsageError(f"`int8` goes with `to=litert`; got `to={file_format.name}`")
    if keras_backend() != "tensorflow":
        raise EnvironmentFault(f"Keras exports from TensorFlow: KERAS_BACKEND=tensorflow (now {keras_backend()})")


def _check_output(file_format: Format, path: Path, model: str | Path, others_read: Sequence[Path], force: bool) -> None:
    """Raise UsageError or DiskFault unless the file, and the weights file beside it, may be written."""
    kind = Kind(f"{file_format.name} export of featcache", file_format.is_ours, is_folder=not file_format.suffix)
    if file_format.name == "keras":
        # A Keras export is a model: it must not replace a fine-tuning that took hours.
        facts = read_facts(Path(model)) if Path(model).is_file() else {}
        kind = kind_of(facts.get("finetuned"), lambda: facts)
    inputs = [Path(model), *others_read]
    check_output(path, kind, inputs=inputs, force=force)
    for weights in _weights_beside(path):
        kind = Kind(f"weights file of an earlier {path.name}", lambda _: file_format.is_ours(path))
        check_output(weights, kind, inputs=inputs, force=force)


def _files_read(origin: Origin, sample: Sample) -> list[Path]:
    """Return the files that the export reads, apart from the model."""
    images = sample.source.location or Path()
    files = [images / row.path for row in sample.rows]
    if images.is_file():  # an archive
        files = [images]
    if origin.probe is not None:
        files += [origin.probe.chosen.run.path, origin.probe.cache.path]
    return files


def _write_and_load(file_format: Format, origin: Origin, sample: Sample, temporary: Path, int8: bool) -> Runner:
    """Write the temporary file, and return what its runtime computes. Raises ExportFailed."""
    calibration: Pixels | None = None
    if int8:
        calibration = load_pixels(sample.source, sample.calibration, origin.preprocess)
    facts = _facts(file_format, origin, int8)
    # Messages name the file that the user asked for: the temporary one lies in a folder beside it.
    path = temporary.parent.parent / temporary.name

    def write() -> None:
        with disk_faults(path):
            file_format.write(origin, temporary, facts, calibration)

    def read() -> Runner:
        with disk_faults(path):  # some writers leave a short file on a full disk and report nothing
            return file_format.read(temporary)

    log.info("Converting the model to %s", file_format.name)
    _attempt(file_format, "cannot be made", write)
    log.info("Loading the %s file with %s", file_format.name, file_format.runtime)
    return _attempt(file_format, f"is not one that {file_format.runtime} loads", read)


def _facts(file_format: Format, origin: Origin, int8: bool) -> dict[str, Any]:
    """Return what the file says about itself."""
    preprocess = origin.preprocess
    shape = file_format.shape(preprocess.size)
    return {
        **origin.facts,
        "format": file_format.name,
        "int8": int8,
        "input": {"name": INPUT, "shape": shape, "dtype": "uint8", "channels": "RGB"},
        "output": {"name": OUTPUT, "shape": [file_format.batch, len(origin.classes)]},
        "resize": preprocess.resize,
        "interpolation": preprocess.interpolation,
        "size": preprocess.size,
        "bits": preprocess.bits,
        "made_by": {name: version(name) for name in ("featcache", "keras", "tensorflow")},
    }


def _compare(file_format: Format, origin: Origin, sample: Sample, runner: Runner, int8: bool) -> Exported:
    """Compare file and model on the first images. Raises ExportFailed, which names the image that differs most."""
    # In 8 bits any probability may move; then the predicted classes count, which `_score` compares.
    tolerance = 1.0 if int8 else TOLERANCE
    preprocess = origin.preprocess
    pixels = sample.first(NUM_IMAGES, preprocess)
    log.info("Comparing file and model on %d images", len(pixels))
    of_file, of_model = _both_probabilities(file_format, origin, runner, pixels)
    _check_same(file_format, origin, sample, of_file, of_model, tolerance)

    if file_format.any_size:
        # Such a file resizes the images itself, which images of the right size do not show.
        larger = replace(preprocess, size=preprocess.size * 3 // 2)
        larger_pixels = sample.first(OTHER_SIZE, larger)
        resized = _both_probabilities(file_format, origin, runner, larger_pixels)
        _check_same(file_format, origin, sample, *resized, TOLERANCE)

    return Exported(
        path=Path(),
        format=file_format.name,
        runtime=file_format.ran_by,
        input=tuple(file_format.shape(preprocess.size)),
        bytes=0,
        sample=sample.name,
        images=len(of_file),
        difference=float(np.abs(of_file - of_model).max()),
        agreement=_agreement(of_file, of_model),
        scores={},
        model_scores={},
    )


def _both_probabilities(file_format: Format, origin: Origin, runner: Runner, pixels: Pixels) -> tuple[Floats, Floats]:
    """Return the (n, K) probabilities of the file and the (n, K) probabilities of the model."""
    of_file = _attempt(file_format, "does not run", lambda: runner(pixels))
    return of_file, _model_runner(origin)(pixels)


def _check_same(
    file_format: Format, origin: Origin, sample: Sample, of_file: Floats, of_model: Floats, tolerance: float
) -> None:
    """Raise ExportFailed unless the probabilities of file and model have one shape and are equal up to `tolerance`."""
    name = file_format.name
    if of_file.shape != of_model.shape:
        raise ExportFailed(f"The {name} file gives {of_file.shape}, the model {of_model.shape}. Nothing was written")
    differences = np.abs(of_file - of_model)
    if differences.max() <= tolerance:  # false if one of them is NaN
        return
    # NaN counts as the largest difference. `argmax` numbers the flattened table, whose lines are images.
    worst = int(np.argmax(np.nan_to_num(differences, nan=np.inf)))
    image, class_index = divmod(worst, differences.shape[1])
    raise ExportFailed(
        f"The {name} file does not give the model's probabilities: for {sample.rows[image].path}, class "
        f"'{origin.classes[class_index]}', it gives {of_file[image, class_index]:.6f} instead of "
        f"{of_model[image, class_index]:.6f} (allowed {tolerance:g}). Nothing was written"
    )


def _score(exported: Exported, origin: Origin, sample: Sample, runner: Runner, gates: Sequence[Gate]) -> Exported:
    """Score file and model on all labelled images. Raises ExportFailed if the file misses a gate."""
    log.info("Scoring file and model on %d images", len(sample.rows))
    runners = [runner, _model_runner(origin)]
    of_file, of_model = sample.probabilities(runners, origin.preprocess)

    scores: dict[Metric, Score] = {}
    model_scores: dict[Metric, Score] = {}
    metrics: list[Metric] = ["accuracy", *(gate.metric for gate in gates)]
    for metric in metrics:
        if metric not in scores:
            scores[metric] = score_probabilities(of_file, sample.labels, metric)
            model_scores[metric] = score_probabilities(of_model, sample.labels, metric)

    num_images = len(sample.rows)
    for gate in gates:
        score = scores[gate.metric]
        if not gate.holds(score):
            raise ExportFailed(
                f"`gates={gate}` is not met: {score.value:.4f} on {num_images} of {sample.name}. Nothing was written"
            )
    # The score alone is not enough: a file that is wrong on other images than the model may score as well.
    agreement = _agreement(of_file, of_model)
    if agreement < LEAST_AGREEMENT:
        raise ExportFailed(
            f"The {exported.format} file predicts the model's class on only {agreement:.1%} of {num_images} of "
            f"{sample.name}, less than {LEAST_AGREEMENT:.0%}. Nothing was written"
        )
    return replace(
        exported,
        scores=scores,
        model_scores=model_scores,
        judged_on=num_images,
        gates=tuple(str(gate) for gate in gates),
        agreement=agreement,
    )


def _agreement(of_file: Floats, of_model: Floats) -> float:
    """Return the share of images on which both predict the same class."""
    is_same = of_file.argmax(axis=1) == of_model.argmax(axis=1)
    return float(is_same.mean())


def _model_runner(origin: Origin) -> Runner:
    return lambda pixels: np.asarray(origin.model.predict_on_batch(pixels))


def _attempt(file_format: Format, failure: str, work: Callable[[], T]) -> T:
    """Return what `work` returns. Raises ExportFailed with one line if it fails, for converters raise almost anything.

    failure: what is then wrong with the file, such as "cannot be made".
    """
    try:
        with quietly():
            return work()
    except (FeatcacheError, OSError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ExportFailed(
            f"The {file_format.name} file {failure}: {reason}. Nothing was written; another `to` may work"
        ) from error


def place(temporary: Path, path: Path) -> None:
    """Move the result to its path: a folder, or a file and the weights file beside it."""
    if temporary.is_dir():
        place_folder(temporary, path)
        return
    # In the order of their names, which puts the .bin with the weights before the .xml that refers to it.
    for file in sorted(temporary.parent.iterdir()):
        write_whole(path.with_name(file.name), file.read_bytes())


def _weights_beside(path: Path) -> list[Path]:
    """Return the file in which OpenVINO keeps the weights of an .xml file; no other format has one."""
    return [path.with_suffix(".bin")] if path.suffix == ".xml" else []
