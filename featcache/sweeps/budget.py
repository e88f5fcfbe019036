"""Spend a given time on what is promising: successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943).

All bundles are tried on a ninth of the training images. If there is time for all of them on all images, all are tried
there. Otherwise the best third goes on to a third of the images, and the best third of that to all images, best first,
until the time is over. A trial that was left out says so in its status.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from featcache.arrays import Classes
from featcache.errors import UsageError
from featcache.sweeps.candidates import Bundle
from featcache.sweeps.fitting import fitted
from featcache.sweeps.metrics import better
from featcache.sweeps.run import Settings
from featcache.sweeps.scoring import scored_trial
from featcache.sweeps.tap_data import Prepared, TapData
from featcache.sweeps.trial import DROPPED

SHARES = (9, 3)  # each stage takes one of 9 training images, then one of 3
KEPT = 3  # one of 3 bundles goes on
LEAST = 2  # images of each class in a stage
UNITS = {"s": 1, "m": 60, "h": 3600}


def parse_seconds(text: str) -> float:
    """Return the seconds of a time.

    >>> parse_seconds("90"), parse_seconds("1.5m"), parse_seconds("2h")
    (90.0, 90.0, 7200.0)
    """
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)([smh]?)", text.strip().lower())
    if match is None:
        raise UsageError(f"`budget` takes a time such as 60s, 5m or 1h; got '{text}'")
    return float(match[1]) * UNITS[match[2] or "s"]


@dataclass
class Clock:
    """How much of the budget is left."""

    budget: float | None
    _began: float = field(default_factory=time.perf_counter)
    _has_begun_one: bool = False

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        return np.inf if self.budget is None else self.budget - (time.perf_counter() - self._began)

    def may_begin(self) -> bool:
        """Return whether there is time for one more bundle; the first one always may begin."""
        is_first = not self._has_begun_one
        self._has_begun_one = True
        return is_first or self.left > 0


@dataclass(frozen=True)
class Glimpse:
    """What a bundle showed on few images."""

    bundle: Bundle
    value: float  # the best score among its candidates, larger is better; nan if all of them failed
    seconds: float


def promising(
    bundles: Sequence[Bundle],
    data_of: Callable[[str], TapData],
    settings: Settings,
    jobs: int,
    clock: Clock,
) -> tuple[list[Bundle], dict[int, str]]:
    """Return the bundles to try on all images, best first, and by trial number why others are not tried."""
    dropped: dict[int, str] = {}
    going = list(bundles)
    for share in SHARES:
        glimpses = list(glimpses_of(going, data_of, settings, jobs, share, clock))
        scores = [glimpse.value for glimpse in glimpses if np.isfinite(glimpse.value)]
        # A bundle that cannot be fitted on few images may well be on all: it takes a place in the middle.
        middle = float(np.median(scores)) if scores else 0.0

        seen = {id(glimpse.bundle) for glimpse in glimpses}
        glimpses += [Glimpse(bundle, -np.inf, 0.0) for bundle in going if id(bundle) not in seen]  # no time for them
        glimpses.sort(key=lambda glimpse: -(middle if np.isnan(glimpse.value) else glimpse.value))
        going = [glimpse.bundle for glimpse in glimpses]

        seconds = sum(glimpse.seconds for glimpse in glimpses) * share * settings.selection.num_fits
        if seconds / _num_workers(jobs) < clock.left:
            break
        num_kept = max(1, len(going) // KEPT)
        reason = f"{DROPPED} not among the best {num_kept} of {len(going)} on 1 of {share} training images"
        for bundle in going[num_kept:]:
            dropped |= {candidate.number: reason for candidate in bundle.candidates}
        going = going[:num_kept]
    return going, dropped


def glimpses_of(
    bundles: Sequence[Bundle],
    data_of: Callable[[str], TapData],
    settings: Settings,
    jobs: int,
    share: int,
    clock: Clock,
) -> Iterator[Glimpse]:
    """Yield what bundles show on one in `share` of the training images, as long as half of the budget allows."""
    reserve = (settings.budget or 0) / 2 * share / max(SHARES)  # for the stages that follow
    for tap, chain in dict.fromkeys((bundle.tap, bundle.chain) for bundle in bundles):
        data = data_of(tap)
        few = data.fitted_on(_few_rows(data, share, settings.seed))
        alike = [bundle for bundle in bundles if (bundle.tap, bundle.chain) == (tap, chain)]
        prepared = Prepared(few, chain, last=False)
        results = fitted(few, prepared, alike, settings, jobs, may_begin=lambda: clock.left > reserve)
        with closing(results):  # on an error too: the threads are told to end
            for bundle, outcomes in results:
                value, seconds = np.nan, 0.0
                for candidate, outcome in zip(bundle.candidates, outcomes, strict=True):
                    trial = scored_trial(few, candidate, outcome, settings)
                    seconds += trial.fit_s
                    if trial.status == "ok":
                        value = np.fmax(value, better(settings.metric, trial.judged.value))
                yield Glimpse(bundle, float(value), seconds)


def _few_rows(data: TapData, share: int, seed: int) -> Classes:
    """Return one in `share` of the rows that fit in the first round, class by class."""
    rows = np.random.default_rng(seed).permutation(data.folds[0][0])
    labels = data.y[rows]
    few = []
    for label in np.unique(labels):
        of_class = rows[labels == label]
        num_few = max(LEAST, -(-len(of_class) // share))  # rounded up
        few.append(of_class[:num_few])
    return np.sort(np.concatenate(few))


def _num_workers(jobs: int) -> int:
    from joblib import effective_n_jobs

    return int(effective_n_jobs(jobs))
