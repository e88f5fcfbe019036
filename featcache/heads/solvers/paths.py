"""Settings of one head, fitted together on one fold, and what each says of the images that choose.

What a family computes for all of its settings it computes once: see `PATHS`. What comes of it is what scikit-learn
gives, setting by setting. Families without such a path are fitted one by one.
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
from featcache.heads.solvers import dense_grid, discriminant, kernels, logreg, neighbours, ridge, streams

Fit = Callable[[str, Sequence[Params], Fold, str | None, int], Iterator[FoldResult]]
Split = Callable[[str, Sequence[Params]], list[list[int]]]
LeaveOneOut = Callable[[Sequence[Params], Features, Classes, str | None], Iterator[FoldResult]]


@dataclass(frozen=True)
class Path:
    """How settings of a family are fitted together that differ in nothing but the parameters `along`."""

    fit: Fit
    along: frozenset[str]
    besides: frozenset[str] = frozenset()  # other parameters that it can be asked for
    split: Split | None = None  # such settings into those of one call
    leave_one_out: LeaveOneOut | None = None  # from one fit on all images


_DENSE = Path(dense_grid.fit, dense_grid.OWN, dense_grid.SHARED, split=dense_grid.chunks)
PATHS = {
    "softmax": _DENSE,
    "mlp": _DENSE,
    "ridge": Path(ridge.fit, frozenset(["alpha"]), leave_one_out=ridge.leave_one_out),
    "lda": Path(discriminant.fit, frozenset(["shrinkage"])),
    "logreg": Path(logreg.fit, frozenset(["C"]), frozenset(["max_iter", "tol"])),
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
    """Return which settings of a head go to `try_all` as one: those that differ only in what its path runs along."""
    groups: dict[object, list[int]] = {}
    for number, params in enumerate(grid):
        path = _path_of(head, params)
        rest = None if path is None else {name: value for name, value in params.items() if name not in path.along}
        groups.setdefault(number if rest is None else repr(rest), []).append(number)
    return [[some[at] for at in part] for some in groups.values() for part in _split(head, [grid[at] for at in some])]


def _split(head: str, grid: Sequence[Params]) -> list[list[int]]:
    path = _path_of(head, grid[0])
    return [[*range(len(grid))]] if path is None or path.split is None else path.split(head, grid)


def try_all(
    head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None = None, seed: int = 0
) -> list[FoldResult]:
    """Fit every setting of a group on a fold, and return them in their order."""
    path = _path_of(head, grid[0])
    fit = _one_by_one if path is None else path.fit
    if fold.streamed and not (streams.in_blocks(head) and path is not None):
        if not streams.can_stream(head):
            return [streams.refusal(head, fold) for _ in grid]
        fit = streams.fit
    try:
        return list(fit(head, grid, fold, class_weight, seed))
    except Exception as error:  # whatever a classifier raises, others can do better
        return [failure(error) for _ in grid]


def check_leave_one_out(head: str, params: Params) -> None:
    """Raise UsageError if a head has no closed form for leaving one image out."""
    path = _path_of(head, params)
    if path is None or path.leave_one_out is None:
        raise UsageError(f"`cv='loo'` is for {', '.join(LEAVE_ONE_OUT)}; with '{head}' it takes too long. Use `cv=5`")


def try_leave_one_out(
    head: str, grid: Sequence[Params], X: Features, y: Classes, class_weight: str | None = None
) -> list[FoldResult]:
    """Return every setting of a group fitted on all images, and what it says of each when fitted on all others."""
    path = _path_of(head, grid[0])
    assert path is not None  # check_leave_one_out has seen it
    assert path.leave_one_out is not None
    try:
        return list(path.leave_one_out(grid, X, y, class_weight))
    except Exception as error:  # whatever a classifier raises, others can do better
        return [failure(error) for _ in grid]


def _path_of(head: str, params: Params) -> Path | None:
    path = PATHS.get(family_of(head).name)
    return path if path is not None and params.keys() <= path.along | path.besides else None


def _one_by_one(
    head: str, grid: Sequence[Params], fold: Fold, class_weight: str | None, seed: int
) -> Iterator[FoldResult]:
    for params in grid:
        began = time.perf_counter()
        try:
            classifier = make_classifier(head, params, class_weight, seed).fit(fold.X, fold.y)
            yield evaluate(classifier, fold, began)
        except Exception as error:
            yield failure(error)
