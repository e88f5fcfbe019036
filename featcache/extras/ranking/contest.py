"""Rank backbones by successive halving over images and backbones (Jamieson and Talwalkar 2016, arXiv:1502.07943).

On the images of each rung, ridge with every image left out once gives each tap the images that it gets right. The tap
with the most of them leads. Another tap goes on unless the paired interval of the difference lies below zero (McNemar
1947, exact). If time is short, only the better half of the backbones goes on, or the ranking ends with the rung that it
has. So a tap is left out for one of two reasons, and the result says which.

The interval covers 99 %, not 95 %: the leader is the best of several, and it is looked at in every rung.

Features go into an ordinary cache, so a later extraction computes only what is missing. The leader of several is
too good on the images that made it lead; the estimate comes from validation images, which chose nothing. Test images
are neither read nor computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from featcache.backbones.parse import Request
from featcache.cache.reader import Cache
from featcache.errors import TooFewClasses, UsageError, WeightsMissing
from featcache.extraction.compute import FIRST_BATCH, Timing
from featcache.extraction.engines import PixelEngine
from featcache.extraction.loss import paired_interval
from featcache.extraction.workflow import Extraction
from featcache.extras.ranking.contenders import Contender, Ranking, Rung, Verdict
from featcache.extras.ranking.rungs import rows_to_judge
from featcache.spec import ImageRow, Tap
from featcache.sweeps.left_out import LeftOut, left_out
from featcache.sweeps.metrics import Score, wilson
from featcache.sweeps.unseen import rows_that_judge, why_not_left_out
from featcache.text import counted

CONFIDENCE = 0.99  # of the interval that decides
RESERVE = 0.2  # of the time that is left: for judging the winner
LEAST_JUDGING = 100  # validation images that judge the winner, however short the time


@dataclass(frozen=True)
class Standing:
    """One tap after the last rung that it took part in."""

    request: Request
    tap: Tap
    ridge: LeftOut
    difference: tuple[float, float]

    @property
    def score(self) -> Score:
        """Its accuracy, with each image left out."""
        return wilson(int(self.ridge.is_right.sum()), len(self.ridge.is_right))


@dataclass
class Contest:
    """The state of one ranking."""

    extraction: Extraction
    names: dict[Request, str]
    budget: float | None
    began: float
    clock: Callable[[], float]
    going: list[Request] = field(default_factory=list)  # backbones, the best first
    start_s: dict[Request, float] = field(default_factory=dict)
    standings: dict[str, Standing] = field(default_factory=dict)  # {fingerprint: after its last rung}
    lost: dict[str, Contender] = field(default_factory=dict)  # {fingerprint, or name of a backbone without weights}
    rungs: list[Rung] = field(default_factory=list)
    last: Sequence[ImageRow] = ()  # the images of the last rung
    is_over: bool = False  # the time, before all images were used

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return math.inf if self.budget is None else self.budget - self.spent_s

    @property
    def spent_s(self) -> float:
        """Seconds so far, without those of starting backbones: a few images hardly need less of them than many."""
        starting_s = sum(self.start_s.values())
        starting_s += sum(timing.start_s for timing in self.extraction.timings.values())
        return self.clock() - self.began - starting_s

    def start(self) -> None:
        """Find the weights of all backbones. Raises WeightsMissing if too few have them, UsageError for one tap."""
        num_taps = 0
        for request, name in self.names.items():
            began = self.clock()
            try:
                num_taps += len(self.extraction.network(request).taps)
            except WeightsMissing as error:
                start_s = self.clock() - began
                self.lost[name] = Contender(name, "", "", "no weights", str(error), start_s=start_s)
                if len(self.names) - len(self.lost) < 2:
                    raise
            else:
                self.going.append(request)
            self.start_s[request] = self.clock() - began
        if num_taps < 2:
            raise UsageError("There is nothing to rank: `tap='auto'` reads only one layer here. Name another backbone")

    def climb(self, rungs: Sequence[Sequence[ImageRow]]) -> None:
        """Compare taps on rung after rung, until one is left, or all images were used, or the budget is."""
        for number, rung in enumerate(rungs):
            if number == 0:
                self._try_first(rung)
            elif not self._make_affordable(rung):
                self.is_over = True
                break
            self.last = rung
            self._compare(rung)
            if len(self._taps_going()) < 2:
                break

    def _try_first(self, rung: Sequence[ImageRow]) -> None:
        """Raise UsageError if the budget is too short for the first rung. Its first batches show what it takes."""
        if self.budget is None:
            return
        first = rung[: 2 * FIRST_BATCH]  # two, because the first one also compiles
        self._compute(self.going, first)
        needed_s = self._seconds(self.going, len(rung) - len(first))
        if needed_s > self.left_s:
            rung_s = self.spent_s + needed_s
            advised_s = math.ceil(rung_s / (1 - RESERVE) / 10) * 10
            raise UsageError(
                f"`budget` of {self.budget:g} s is too short: the first {counted(len(rung), 'image')} through "
                f"{counted(len(self.going), 'backbone')} take about {rung_s:.0f} s, without starting them. Use "
                f"`budget='{advised_s}s'` or fewer backbones; {self.extraction.order.out} keeps what was computed"
            )

    def _make_affordable(self, rung: Sequence[ImageRow]) -> bool:
        """Leave out backbones until there is time for a rung; return False, leaving out none, if there is not."""
        num_new = len(rung) - len(self.last)
        kept = list(self.going)
        while self._seconds(kept, num_new) > self.left_s * (1 - RESERVE):
            if len(kept) <= 2:
                return False  # the two best are compared on the same images, or not at all
            kept = kept[: max(2, math.ceil(len(kept) / 2))]
        reason = f"not among the best {len(kept)} after {len(self.last)} images, and no time for more backbones"
        for standing in self._taps_going():
            if standing.request not in kept:
                self._leave_out(standing, "no time", reason)
        self.going = kept
        return True

    def _seconds(self, requests: Sequence[Request], num_images: int) -> float:
        """Return how long some images take with these backbones, as far as their speed is known."""
        seconds = 0.0
        decoding: dict[object, float] = {}
        for request in requests:
            timing = self._timing(request)
            seconds += timing.forward_s_each
            # Backbones that take the same pixels share the decoding.
            pixels = replace(request.preprocess, mode="unit")
            decoding[pixels] = max(decoding.get(pixels, 0.0), timing.waiting_s_each)
        return num_images * (seconds + sum(decoding.values()))

    def _timing(self, request: Request) -> Timing:
        return self.extraction.timings.get(request, Timing())

    def _compute(self, requests: Sequence[Request], rows: Sequence[ImageRow]) -> Cache:
        return self.extraction.run_for(requests, [row.path for row in rows])

    def _compare(self, rung: Sequence[ImageRow]) -> None:
        """Compute the features of a rung, and leave out the taps that are surely behind."""
        backbones = tuple(self.names[request] for request in self.going)
        self.extraction.order.note("rank", f"{counted(len(rung), 'image')}: {', '.join(backbones)}")
        cache = self._compute(self.going, rung)
        self.rungs.append(Rung(len(rung), backbones))
        rows = _usable(cache, rung)
        if len({row.label for row in rows}) < 2:
            first = cache.failures[0]
            raise TooFewClasses(
                f"Only {len(rows)} of {len(rung)} images can be used, of fewer than two classes; {first.path}: "
                f"{first.reason}"
            )
        standings = self._left_out(cache, rows)
        if not standings:
            raise UsageError(f"No backbone can be ranked on these images: {next(iter(self.lost.values())).reason}")
        leader = max(standings, key=lambda standing: standing.ridge.is_right.sum())
        for standing in standings:
            difference = paired_interval(leader.ridge.is_right, standing.ridge.is_right, CONFIDENCE)
            standing = replace(standing, difference=difference)
            self.standings[standing.tap.fingerprint] = standing
            if difference[1] < 0:
                self._leave_out(standing, "behind", f"behind {leader.tap.name}")
        best_first = sorted(self._taps_going(), key=lambda standing: -standing.score.value)
        self.going = list(dict.fromkeys(standing.request for standing in best_first))

    def _left_out(self, cache: Cache, rows: Sequence[ImageRow]) -> list[Standing]:
        """Return the standing of each tap that goes on, on the images of a rung."""
        y = cache.labels(rows)
        # Two models of one name are told apart by the names that the cache gives their taps.
        stored = {tap.fingerprint: tap for tap in cache.taps.values()}
        standings: list[Standing] = []
        for request in self.going:
            for fingerprint in [tap.fingerprint for tap in self.extraction.network(request).taps]:
                if fingerprint in self.lost:
                    continue
                tap = stored[fingerprint]
                reason = why_not_left_out(cache, rows, tap.name)
                if reason:
                    self.lost[fingerprint] = Contender(self.names[request], tap.name, tap.layer, "not judged", reason)
                    continue
                ridge = left_out(cache.features(rows, tap.name), y)
                standings.append(Standing(request, tap, ridge, (0.0, 0.0)))
        return standings

    def _taps_going(self) -> list[Standing]:
        return [standing for fingerprint, standing in self.standings.items() if fingerprint not in self.lost]

    def _leave_out(self, standing: Standing, verdict: Verdict, reason: str) -> None:
        self.lost[standing.tap.fingerprint] = self._contender(standing, verdict, reason)

    def _contender(self, standing: Standing, verdict: Verdict, reason: str = "") -> Contender:
        timing = self._timing(standing.request)
        seconds = timing.forward_s_each + timing.waiting_s_each
        row_bytes = standing.ridge.classifier.n_features_in_ * np.dtype(standing.tap.dtype).itemsize
        return Contender(
            backbone=self.names[standing.request],
            tap=standing.tap.name,
            layer=standing.tap.layer,
            verdict=verdict,
            reason=reason,
            score=standing.score,
            images=len(standing.ridge.is_right),
            difference=standing.difference,
            seconds_per_1000=1000 * seconds if timing.images else None,
            start_s=self.start_s[standing.request] + timing.start_s,
            mb_per_1000=1000 * row_bytes / 1e6,
            engine=timing.engine,
        )

    def result(self) -> Ranking:
        """Judge the winner on validation images, and return the result."""
        best, *others = sorted(self._taps_going(), key=lambda standing: -standing.score.value)
        estimate, num_judging = self._judge(best)

        contenders = [self._contender(best, "winner")]
        contenders += [self._contender(standing, "tie") for standing in others]
        # Those that came furthest stand first; backbones that were not judged have no images.
        contenders += sorted(self.lost.values(), key=_place)
        images = self.extraction.images
        return Ranking(
            cache=str(self.extraction.order.out),
            images=len(images.rows),
            classes=len(images.classes),
            contenders=tuple(contenders),
            rungs=tuple(self.rungs),
            estimate=estimate,
            judging_images=num_judging,
            budget=self.budget,
            seconds=self.clock() - self.began,
            share=self._share(),
            remarks=tuple(self._remarks(estimate)),
        )

    def _judge(self, winner: Standing) -> tuple[Score | None, int]:
        """Return the accuracy of the winner's ridge on validation images, as many as there is time for, and how many.

        No image of theirs, and none of their groups, was in a rung.
        """
        rows = rows_to_judge(self.extraction.images, self.last)
        seconds_each = self._seconds([winner.request], 1)
        if self.budget is not None and seconds_each:
            rows = rows[: max(LEAST_JUDGING, int(self.left_s / seconds_each))]
        if not rows:
            return None, 0
        cache = self._compute([winner.request], rows)
        judging = rows_that_judge(cache, _usable(cache, rows), "val", [winner.tap.name])
        if not judging:
            return None, 0
        predicted = winner.ridge.predict(cache.features(judging, winner.tap.name))
        num_right = int((predicted == cache.labels(judging)).sum())
        return wilson(num_right, len(judging)), len(judging)

    def _share(self) -> float | None:
        """Return the time through the networks as a share of what all images through all of them would take."""
        spent_s = 0.0
        full_s = 0.0
        for request, name in self.names.items():
            if name in self.lost:  # it has no weights
                continue
            timing = self._timing(request)
            if not timing.images:
                return None
            spent_s += timing.forward_s_each * timing.images
            full_s += timing.forward_s_each * len(self.extraction.images.rows)
        return spent_s / full_s if full_s else None

    def _remarks(self, estimate: Score | None) -> list[str]:
        """Return sentences on what the table does not show."""
        remarks: list[str] = []
        for contender in self.lost.values():
            if contender.verdict in ("no weights", "not judged"):
                remarks.append(f"{contender.tap or contender.backbone} is left out: {contender.reason}")
        if self.is_over:
            remarks.append(
                f"The budget ended after {counted(len(self.last), 'image')}: a larger `budget` may tell ties apart"
            )
        engines = {timing.engine for timing in self.extraction.timings.values()} - {"", PixelEngine.name}
        if len(engines) > 1:
            names = " and ".join(sorted(engines))
            remarks.append(f"Seconds come from different engines, {names}, so they compare badly")
        ranked_labels = {row.label for row in self.last}
        rare = [label for label in self.extraction.images.classes if label not in ranked_labels]
        if rare:
            remarks.append(
                f"{len(rare)} of {len(self.extraction.images.classes)} classes have too few training images to leave "
                f"one out, such as '{rare[0]}', so the ranking is about the others"
            )
        if estimate is None:
            remarks.append(
                "No validation image can judge the winner, so there is only the score of the images that chose it, "
                "which is too good"
            )
        return remarks


def _place(contender: Contender) -> tuple[int, float]:
    return -contender.images, 0.0 if contender.score is None else -contender.score.value


def _usable(cache: Cache, rows: Sequence[ImageRow]) -> list[ImageRow]:
    """Return the rows that have features, as the cache has them."""
    paths = {row.path for row in rows}
    return [row for row in cache.usable() if row.path in paths]
