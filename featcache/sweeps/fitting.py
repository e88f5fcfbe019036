"""Groups of settings, fitted round after round, and what came of each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featcache.arrays import Classes, Floats
from featcache.heads.estimators import family_of, joined
from featcache.heads.folds import FoldResult, failure
from featcache.heads.solvers.paths import try_all, try_leave_one_out
from featcache.sweeps.groups import Group
from featcache.sweeps.run import Settings
from featcache.sweeps.tasks import Prepared, Task


@dataclass
class Outcome:
    """What became of one setting so far, fold by fold."""

    predicted: list[Classes] = field(default_factory=list)
    logits: list[Floats] = field(default_factory=list)
    seconds: float = 0.0
    reason: str = ""
    estimator: Any = None  # of the last fold
    rounds: int = 0

    def add(self, tried: FoldResult, steps: Any) -> None:
        """Note what came of one more round."""
        self.rounds += 1
        finite = tried.logits is None or np.isfinite(tried.logits).all()
        self.reason = self.reason or tried.reason or ("" if finite else "ValueError: its scores are not finite")
        self.seconds += tried.seconds
        if not self.reason:
            self.estimator = joined(steps, tried.classifier)
            if len(tried.predicted):
                self.predicted.append(tried.predicted)
            if tried.logits is not None:
                self.logits.append(tried.logits)


def fitted(
    task: Task,
    prepared: Prepared,
    groups: Sequence[Group],
    asked: Settings,
    jobs: int,
    *,
    may_begin: Callable[[], bool] = lambda: True,
    tick: Callable[[], None] = lambda: None,
) -> Generator[tuple[Group, list[Outcome]], None, None]:
    """Yield every group with what came of its settings.

    Heads are fitted on threads with one BLAS thread each, those that Keras trains one by one. may_begin: asked
    before a group; with False it is left out. tick: called for every setting of every round.
    """
    outcomes: dict[int, list[Outcome]] = {}
    with closing(_rounds(task, prepared, groups, asked, jobs, may_begin)) as rounds:
        for group, steps, found in rounds:
            so_far = outcomes.setdefault(id(group), [Outcome() for _ in found])
            for outcome, tried in zip(so_far, found, strict=True):
                outcome.add(tried, steps)
                tick()
            if so_far[0].rounds == len(task.rounds):
                yield group, outcomes.pop(id(group))


_Round = tuple[Group, Any, list[FoldResult]]


def _rounds(
    task: Task, prepared: Prepared, groups: Sequence[Group], asked: Settings, jobs: int, may_begin: Callable[[], bool]
) -> Generator[_Round, None, None]:
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    def calls(in_keras: bool) -> Iterator[tuple[Group, int]]:
        for group in groups:
            if family_of(group.head).in_keras(group.grid[0]) == in_keras and may_begin():
                yield from ((group, number) for number in range(len(task.rounds)))

    def fit(group: Group, number: int) -> _Round:
        try:
            steps, fold = prepared[number]
        except Exception as error:  # more components than images, for one
            return group, None, [failure(error) for _ in group.grid]
        if not task.folds:
            return group, steps, try_leave_one_out(group.head, group.grid, fold.X, fold.y, asked.class_weight)
        return group, steps, try_all(group.head, group.grid, fold, asked.class_weight, asked.seed)

    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")  # hundreds of fits would say it hundreds of times; Trial.converged counts
        parallel = Parallel(n_jobs=jobs, prefer="threads", return_as="generator")
        yield from parallel(delayed(fit)(*one) for one in calls(in_keras=False))
    for one in calls(in_keras=True):
        yield fit(*one)
