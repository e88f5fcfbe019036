"""Spend a given time on what is promising: successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943).

All groups of settings are tried on a ninth of the training images; if there is time for all on all images, they are.
Otherwise the best third goes on to a third of the images, and of those the best third to all of them, best first,
until the time is over. What was left out says so in its trial.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from featcache.arrays import Classes
from featcache.errors import UsageError
from featcache.sweeps.fitting import fitted
from featcache.sweeps.groups import Group
from featcache.sweeps.judging import judged_trial
from featcache.sweeps.metrics import better
from featcache.sweeps.run import DROPPED, Settings
from featcache.sweeps.tasks import Prepared, Task, part_of

SHARES = (9, 3)  # of the training images one in so many
KEPT = 3  # of so many groups the best goes on
LEAST = 2  # images of each class
_UNITS = {"s": 1, "m": 60, "h": 3600}


def parse_seconds(text: str) -> float:
    """Return the seconds of a time.

    >>> parse_seconds("90"), parse_seconds("1.5m"), parse_seconds("2h")
    (90.0, 90.0, 7200.0)
    """
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)([smh]?)", text.strip().lower())
    if match is None:
        raise UsageError(f"`budget` takes a time such as 60s, 5m or 1h; got '{text}'")
    return float(match[1]) * _UNITS[match[2] or "s"]


@dataclass
class Clock:
    """How much of the budget is left."""

    budget: float | None
    _began: float = field(default_factory=time.perf_counter)
    _any: bool = False

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        return np.inf if self.budget is None else self.budget - (time.perf_counter() - self._began)

    def may_begin(self) -> bool:
        """Return whether there is time for one more group; for one there always is."""
        first, self._any = not self._any, True
        return first or self.left > 0


@dataclass(frozen=True)
class _Seen:
    """What a group showed on few images."""

    group: Group
    value: float  # the best of its settings, larger is better
    seconds: float


def promising(
    groups: Sequence[Group],
    task_of: Callable[[str], Task],
    asked: Settings,
    jobs: int,
    clock: Clock,
) -> tuple[list[Group], dict[int, str]]:
    """Return the groups to try on all images, best first, and by trial number why others are not."""
    dropped: dict[int, str] = {}
    going = list(groups)
    for share in SHARES:
        found = [*_looked(going, task_of, asked, jobs, share, clock)]
        late = [_Seen(group, -np.inf, 0.0) for group in going if all(one.group is not group for one in found)]
        values = [one.value for one in found if np.isfinite(one.value)]
        usual = float(np.median(values)) if values else 0.0  # what cannot be tried on few images stands in the middle
        seen = sorted([*found, *late], key=lambda one: -(usual if np.isnan(one.value) else one.value))
        going = [one.group for one in seen]
        rounds = 1 if asked.cv is None else int(asked.cv) + 1
        if sum(one.seconds for one in seen) * share * rounds / _workers(jobs) < clock.left:
            break
        kept = max(1, len(seen) // KEPT)
        for one in seen[kept:]:
            reason = f"{DROPPED} not among the best {kept} of {len(seen)} on 1 of {share} training images"
            dropped |= {planned.number: reason for planned in one.group.planned}
        going = going[:kept]
    return going, dropped


def _looked(
    groups: Sequence[Group], task_of: Callable[[str], Task], asked: Settings, jobs: int, share: int, clock: Clock
) -> Iterator[_Seen]:
    reserve = (asked.budget or 0) / 2 * share / max(SHARES)  # for what comes after
    for tap, chain in dict.fromkeys((group.tap, group.chain) for group in groups):
        task = task_of(tap)
        few = part_of(task, _few(task, share, asked.seed))
        some = [group for group in groups if (group.tap, group.chain) == (tap, chain)]
        prepared = Prepared(few, chain, last=False)
        results = fitted(few, prepared, some, asked, jobs, may_begin=lambda: clock.left > reserve)
        with closing(results):
            for group, outcomes in results:
                trials = [judged_trial(few, *pair, asked) for pair in zip(group.planned, outcomes, strict=True)]
                values = [better(asked.metric, trial.judged.value) for trial in trials if trial.status == "ok"]
                yield _Seen(group, max(values, default=np.nan), sum(trial.fit_s for trial in trials))


def _few(task: Task, share: int, seed: int) -> Classes:
    """Return one in so many of the rows that fit in the first round, class by class."""
    rows = np.random.default_rng(seed).permutation(task.folds[0][0])
    labels = task.y[rows]
    of_class: Mapping[int, Classes] = {int(label): rows[labels == label] for label in np.unique(labels)}
    return np.sort(np.concatenate([some[: max(LEAST, -(-len(some) // share))] for some in of_class.values()]))


def _workers(jobs: int) -> int:
    from joblib import effective_n_jobs

    return int(effective_n_jobs(jobs))
