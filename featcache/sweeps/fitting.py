"""Bundles of candidates, fitted round after round, and what became of each candidate."""

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
from featcache.sweeps.candidates import Bundle
from featcache.sweeps.run import Settings
from featcache.sweeps.tap_data import Prepared, TapData


@dataclass
class Outcome:
    """What became of one candidate so far, fold by fold."""

    predicted: list[Classes] = field(default_factory=list)
    logits: list[Floats] = field(default_factory=list)
    seconds: float = 0.0
    reason: str = ""  # why it failed
    estimator: Any = None  # of the last fold
    rounds: int = 0

    def add(self, tried: FoldResult, steps: Any) -> None:
        """Add the result of one more round; after the first failure only the time counts."""
        self.rounds += 1
        self.seconds += tried.seconds
        is_finite = tried.logits is None or np.isfinite(tried.logits).all()
        self.reason = self.reason or tried.reason
        if not self.reason and not is_finite:
            self.reason = "ValueError: its scores are not finite"
        if self.reason:
            return
        self.estimator = joined(steps, tried.classifier)
        if len(tried.predicted):
            self.predicted.append(tried.predicted)
        if tried.logits is not None:
            self.logits.append(tried.logits)


Round = tuple[Bundle, Any, list[FoldResult]]  # a bundle, the fitted steps before it, and the result of each candidate


def fitted(
    data: TapData,
    prepared: Prepared,
    bundles: Sequence[Bundle],
    settings: Settings,
    jobs: int,
    *,
    may_begin: Callable[[], bool] = lambda: True,
    tick: Callable[[], None] = lambda: None,
) -> Generator[tuple[Bundle, list[Outcome]], None, None]:
    """Yield every bundle with the outcomes of its candidates.

    Heads are fitted on threads with one BLAS thread each, as many at once as `jobs` and the memory allow; those that
    Keras trains one by one. may_begin: called before a bundle, which is left out if it returns False. tick: called for
    every candidate of every round.
    """
    outcomes_of: dict[int, list[Outcome]] = {}
    with closing(_rounds(data, prepared, bundles, settings, jobs, may_begin)) as rounds:
        for bundle, steps, results in rounds:
            outcomes = outcomes_of.setdefault(id(bundle), [Outcome() for _ in results])
            for outcome, tried in zip(outcomes, results, strict=True):
                outcome.add(tried, steps)
                tick()
            if outcomes[0].rounds == len(data.rounds):
                yield bundle, outcomes_of.pop(id(bundle))


def _rounds(
    data: TapData,
    prepared: Prepared,
    bundles: Sequence[Bundle],
    settings: Settings,
    jobs: int,
    may_begin: Callable[[], bool],
) -> Generator[Round, None, None]:
    import sklearn  # noqa: F401 - loads libraries, which the limit below reaches only if they are there
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    def calls(in_keras: bool) -> Iterator[tuple[Bundle, int]]:
        for bundle in bundles:
            if family_of(bundle.head).in_keras(bundle.grid[0]) == in_keras and may_begin():
                for number in range(len(data.rounds)):
                    yield bundle, number

    def fit(bundle: Bundle, number: int) -> Round:
        try:
            steps, fold = prepared[number]
        except Exception as error:  # for example, PCA to more components than there are images
            return bundle, None, [failure(error) for _ in bundle.grid]
        if not data.folds:
            results = try_leave_one_out(bundle.head, bundle.grid, fold.X, fold.y, settings.class_weight)
        else:
            results = try_all(bundle.head, bundle.grid, fold, settings.class_weight, settings.seed)
        return bundle, steps, results

    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")  # hundreds of fits would repeat the same warnings; Trial.converged counts them
        parallel = Parallel(n_jobs=prepared.num_workers(jobs, settings), prefer="threads", return_as="generator")
        yield from parallel(delayed(fit)(bundle, number) for bundle, number in calls(in_keras=False))
    # Outside of the limit: Keras trains one head at a time and uses all cores for it.
    for bundle, number in calls(in_keras=True):
        yield fit(bundle, number)
