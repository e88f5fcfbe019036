"""Fit the settings of one head together on one fold, and return each one's predictions on the other images.

Work that all settings of a family share is done once: see `PATHS`. Each result is what scikit-learn gives for the
setting alone. Families without a path are fitted setting by setting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from featcache.arrays import Classes, Features
from featcache.errors import UsageError
from featcache.heads.estimators import family_of, make_classifier
from featcache.heads.folds import Fold, FoldResult, evaluate, failure
from featcache.heads.grids import Params
from featcache.heads.solvers import dense_grid, discriminant, kernels, linear, neighbours, ridge, streams

FitGrid = Callable[[str, Sequence[Params], Fold, str | None, int], Iterator[FoldResult]]
SplitGrid = Callable[[str, Sequence[Params]], list[list[int]]]
LeaveOneOut = Callable[[Sequence[Params], Features, Classes, str | None], Iterator[FoldResult]]


@dataclass(frozen=True)
class Path:
    """How to fit settings of a family together. They may differ only in the parameters `along`."""

    fit: FitGrid
    along: frozenset[str]
    besides: frozenset[str] = frozenset()  # parameters that the path also supports, with one value for all settings
    split: SplitGrid | None = None  # divides such settings into groups of one call each
    leave_one_out: LeaveOneOut | None = None  # closed form from one fit on all images


_DENSE = Path(dense_grid.fit, dense_grid.PER_HEAD, dense_grid.SHARED, split=dense_grid.chunks)
_LINEAR = Path(linear.fit, frozenset(["C"]), frozenset(["max_iter", "tol"]))
PATHS = {
    "softmax": _DENSE,
    "mlp": _DENSE,
    "ridge": Path(ridge.fit, frozenset(["alpha"]), leave_one_out=ridge.leave_one_out),
    "lda": Path(discriminant.fit, frozenset(["shrinkage"])),
    "logreg": _LINEAR,
    "svm": _LINEAR,
    "rbf": Path(kernels.fit, frozenset(["C", "gamma"])),
    "knn": Path(
        neighbours.fit,
        frozenset(["n_neighbors"]),
        frozenset(["metric", "algorithm"]),
        leave_one_out=neighbours.leave_one_out,
    ),
}
LEAVE_ONE_OUT = tuple(name for name, path in PATHS.items() if path.leave_one_out)


def together(head: str, grid: Sequence[Params]) -> list[list[int]]:
    """Return the numbers of the settings in groups, each of which goes to one call of `try_all`.

    Settings share a group if they differ only in the parameters that the head's path runs along.
    """
    groups: dict[object, list[int]] = {}
    for number, params in enumerate(grid):
        path = _path_of(head, params)
        key: object = number  # without a path, a group of its own
        if path is not None:
            key = repr({name: value for name, value in params.items() if name not in path.along})
        groups.setdefault(key, []).append(number)

    parts = []
    for numbers in groups.values():
        path = _path_of(head, grid[numbers[0]])
        if path is None or path.split is None:
            parts.append(numbers)
            continue
        group = [grid[number] for number in numbers]
        for positions in path.split(head, group):
            parts.append([numbers[at] for at in positions])
    return parts


def try_all(
    head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None = None, seed: int = 0
) -> list[FoldResult]:
    """Fit every setting of a group on a fold, and return the results in the order of the grid."""
    path = _path_of(head, grid[0])
    fit = _fit_each if path is None else path.fit
    reads_blocks = streams.reads_blocks(head) and path is not None
    if fold.streamed and not reads_blocks:
        if not streams.can_stream(head):
            return [streams.too_large(head, fold) for _ in grid]
        fit = streams.fit
    try:
        return list(fit(head, grid, fold, class_weight, seed))
    except Exception as error:  # a classifier may raise anything, and other heads may still work
        return [failure(error) for _ in grid]


def check_leave_one_out(head: str, params: Params) -> None:
    """Raise UsageError if a head has no closed form for leaving one image out."""
    path = _path_of(head, params)
    if path is None or path.leave_one_out is None:
        raise UsageError(f"`cv='loo'` is for {', '.join(LEAVE_ONE_OUT)}; with '{head}' it takes too long. Use `cv=5`")


def try_leave_one_out(
    head: str, grid: Sequence[Params], X: Features, y: Classes, class_weight: str | None = None
) -> list[FoldResult]:
    """Return every setting of a group fitted on all images, with each image's prediction when fitted on the others."""
    path = _path_of(head, grid[0])
    assert path is not None  # check_leave_one_out comes first
    assert path.leave_one_out is not None
    try:
        return list(path.leave_one_out(grid, X, y, class_weight))
    except Exception as error:  # a classifier may raise anything, and other heads may still work
        return [failure(error) for _ in grid]


def _path_of(head: str, params: Params) -> Path | None:
    path = PATHS.get(family_of(head).name)
    if path is None or not params.keys() <= path.along | path.besides:
        return None
    return path


def _fit_each(
    head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None, seed: int
) -> Iterator[FoldResult]:
    for params in grid:
        began = time.perf_counter()
        try:
            classifier = make_classifier(head, params, class_weight, seed).fit(fold.X, fold.y)
            yield evaluate(classifier, fold, began)
        except Exception as error:  # a classifier may raise anything, and other settings may still work
            yield failure(error)
