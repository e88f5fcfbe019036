"""Store fitted heads as files that cannot run code.

- Linear and dense heads after standardising are .npz files of plain arrays, from which featcache rebuilds them.
- Other scikit-learn estimators are .skops files. These name classes; skops makes only the ones in KNOWN and the ones it
  trusts itself, and the steps must be of the classes that the trial's setting makes.
- kNN heads are not stored, because they are their training rows, which the cache has. Classes outside scikit-learn are
  not stored, because their contents are unknown. Both are fitted again.

Loading checks how many features a head takes and how many scores it gives.
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

# Classifiers that are stored as plain arrays
PLAIN = ("RidgeClassifier", "LogisticRegression", "LinearSVC", "LinearDiscriminantAnalysis", "DenseSoftmax")
# Classes that .skops files may name, besides those that skops trusts itself
KNOWN = (
    "featcache.heads.softmax.DenseSoftmax",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
)


def save(path: Path, estimator: Any) -> int:
    """Write a fitted pipeline to `path`, or to a .skops file beside it. Return its size, 0 if it is not stored."""
    # Both names first: `load` prefers the .skops file, and must not read one of an earlier head.
    for old in (path, path.with_suffix(".skops")):
        old.unlink(missing_ok=True)
    if _is_plain(estimator):
        return write_arrays(path, _arrays_of(estimator))
    if hasattr(estimator[-1], "_fit_X"):  # kNN
        return 0
    from skops.io import dumps, get_untrusted_types

    try:
        content = dumps(estimator)
    except Exception:  # a user's estimator may hold anything
        return 0
    if set(get_untrusted_types(data=content)) - set(KNOWN):
        return 0
    write_whole(path.with_suffix(".skops"), content)
    return len(content)


def load(
    path: Path, head: str, params: Params, num_features: int, prepare: str = STANDARDISE, num_classes: int | None = None
) -> Any:
    """Return the fitted pipeline.

    Raises NotARun if the file is missing or damaged, ShapeMismatch if it has other features or classes.
    """
    skops_path = path.with_suffix(".skops")
    try:
        unfitted = make_pipeline(head, params, prepare=prepare)
        if skops_path.exists():
            from skops.io import loads

            estimator = loads(skops_path.read_bytes(), trusted=list(KNOWN))
            return _checked(estimator, unfitted, skops_path, num_features, num_classes)
        arrays = read_arrays(path)
        if not _is_plain(unfitted):
            raise ValueError(f"a head {head} after {prepare} is not stored as arrays")
        return _with_arrays(unfitted, arrays, num_features, path)
    except ShapeMismatch:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise_if_of_the_system(path, error)
        stored = skops_path if skops_path.exists() else path
        raise NotARun(f"Cannot read the head {stored}: {error}. Sweep again") from error


def _is_plain(estimator: Any) -> bool:
    names = [type(step).__name__ for _, step in estimator.steps]
    return len(names) == 2 and names[0] == "StandardScaler" and names[1] in PLAIN


def _checked(estimator: Any, unfitted: Any, path: Path, num_features: int, num_classes: int | None) -> Any:
    """Return a pipeline of the loaded steps, if their classes are the same as in `unfitted`."""
    # The file decides which objects it holds, so their classes are checked before any method of theirs is called.
    if type(estimator) is not type(unfitted):
        raise ValueError("it holds no fitted pipeline")
    loaded = [(name, type(step)) for name, step in estimator.steps]
    expected = [(name, type(step)) for name, step in unfitted.steps]
    if loaded != expected:
        names = " + ".join(class_.__name__ for _, class_ in loaded)
        raise ValueError(f"it holds {names}, which is not what the trial's head and preparation make")
    # A new pipeline, without any other attribute that the file may have set on the loaded one.
    estimator = joined(estimator.steps[:-1], estimator.steps[-1][1])
    width = estimator[0].n_features_in_
    num_scores = len(estimator[-1].classes_)
    if width != num_features:
        raise ShapeMismatch(f"The head {path} takes {width} features, its tap has {num_features}. Sweep again")
    if num_classes is not None and num_scores != num_classes:
        raise ShapeMismatch(f"The head {path} gives {num_scores} scores for {num_classes} classes. Sweep again")
    return estimator


def _arrays_of(estimator: Any) -> Arrays:
    scaler = estimator[0]
    classifier = estimator[-1]
    arrays = {
        "mean": scaler.mean_,
        "scale": scaler.scale_,
        "var": scaler.var_,
        "classes": classifier.classes_,
        "num_samples": np.asarray(scaler.n_samples_seen_),
    }
    if hasattr(classifier, "kernels_"):
        layers = zip(classifier.kernels_, classifier.biases_, strict=True)
        for number, (kernel, bias) in enumerate(layers):
            arrays |= {f"kernel{number}": kernel, f"bias{number}": bias}
    else:
        arrays |= {"coef": classifier.coef_, "intercept": classifier.intercept_}
    return arrays


def _with_arrays(estimator: Any, arrays: Arrays, num_features: int, path: Path) -> Any:
    scaler = estimator[0]
    scaler.mean_ = arrays["mean"]
    scaler.scale_ = arrays["scale"]
    scaler.var_ = arrays["var"]
    scaler.n_samples_seen_ = arrays["num_samples"]
    scaler.n_features_in_ = len(arrays["mean"])

    classifier = estimator[-1]
    classifier.classes_ = arrays["classes"]
    classifier.n_features_in_ = len(arrays["mean"])
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
    first_kernel, _ = layers[0]
    width = len(first_kernel)
    num_classes = len(arrays["classes"])
    if {width, len(arrays["mean"]), len(arrays["scale"])} != {num_features}:
        raise ShapeMismatch(f"The head {path} takes {width} features, its tap has {num_features}. Sweep again")
    for kernel, bias in layers:
        if kernel.shape != (width, len(bias)):
            raise ShapeMismatch(f"The layers of the head {path} do not fit each other. Sweep again")
        width = len(bias)
    # A linear classifier has one score for two classes.
    num_scores = 1 if num_classes == 2 and "coef" in arrays else num_classes
    if width != num_scores:
        raise ShapeMismatch(f"The head {path} gives {width} scores for {num_classes} classes. Sweep again")
