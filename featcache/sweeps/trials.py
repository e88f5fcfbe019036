"""Cache -> trials -> best.

Every head is fitted on train, and chosen on the validation split or by cross-validation within train.
The test split is not read here.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from featcache.cache.reader import Cache
from featcache.errors import UsageError
from featcache.heads import store
from featcache.heads.estimators import DEFAULT_HEADS, Setting, settings
from featcache.heads.grids import Grid
from featcache.heads.paths import check_leave_one_out
from featcache.heads.steps import STANDARDISE, parse_chains
from featcache.heads.tried import failed
from featcache.spec import ImageRow, Progress, Tick, canonical_json, choose, silent
from featcache.sweeps.budget import Clock, promising
from featcache.sweeps.fitting import Outcome, fitted
from featcache.sweeps.groups import Group, Planned, grouped, planned
from featcache.sweeps.judging import judged_trial, save_predictions, untried
from featcache.sweeps.metrics import METRICS
from featcache.sweeps.presets import Preset, preset_of, taps_of
from featcache.sweeps.run import DROPPED, LOO, Run, Settings, by_depth, few_of, head_file, predictions_file, taps_in
from featcache.sweeps.tasks import Prepared, Task, choosing_rows, images_of, make_task, notes_on_val, part_of
from featcache.sweeps.writer import Writer

log = logging.getLogger(__name__)


def sweep(
    cache: Cache | str | Path,
    heads: str | Sequence[str] | None = None,
    *,
    preset: str | None = None,
    out: str | Path | None = None,
    taps: str | Sequence[str] | None = None,
    prepare: str | Sequence[str] | None = None,
    cv: int | str | None = None,
    metric: str = "accuracy",
    class_weight: str | None = None,
    shots: int | None = None,
    budget: float | None = None,
    refit: bool | None = None,
    memory: float | None = None,
    jobs: int = -1,
    seed: int = 0,
    grid: Grid | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Run:
    """Fit every head on every tap and return the run, written to `out` (default: CACHE.run beside the cache).

    heads: names of families, each a grid (see `featcache.heads.estimators.FAMILIES`), mlp:1024-512, module:Classifier.
    preset: kornblith, clip, dinov2 or fewshot, which sets what is not given (see `featcache.sweeps.presets`).
    taps: names; "a+b" joins the features of several. prepare: chains of standardise, l2, pca:N, pca:N:whiten, none.
    cv: folds within train, or "loo" for ridge and knn; without it the stored validation split chooses. Classes of one
    training image are not judged then: `Run.unjudged`.
    metric: accuracy, balanced_accuracy, macro_f1, log_loss or ece. shots: use at most so many images per class, of
    train and of val alike. budget: seconds; what is not promising on few images is not tried on all. refit: fit the
    winner on train and val in the end, as `RUN@refit`. memory: bytes that features may take, by default a quarter of
    the machine's; larger ones are streamed from the disk, by heads that can. jobs: trials at once, -1 for one per core.
    grid: values instead of those of the heads' own grids: {"ridge": {"alpha": [0.1, 1, 10]}}. force: replace the run in
    `out` if it was asked something else; only files that a sweep writes are replaced, and looks at test stay recorded.

    A run that was stopped goes on where it was if it is asked for again; one that is finished is returned as it is.
    Raises TooFewClasses, UnknownHead, UnknownTap, UsageError.
    """
    protocol = preset_of(preset) if preset is not None else Preset("", DEFAULT_HEADS, {}, STANDARDISE)
    if preset is not None:
        grid = _grid_of(preset, protocol, heads, grid or {})
    todo = settings(heads or protocol.heads, grid)
    folds = _cv(cv, todo)
    if force and out is None:
        raise UsageError("`force` goes with `out`: without it a sweep takes the next free name")
    if jobs == 0:
        raise UsageError("`jobs` takes a number of trials at once, or -1 for one per core; got 0")
    cache = cache if isinstance(cache, Cache) else Cache.open(cache)
    asked = Settings(
        cache=str(cache.path.resolve()),
        heads=tuple(dict.fromkeys(setting.head for setting in todo)),
        taps=_taps(cache, taps or _of_protocol(cache, protocol)),
        cv=folds,
        metric=choose("metric", metric, METRICS),
        class_weight=class_weight,
        shots=shots,
        seed=seed,
        grid=_plain(grid),
        prepare=parse_chains(prepare or protocol.prepare),
        preset=preset,
        budget=budget,
        memory=memory,
        refit=protocol.refit if refit is None else refit,
    )
    _check(asked)
    train, val = images_of(cache, asked)
    for note in () if taps else cache.incomplete:
        progress(Tick("sweep", 0, 0, note))
    _note_on_shots(asked.shots, train, progress)
    for note in notes_on_val(cache, asked) if not asked.cv else ():
        progress(Tick("sweep", 0, 0, note))
    plan = planned(asked, todo)
    choosing = choosing_rows(cache, train, val, asked)
    with Writer.begun(cache, asked, out, train, val, choosing, len(plan), force) as writer:
        if writer.run.is_finished:
            progress(Tick("sweep", 0, 0, f"{writer.run.path} is this sweep, finished. To do it again: another `out`"))
            return writer.run
        _Sweep(cache, asked, train, val, writer, jobs, progress).run(plan)
        if asked.refit and writer.run.ranked:
            log.info("Fitting the winner on train and val")
            writer.refit(cache, [*train, *val])
    return writer.run


def _note_on_shots(shots: int | None, train: Sequence[ImageRow], progress: Progress) -> None:
    """Say so if no class has as many images as are asked for."""
    most = max(Counter(row.label for row in train).values())
    if shots is not None and shots > most:
        note = f"`shots={shots}` takes all: no class has more than {most} training images"
        progress(Tick("sweep", 0, 0, note))


def _grid_of(name: str, protocol: Preset, heads: str | Sequence[str] | None, given: Grid) -> Grid:
    """Return the values of a preset, but for those that are given. Raises UsageError for heads of another kind."""
    wanted = heads.split(",") if isinstance(heads, str) else heads or []
    if others := [head.strip() for head in wanted if head.strip() not in ("", *protocol.grid)]:
        raise UsageError(
            f"`preset={name}` is a protocol of {protocol.heads}; `heads={','.join(others)}` contradicts it. "
            "Leave one of them out"
        )
    return {head: {**protocol.grid.get(head, {}), **given.get(head, {})} for head in {**protocol.grid, **given}}


def _of_protocol(cache: Cache, protocol: Preset) -> list[str]:
    """Return the taps that are swept where the user names none; of several backbones each has its own."""
    names = by_depth(cache, cache.vectors)
    backbones = dict.fromkeys(cache.taps[name].backbone for name in names)
    return [
        tap
        for one in backbones
        for tap in taps_of(protocol, [name for name in names if cache.taps[name].backbone == one])
    ]


def _taps(cache: Cache, taps: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the taps to sweep, joined ones with + between their names. Raises UnknownTap, UsageError."""
    names = taps.split(",") if isinstance(taps, str) else taps
    if not names:
        chosen: tuple[str, ...] = cache.vectors
    else:
        if "auto" in names and "auto" not in cache.taps:
            there = ", ".join(cache.taps)
            raise UsageError(f"`taps='auto'` is for extract. {cache.path} has {there}; without `taps` all are swept")
        chosen = tuple("+".join(cache.tap(one).name for one in taps_in(cache, name)) for name in names)
    single = list(dict.fromkeys(one for name in chosen for one in taps_in(cache, name)))
    maps = [name for name in single if name not in cache.vectors and cache.taps[name].pooling == "none"]
    if not chosen and cache.incomplete:
        raise UsageError(f"{cache.path} has no tap to sweep. {cache.incomplete[0]}")
    if maps or not chosen:
        raise UsageError(
            f"{cache.path} has no vectors to sweep in tap '{', '.join(maps or cache.taps)}'. Extract with --pool"
        )
    return tuple(dict.fromkeys(chosen))


def _cv(cv: int | str | None, todo: Sequence[Setting]) -> int | str | None:
    """Return the number of folds, or "loo". Raises UsageError."""
    if cv is None:
        return None
    if cv == LOO:
        for setting in todo:
            check_leave_one_out(setting.head, setting.params)
        return LOO
    if not str(cv).lstrip("-").isdecimal() or int(cv) < 2:
        raise UsageError(f"`cv` takes a number of folds from 2, or {LOO}; got {cv}")
    return int(cv)


def _check(asked: Settings) -> None:
    """Raise UsageError for what cannot be meant."""
    if asked.shots is not None and asked.shots < 1:
        raise UsageError(f"`shots` takes a number of images per class from 1; got {asked.shots}")
    if asked.budget is not None and not 0 < asked.budget < math.inf:
        raise UsageError(f"`budget` takes a time such as 60s, 5m or 1h; got {asked.budget:g} s")
    if asked.memory is not None and not 0 < asked.memory < math.inf:
        raise UsageError(f"`memory` takes a size such as 500M or 4G; got {asked.memory:g} bytes")
    if asked.budget is not None and asked.cv == LOO:
        raise UsageError("`budget` has nothing to save with `cv='loo'`, which fits once. Leave one of them out")
    if asked.cv == LOO and any("pca" in chain for chain in asked.prepare):
        raise UsageError("`cv='loo'` goes without pca, which would see the image that is left out. Use `cv=5`")
    if asked.few and (asked.cv or asked.shots or asked.budget or asked.refit):
        raise UsageError(f"`preset={asked.preset}` draws its own images: leave out `cv`, `shots`, `budget` and `refit`")
    if asked.class_weight is not None:
        choose("class_weight", asked.class_weight, ["balanced"])


def _plain(grid: Grid | None) -> dict[str, dict[str, list[Any]]] | None:
    """Return the grid as JSON can hold it. Raises UsageError."""
    if not grid:
        return None
    found = {head: {name: list(values) for name, values in axes.items()} for head, axes in grid.items()}
    return dict(json.loads(canonical_json(found)))  # as it is read again


@dataclass(frozen=True)
class _Sweep:
    """What all groups are tried with."""

    cache: Cache
    asked: Settings
    train: list[ImageRow]
    val: list[ImageRow]
    writer: Writer
    jobs: int
    progress: Progress

    def run(self, plan: Sequence[Planned]) -> None:
        """Try all that is planned and not done yet, tap after tap."""
        clock = Clock(self.asked.budget)
        left = [one for one in plan if one.number not in self.writer.done]
        groups = grouped(left)
        if self.asked.budget is not None:
            log.info("Trying all settings on few images")
            groups, dropped = promising(groups, self._task, self.asked, self.jobs, clock)
            self._drop([one for one in left if one.number in dropped], dropped)
        for tap in dict.fromkeys(group.tap for group in groups):
            self._try_tap(self._task(tap), [group for group in groups if group.tap == tap], clock)
        self._drop([one for one in left if one.number not in self.writer.done], {})

    def _task(self, tap: str) -> Task:
        return make_task(self.cache, tap, self.train, self.val, self.asked)

    def _try_tap(self, task: Task, groups: Sequence[Group], clock: Clock) -> None:
        sets = list(dict.fromkeys((group.chain, group.few) for group in groups))
        total = len(task.rounds) * sum(len(group.planned) for group in groups)
        ticks = count(1)

        def tick() -> None:
            self.progress(Tick(f"sweep {task.tap}", next(ticks), total))

        self.progress(Tick(f"sweep {task.tap}", 0, total))
        for chain, few in sets:
            some = [group for group in groups if (group.chain, group.few) == (chain, few)]
            part = task if few is None else part_of(task, few_of(task.y[: task.num_train], *few))
            prepared = Prepared(part, chain, last=(chain, few) == sets[-1] and few is None)
            results = fitted(part, prepared, some, self.asked, self.jobs, may_begin=clock.may_begin, tick=tick)
            with closing(results):  # on an error too: the threads are told to end
                for group, outcomes in results:
                    self._add(part, group, outcomes)

    def _add(self, task: Task, group: Group, outcomes: Sequence[Outcome]) -> None:
        """Write the heads and predictions of a group, and its trials."""
        trials = []
        for one, outcome in zip(group.planned, outcomes, strict=True):
            try:
                trial = judged_trial(task, one, outcome, self.asked)
            except Exception as error:  # whatever it predicts
                trial = untried(one, failed(error).reason)
            if trial.status == "ok":
                path = head_file(self.writer.run.path, one.number)
                trial = replace(trial, size=store.save(path, outcome.estimator))
                save_predictions(predictions_file(self.writer.run.path, one.number), trial, outcome, task)
            trials.append(trial)
        self.writer.add(trials)

    def _drop(self, some: Sequence[Planned], reasons: dict[int, str]) -> None:
        """Write trials that were not tried, and why."""
        late = f"{DROPPED} the time of the budget was over"
        self.writer.add([untried(one, reasons.get(one.number, late)) for one in some])
