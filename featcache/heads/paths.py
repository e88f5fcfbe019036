"""All settings of one head on the same features: what each gives alone, sooner, since they share what they can.

ridge   one X'X for all strengths, and of many strengths one eigendecomposition: (X'X + alpha)^-1 = V (s + alpha)^-1 V';
        of XX' where there are fewer images than features (Hastie, Tibshirani, Friedman 2009, 3.4.1 and 18.3.5)
knn     one search for the most neighbours; fewer are the first of them
softmax, mlp    one computation for all rates, decays and so on, in chunks that stay in the cache
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.arrays import Classes, Features, Floats
from featcache.heads.absorb import decision_logits
from featcache.heads.estimators import family_of, make_classifier, set_coefficients
from featcache.heads.grids import Params

WORTH_EIGENVALUES = 10  # as many Cholesky factors take as long (870 x 870: 97 and 9 ms)


@dataclass(frozen=True)
class Fold:
    """Scaled features to fit on, with their classes, and those of the images that choose, which may be none."""

    X: Features  # (N, D)
    y: Classes  # (N,)
    others: Features  # (M, D)


@dataclass(frozen=True)
class Tried:
    """One setting, fitted on a fold: what it says of the others. A classifier that raised has a reason instead."""

    classifier: Any
    predicted: Any  # (M,)
    logits: Floats | None  # (M, K), if it gives some
    seconds: float
    reason: str = ""


Fit = Callable[[str, Sequence[Params], Fold, str | None, int], Iterator[Tried]]
Split = Callable[[str, Sequence[Params]], list[list[int]]]


def _whole(head: str, grid: Sequence[Params]) -> list[list[int]]:
    return [[*range(len(grid))]]


@dataclass(frozen=True)
class Path:
    """How settings of a family are fitted together that differ in nothing but the parameters `along`."""

    fit: Fit
    along: frozenset[str]
    besides: frozenset[str] = frozenset()  # other parameters that it can be asked for
    split: Split = _whole  # such settings into those of one call


def together(head: str, grid: Sequence[Params]) -> list[list[int]]:
    """Return which settings of a head go to `try_all` as one: those that differ only in what its path runs along."""
    groups: dict[object, list[int]] = {}
    for number, params in enumerate(grid):
        path = _path_of(head, params)
        rest = None if path is None else {name: value for name, value in params.items() if name not in path.along}
        groups.setdefault(number if rest is None else repr(rest), []).append(number)
    return [[some[at] for at in part] for some in groups.values() for part in _split(head, [grid[at] for at in some])]


def _split(head: str, grid: Sequence[Params]) -> list[list[int]]:
    path = _path_of(head, grid[0])
    return _whole(head, grid) if path is None else path.split(head, grid)


def try_all(
    head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None = None, seed: int = 0
) -> list[Tried]:
    """Fit every setting of a group on a fold, and return them in their order."""
    path = _path_of(head, grid[0])
    fit = _one_by_one if path is None else path.fit
    try:
        return list(fit(head, grid, fold, class_weight, seed))
    except Exception as error:  # whatever a classifier raises, others can do better
        return [_failed(error) for _ in grid]


def _failed(error: Exception) -> Tried:
    return Tried(None, None, None, 0.0, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _path_of(head: str, params: Params) -> Path | None:
    path = PATHS.get(family_of(head).name)
    return path if path is not None and params.keys() <= path.along | path.besides else None


def _one_by_one(head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None, seed: int) -> Iterator[Tried]:
    for params in grid:
        began = time.perf_counter()
        classifier = make_classifier(head, params, class_weight, seed).fit(fold.X, fold.y)
        yield _judged(classifier, fold, began)


def _ridge(head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None, seed: int) -> Iterator[Tried]:
    from sklearn.preprocessing import LabelBinarizer
    from sklearn.utils.class_weight import compute_sample_weight

    began = time.perf_counter()
    Y = LabelBinarizer(pos_label=1, neg_label=-1).fit_transform(fold.y).astype(np.float64)
    weights = compute_sample_weight(class_weight, fold.y)
    X, mean, Y_mean = fold.X.astype(np.float64), *(np.average(one, 0, weights) for one in (fold.X, Y))
    X, Y = (np.sqrt(weights)[:, None] * (one - centre) for one, centre in ((X, mean), (Y, Y_mean)))
    dual = len(X) < X.shape[1]
    solve = _solver(X @ X.T if dual else X.T @ X, Y if dual else X.T @ Y, len(grid))
    for params in grid:
        classifier = make_classifier(head, params, class_weight, seed)
        try:
            classifier._validate_params()  # as its own fit would
            solution = solve(params["alpha"])
        except (ValueError, np.linalg.LinAlgError) as error:
            yield _failed(error)
            continue
        coef = (X.T @ solution if dual else solution).T
        set_coefficients(classifier, np.unique(fold.y), coef, Y_mean - coef @ mean)
        yield _judged(classifier, fold, began)
        began = time.perf_counter()


def _solver(gram: Floats, right: Floats, times: int) -> Callable[[float], Floats]:
    """Return what gives (gram + alpha)^-1 right for any alpha > 0, quickest if called so many times."""
    from scipy.linalg import cho_factor, cho_solve, eigh

    if times < WORTH_EIGENVALUES:
        return lambda alpha: np.asarray(cho_solve(cho_factor(gram + alpha * np.eye(len(gram))), right))
    values, vectors = eigh(gram, driver="evd", check_finite=False)
    rotated = vectors.T @ right
    return lambda alpha: vectors @ (rotated / (np.maximum(values, 0) + alpha)[:, None])


def _knn(head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None, seed: int) -> Iterator[Tried]:
    """Neighbours of one class each vote for it; of classes with as many votes the first wins, as in scikit-learn."""
    began = time.perf_counter()
    classifiers = [make_classifier(head, params, class_weight, seed).fit(fold.X, fold.y) for params in grid]
    most = min(max(one.n_neighbors for one in classifiers), len(fold.X))
    found = np.zeros((0, most), np.int64)
    if len(fold.others):
        found = classifiers[0].kneighbors(fold.others, most, return_distance=False)
    classes, index = np.unique(fold.y, return_inverse=True)
    votes = np.eye(len(classes), dtype=np.int32)[index[found]].cumsum(axis=1)  # (M, most, K)
    for classifier in classifiers:
        k = classifier.n_neighbors
        if k > most:
            yield _failed(ValueError(f"there are {len(fold.X)} images, so no {k} neighbours"))
            continue
        yield Tried(classifier, classes[votes[:, k - 1].argmax(axis=1)], None, time.perf_counter() - began)
        began = time.perf_counter()


def _judged(classifier: Any, fold: Fold, began: float) -> Tried:
    """Return what a fitted classifier says of the others."""
    if not len(fold.others):
        return Tried(classifier, fold.y[:0], None, time.perf_counter() - began)
    logits = decision_logits(classifier, fold.others) if hasattr(classifier, "decision_function") else None
    return Tried(classifier, classifier.predict(fold.others), logits, time.perf_counter() - began)


def _dense(head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None, seed: int) -> Iterator[Tried]:
    from featcache.heads.softmax import train_together

    began = time.perf_counter()
    classifiers = [make_classifier(head, params, class_weight, seed) for params in grid]
    faults = [_fault(one) for one in classifiers]
    good = [one for one, fault in zip(classifiers, faults, strict=True) if fault is None]
    train_together(good, fold.X, fold.y)
    share = (time.perf_counter() - began) / max(1, len(good))
    for classifier, fault in zip(classifiers, faults, strict=True):
        yield _judged(classifier, fold, time.perf_counter() - share) if fault is None else _failed(fault)


def _dense_chunks(head: str, grid: Sequence[Params]) -> list[list[int]]:
    """Return the settings that train in one computation, and alone those that cannot train."""
    from featcache.heads.softmax import chunks

    classifiers = [make_classifier(head, params) for params in grid]
    good = [at for at, one in enumerate(classifiers) if _fault(one) is None]
    found = [[good[at] for at in chunk] for chunk in chunks([classifiers[at] for at in good])]
    return found + [[at] for at in range(len(grid)) if at not in good]


def _fault(classifier: Any) -> ValueError | None:
    from featcache.heads.softmax import check

    try:
        check(classifier)
    except ValueError as error:
        return error
    return None


_OWN = frozenset(["learning_rate", "weight_decay", "dropout", "label_smoothing"])
_SHARED = ["hidden", "epochs", "batch_size", "optimizer", "momentum", "nesterov", "schedule", "patience", "engine"]
_OF_DENSE = Path(_dense, _OWN, frozenset(_SHARED), _dense_chunks)
PATHS = {
    "ridge": Path(_ridge, frozenset(["alpha"])),
    "knn": Path(_knn, frozenset(["n_neighbors"]), frozenset(["metric", "algorithm"])),
    "softmax": _OF_DENSE,
    "mlp": _OF_DENSE,
}
