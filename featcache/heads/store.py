"""Fitted heads as files in which nothing can run.

Linear and dense heads are .npz files of plain arrays, from which our own code rebuilds them; other estimators of
scikit-learn are .skops files, which name their classes: skops makes those of KNOWN and those that it trusts itself, and
the steps must be of the classes that the trial's setting makes. What a head takes and gives is checked.
kNN heads are their training rows, which the cache has, and classes of others are not known: both are fitted again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featcache.arrays import Floats
from featcache.errors import NotARun, ShapeMismatch
from featcache.files import raise_if_of_the_system, read_arrays, write_arrays, write_whole
from featcache.heads.estimators import joined, make_pipeline, set_coefficients
from featcache.heads.grids import Params
from featcache.heads.steps import STANDARDISE

Arrays = dict[str, Any]


PLAIN = ("RidgeClassifier", "LogisticRegression", "LinearSVC", "LinearDiscriminantAnalysis", "DenseSoftmax")
KNOWN = (  # beside those that skops itself knows
    "featcache.heads.softmax.DenseSoftmax",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
)


def save(path: Path, estimator: Any) -> int:
    """Write a fitted pipeline to `path`, or to its .skops beside it, and return its bytes: 0 if it is not stored."""
    for old in (path, path.with_suffix(".skops")):
        old.unlink(missing_ok=True)
    if _is_plain(estimator):
        return write_arrays(path, _arrays_of(estimator))
    if hasattr(estimator[-1], "_fit_X"):  # neighbours
        return 0
    from skops.io import dumps, get_untrusted_types

    try:
        content = dumps(estimator)
    except Exception:  # an estimator of others can hold anything
        return 0
    if set(get_untrusted_types(data=content)) - set(KNOWN):
        return 0
    write_whole(path.with_suffix(".skops"), content)
    return len(content)


def load(
    path: Path, head: str, params: Params, num_features: int, prepare: str = STANDARDISE, num_classes: int | None = None
) -> Any:
    """Return the fitted pipeline. Raises NotARun if the file is missing or damaged, ShapeMismatch if it is another."""
    other = path.with_suffix(".skops")
    try:
        unfitted = make_pipeline(head, params, prepare=prepare)
        if other.exists():
            return _checked(_from_skops(other), unfitted, other, num_features, num_classes)
        arrays = read_arrays(path)
        if not _is_plain(unfitted):
            raise ValueError(f"a head {head} after {prepare} is not stored as arrays")
        return _with_arrays(unfitted, arrays, num_features, path)
    except ShapeMismatch:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise_if_of_the_system(path, error)
        raise NotARun(f"Cannot read the head {other if other.exists() else path}: {error}. Sweep again") from error


def _is_plain(estimator: Any) -> bool:
    names = [type(step).__name__ for _, step in estimator.steps]
    return len(names) == 2 and names[0] == "StandardScaler" and names[1] in PLAIN


def _from_skops(path: Path) -> Any:
    from skops.io import loads

    return loads(path.read_bytes(), trusted=list(KNOWN))


def _checked(estimator: Any, unfitted: Any, path: Path, num_features: int, num_classes: int | None) -> Any:
    """Return a pipeline of the steps that were read if they are of the same classes as those of `unfitted`."""
    # The file decides which objects it holds, so their classes are looked at before anything of them is called.
    if type(estimator) is not type(unfitted):
        raise ValueError("it holds no fitted pipeline")
    held = [(name, type(step)) for name, step in estimator.steps]
    expected = [(name, type(step)) for name, step in unfitted.steps]
    if held != expected:
        names = " + ".join(kind.__name__ for _, kind in held)
        raise ValueError(f"it holds {names}, which is not what the trial's head and preparation make")
    # a new pipeline, without what else the file may have set on the old one
    estimator = joined(estimator.steps[:-1], estimator.steps[-1][1])
    found = (estimator[0].n_features_in_, len(estimator[-1].classes_))
    if found[0] != num_features:
        raise ShapeMismatch(f"The head {path} takes {found[0]} features, its tap has {num_features}. Sweep again")
    if num_classes is not None and found[1] != num_classes:
        raise ShapeMismatch(f"The head {path} gives {found[1]} scores for {num_classes} classes. Sweep again")
    return estimator


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
