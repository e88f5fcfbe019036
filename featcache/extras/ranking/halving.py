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
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from featcache.backbones.parse import Request, backbones_in
from featcache.cache.reader import Cache
from featcache.errors import UsageError, WeightsMissing
from featcache.extraction.api import begin_extraction
from featcache.extraction.compute import FIRST_BATCH, Timing
from featcache.extraction.engines import PixelEngine
from featcache.extraction.extract_options import Options
from featcache.extraction.loss import paired_interval
from featcache.extraction.workflow import Extraction
from featcache.extras.ranking.contenders import Contender, Ranking, Rung, Verdict
from featcache.extras.ranking.rungs import in_seeded_order, rows_to_rank, rungs_of
from featcache.images.manifest import Images
from featcache.spec import ImageRow, Progress, Tap, silent, units_of
from featcache.sweeps.budget import parse_seconds
from featcache.sweeps.choosing import one_of_each_unit
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


def rank(
    images: Images | str | Path,
    backbone: str | Sequence[str] | None = None,
    *,
    out: str | Path,
    budget: float | str | None = None,
    tap: str | Sequence[str] = "top",
    weights: str | None = None,
    size: int | None = None,
    pool: str | None = None,
    resize: str = "stretch",
    decode: str = "exact",
    bits: int | None = None,
    precision: str = "float32",
    dtype: str = "float32",
    engine: str = "auto",
    device: str = "auto",
    batch: int | str = "auto",
    split: str | None = None,
    group_from: str | None = None,
    seed: int | None = None,
    allow_outside: bool = False,
    label_column: str | None = None,
    path_column: str | None = None,
    trust: bool = False,
    force: bool = False,
    progress: Progress = silent,
    clock: Callable[[], float] = time.perf_counter,
) -> Ranking:
    """Return which backbone, and which tap, separates the classes of these images best, and at what cost.

    backbone: two or more names, as in `extract`; or one, with several layers in `tap`. A backbone whose weights are
    missing is left out, and the result says so. out: the cache that keeps all features that are computed.
    budget: seconds, or a text such as "5m", for everything but starting the backbones; without it, only what is surely
    behind is left out early.
    seed: of the split, and of which images come first. clock: returns seconds; what a test may replace.
    Other arguments are as in `extract`, which continues the cache if it gets the same.
    Raises UsageError for fewer than two taps, and for a budget that is too short for the first rung; TooFewClasses,
    WeightsMissing if fewer than two backbones have weights, and what `extract` raises.
    """
    began = clock()
    options = Options(
        backbone=backbone or "",
        tap=tap,
        weights=weights,
        size=size,
        pool=pool,
        resize=resize,
        decode=decode,
        bits=bits,
        precision=precision,
        dtype=dtype,
        engine=engine,
        device=device,
        batch=batch,
        split=split,
        group_from=group_from,
        seed=seed,
        allow_outside=allow_outside,
        label_column=label_column,
        path_column=path_column,
        trust=trust,
    )
    if precision == "int8":
        raise UsageError("`precision='int8'` does not rank: rank in float32, then extract with the winner in 8 bits")
    budget_s = _budget(budget)
    names = _names(options)
    extraction = begin_extraction(images, Path(out), options, force=force, progress=progress, clock=clock)
    extraction.images.require_classes()
    contest = _Contest(extraction, names, budget_s, began, clock)
    contest.start()
    rows = rows_to_rank(extraction.images.rows, extraction.images.root)
    contest.climb(rungs_of(rows, extraction.images.split_spec.seed))
    return contest.result()


def _budget(budget: float | str | None) -> float | None:
    """Return the seconds of a budget; None without one. Raises UsageError."""
    seconds = parse_seconds(budget) if isinstance(budget, str) else budget
    if seconds is not None and not 0 < seconds < math.inf:
        raise UsageError(f"`budget` takes a time such as 60s, 5m or 1h; got {seconds:g} s")
    return seconds


def _names(options: Options) -> dict[Request, str]:
    """Return {request: the backbone as the user named it}. Raises UsageError if there is nothing to rank."""
    names: dict[Request, str] = {}
    for name in backbones_in(options.backbone):
        [request] = replace(options, backbone=[name]).requests()
        names.setdefault(request, name)
        if request.pooling == "none":
            raise UsageError("To rank takes vectors, and `pool='none'` keeps spatial maps. Use `pool='avg'`")
    if not names:
        raise UsageError("Name two or more backbones to rank, such as `backbone='mobilenet_v2,resnet50_v2'`")
    if len(names) == 1:
        [(request, name)] = names.items()
        if len(request.layers) == 1 and request.layers != ("auto",):
            raise UsageError(
                f"There is nothing to rank: `backbone` names only '{name}'. Name two or more, comma between them, or "
                "rank its layers: `tap='auto'`"
            )
    return names


@dataclass
class _Contest:
    """The state of one ranking."""

    extraction: Extraction
    names: dict[Request, str]
    budget: float | None
    began: float
    clock: Callable[[], float]
    going: list[Request] = field(default_factory=list)  # backbones, the best first
    start_s: dict[Request, float] = field(default_factory=dict)
    standings: dict[str, Standing] = field(default_factory=dict)  # {tap: after its last rung}
    lost: dict[str, Contender] = field(default_factory=dict)  # {tap or backbone: why it is left out}
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
                self.lost[name] = Contender(name, "", "", "no weights", str(error))
                if len(self.names) - len(self.lost) < 2:
                    raise
            else:
                self.going.append(request)
            self.start_s[request] = self.clock() - began
        if num_taps < 2:
            raise UsageError("There is nothing to rank: `tap='auto'` reads only one layer here. Name another backbone")

    def climb(self, rungs: Sequence[Sequence[ImageRow]]) -> None:
        """Compare taps on rung after rung, until one is left, or all images were used, or the time is over."""
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
        """Raise UsageError if the budget is too short for the first rung. Its first batch shows what it takes."""
        if self.budget is None:
            return
        first = rung[:FIRST_BATCH]
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
            if timing.images:
                seconds += timing.forward_s / timing.images
                # Backbones that take the same pixels share the decoding.
                pixels = replace(request.preprocess, mode="unit")
                decoding[pixels] = max(decoding.get(pixels, 0.0), timing.waiting_s / timing.images)
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
        standings = self._left_out(cache, rows)
        if not standings:
            raise UsageError(f"No backbone can be ranked on these images: {next(iter(self.lost.values())).reason}")
        leader = max(standings, key=lambda standing: standing.ridge.is_right.sum())
        for standing in standings:
            difference = paired_interval(leader.ridge.is_right, standing.ridge.is_right, CONFIDENCE)
            standing = replace(standing, difference=difference)
            self.standings[standing.tap.name] = standing
            if difference[1] < 0:
                self._leave_out(standing, "behind", f"behind {leader.tap.name}")
        best_first = sorted(self._taps_going(), key=lambda standing: -standing.score.value)
        self.going = list(dict.fromkeys(standing.request for standing in best_first))

    def _left_out(self, cache: Cache, rows: Sequence[ImageRow]) -> list[Standing]:
        """Return the standing of each tap that goes on, on the images of a rung."""
        y = cache.labels(rows)
        standings: list[Standing] = []
        for request in self.going:
            for tap in self.extraction.network(request).taps:
                if tap.name in self.lost:
                    continue
                reason = why_not_left_out(cache, rows, tap.name)
                if reason:
                    self.lost[tap.name] = Contender(self.names[request], tap.name, tap.layer, "not judged", reason)
                    continue
                ridge = left_out(cache.features(rows, tap.name), y)
                standings.append(Standing(request, tap, ridge, (0.0, 0.0)))
        return standings

    def _taps_going(self) -> list[Standing]:
        return [standing for name, standing in self.standings.items() if name not in self.lost]

    def _leave_out(self, standing: Standing, verdict: Verdict, reason: str) -> None:
        self.lost[standing.tap.name] = self._contender(standing, verdict, reason)

    def _contender(self, standing: Standing, verdict: Verdict, reason: str = "") -> Contender:
        timing = self._timing(standing.request)
        seconds = (timing.forward_s + timing.waiting_s) / timing.images if timing.images else None
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
            seconds_per_1000=None if seconds is None else 1000 * seconds,
            start_s=self.start_s[standing.request] + timing.start_s,
            mb_per_1000=1000 * row_bytes / 1e6,
            engine=timing.engine,
        )

    def result(self) -> Ranking:
        """Judge the winner on validation images, and return the result."""
        by_score = sorted(self.standings.values(), key=lambda standing: -standing.score.value)
        best, *others = [standing for standing in by_score if standing.tap.name not in self.lost]
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
        rows = _rows_to_judge(self.extraction.images, self.last)
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
            spent_s += timing.forward_s
            full_s += timing.forward_s / timing.images * len(self.extraction.images.rows)
        return spent_s / full_s if full_s else None

    def _remarks(self, estimate: Score | None) -> list[str]:
        """Return sentences on what the table does not show."""
        remarks: list[str] = []
        for contender in self.lost.values():
            if contender.verdict in ("no weights", "not judged"):
                remarks.append(f"{contender.tap or contender.backbone} is left out: {contender.reason}")
        if self.is_over:
            remarks.append(
                f"The time was over after {counted(len(self.last), 'image')}: a larger `budget` may tell ties apart"
            )
        engines = {timing.engine for timing in self.extraction.timings.values() if timing.engine not in ("", "numpy")}
        if len(engines) > 1:
            remarks.append(
                f"Seconds come from different engines, {' and '.join(sorted(engines))}, so they compare badly"
            )
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


def _rows_to_judge(images: Images, ranked: Sequence[ImageRow]) -> list[ImageRow]:
    """Return validation images of the ranked classes, one of each group, by chance; none of a group in train."""
    labels = {row.label for row in ranked}
    units = units_of(images.rows)
    in_train = {unit for unit, row in zip(units, images.rows, strict=True) if row.split == "train"}
    candidates: list[ImageRow] = []
    for unit, row in zip(units, images.rows, strict=True):
        if row.split == "val" and row.label in labels and unit not in in_train:
            candidates.append(row)
    return in_seeded_order(one_of_each_unit(candidates), images.split_spec.seed)
