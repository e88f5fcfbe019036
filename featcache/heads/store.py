"""Fitted heads as .npz files of plain arrays: nothing in them can run.

A head is rebuilt from our own code and the arrays; their shapes are checked against each other.
kNN heads are their training rows, which the cache has, so they are fitted again instead of stored.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featcache.arrays import Floats
from featcache.errors import NotARun, ShapeMismatch
from featcache.files import write_whole
from featcache.heads.estimators import make_pipeline, set_coefficients
from featcache.heads.grids import Params

Arrays = dict[str, Any]


def save(path: Path, estimator: Any) -> None:
    """Write a fitted pipeline whose classifier is dense."""
    buffer = io.BytesIO()
    np.savez(buffer, **_arrays_of(estimator))
    write_whole(path, buffer.getvalue())


def load(path: Path, head: str, params: Params, num_features: int) -> Any:
    """Return the fitted pipeline. Raises NotARun if the file is missing or damaged, ShapeMismatch if it is another."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return _with_arrays(make_pipeline(head, params), arrays, num_features, path)
    except (OSError, EOFError, ValueError, TypeError, LookupError, zipfile.BadZipFile) as error:
        raise NotARun(f"Cannot read the head {path}: {error}. Sweep again") from error


def _arrays_of(estimator: Any) -> Arrays:
    scaler, classifier = estimator[0], estimator[-1]
    arrays = {
        "mean": scaler.mean_,
        "scale": scaler.scale_,
        "var": scaler.var_,
        "classes": classifier.classes_,
    }
    arrays["num_samples"] = np.asarray(scaler.n_samples_seen_)
    if hasattr(classifier, "kernels_"):
        layers = zip(classifier.kernels_, classifier.biases_, strict=True)
        for number, (kernel, bias) in enumerate(layers):
            arrays |= {f"kernel{number}": kernel, f"bias{number}": bias}
    else:
        arrays |= {"coef": classifier.coef_, "intercept": classifier.intercept_}
    return arrays


def _with_arrays(estimator: Any, arrays: Arrays, num_features: int, path: Path) -> Any:
    scaler, classifier = estimator[0], estimator[-1]
    scaler.mean_, scaler.scale_, scaler.var_ = arrays["mean"], arrays["scale"], arrays["var"]
    scaler.n_samples_seen_ = arrays["num_samples"]
    classifier.classes_ = arrays["classes"]
    scaler.n_features_in_ = classifier.n_features_in_ = len(arrays["mean"])
    if "coef" in arrays:
        set_coefficients(classifier, arrays["classes"], arrays["coef"], arrays["intercept"])
        layers = [(np.atleast_2d(classifier.coef_).T, np.atleast_1d(classifier.intercept_))]
    else:
        count = sum(name.startswith("kernel") for name in arrays)
        classifier.kernels_ = tuple(arrays[f"kernel{number}"] for number in range(count))
        classifier.biases_ = tuple(arrays[f"bias{number}"] for number in range(count))
        layers = list(zip(classifier.kernels_, classifier.biases_, strict=True))
    _check_shapes(layers, arrays, num_features, path)
    return estimator


def _check_shapes(layers: Sequence[tuple[Floats, Floats]], arrays: Arrays, num_features: int, path: Path) -> None:
    """Raise ShapeMismatch unless the tap, the scaler, the layers and the classes fit each other."""
    width, num_classes = len(layers[0][0]), len(arrays["classes"])
    if {width, len(arrays["mean"]), len(arrays["scale"])} != {num_features}:
        raise ShapeMismatch(f"The head {path} takes {width} features, its tap has {num_features}. Sweep again")
    for kernel, bias in layers:
        if kernel.shape != (width, len(bias)):
            raise ShapeMismatch(f"The layers of the head {path} do not fit each other. Sweep again")
        width = len(bias)
    if width != (1 if num_classes == 2 and "coef" in arrays else num_classes):
        raise ShapeMismatch(f"The head {path} gives {width} scores for {num_classes} classes. Sweep again")
