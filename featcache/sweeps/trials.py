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
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from featcache.cache.reader import Cache
from featcache.errors import UsageError
from featcache.heads import store
from featcache.heads.estimators import DEFAULT_HEADS, Setting, early_stopping_off
from featcache.heads.estimators import settings as settings_of_heads
from featcache.heads.folds import failure
from featcache.heads.grids import Grid
from featcache.heads.solvers.paths import check_leave_one_out
from featcache.heads.steps import STANDARDISE, parse_chains
from featcache.spec import ImageRow, Progress, Tick, canonical_json, choose, silent
from featcache.sweeps.budget import Clock, promising
from featcache.sweeps.candidates import Bundle, Candidate, list_candidates, make_bundles
from featcache.sweeps.choosing import choosing_rows, images_of, notes_on_val
from featcache.sweeps.fitting import Outcome, fitted
from featcache.sweeps.inputs import by_depth, few_of, single_taps, taps_in, views_of
from featcache.sweeps.metrics import METRICS
from featcache.sweeps.presets import Preset, preset_of, taps_of
from featcache.sweeps.run import Run, Settings
from featcache.sweeps.run_paths import head_file, predictions_file
from featcache.sweeps.scoring import predictions_of_trial, scored_trial, unscored_trial
from featcache.sweeps.selection import Selection
from featcache.sweeps.stored_predictions import save_predictions
from featcache.sweeps.tap_data import Prepared, TapData, make_tap_data
from featcache.sweeps.trial import DROPPED, Trial
from featcache.sweeps.writer import Writer
from featcache.text import counted

WRITERS = 4  # threads that write heads: every file waits for the disk, and files that wait together wait once
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
    train_views: bool = False,
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
    preset: kornblith, clip, dinov2 or fewshot, which sets the options that are not given (see
    `featcache.sweeps.presets`).
    taps: names; "a+b" joins the features of several. prepare: chains of standardise, l2, pca:N, pca:N:whiten, none.
    cv: number of folds within train, or "loo" (leave one out) for ridge and knn; without it the stored validation split
    chooses. Scores under cv do not cover classes with one training image: `Run.unjudged`.
    metric: accuracy, balanced_accuracy, macro_f1, log_loss or ece. shots: the most images per class to use, in train
    and in val. train_views: fit heads on all cached views of each training image; the images that choose are judged in
    the view that `taps` names, as a rule the whole image. budget: seconds; settings that do badly on few images are not
    tried on all. refit: fit the winner on train and val in the end, as `RUN@refit`. memory: bytes that features may
    take, by default a quarter of the machine's; larger ones are streamed from the disk, by heads that can. jobs: trials
    at once, fewer if memory is short; -1 for one per core.
    grid: values in place of the heads' own grids: {"ridge": {"alpha": [0.1, 1, 10]}}. force: replace the run in `out`
    if it has other settings; only files that a sweep writes are replaced, and looks at test stay recorded.

    The same call continues a run that was stopped, and returns a finished one as it is.
    Raises TooFewClasses, UnknownHead, UnknownTap, UsageError.
    """
    protocol = Preset("", DEFAULT_HEADS, {}, STANDARDISE)
    if preset is not None:
        protocol = preset_of(preset)
        grid = _grid_of_preset(preset, protocol, heads, grid or {})
    head_settings = settings_of_heads(heads or protocol.heads, grid)
    selection = Selection.parse(cv)
    if selection.leaves_one_out:
        for setting in head_settings:
            check_leave_one_out(setting.head, setting.params)
    if force and out is None:
        raise UsageError("`force` goes with `out`: without it a sweep takes the next free name")
    if jobs == 0:
        raise UsageError("`jobs` takes a number of trials at once, or -1 for one per core; got 0")
    cache = cache if isinstance(cache, Cache) else Cache.open(cache)
    settings = Settings(
        cache=str(cache.path.resolve()),
        heads=tuple(dict.fromkeys(setting.head for setting in head_settings)),
        taps=_parse_taps(cache, taps or _taps_of_preset(cache, protocol)),
        cv=selection.cv,
        metric=choose("metric", metric, METRICS),
        class_weight=class_weight,
        shots=shots,
        seed=seed,
        grid=_as_json(grid),
        prepare=parse_chains(prepare or protocol.prepare),
        preset=preset,
        budget=budget,
        memory=memory,
        refit=protocol.refit if refit is None else refit,
        train_views=train_views,
    )
    _check(settings)
    _check_views(cache, settings, head_settings)

    train, val = images_of(cache, settings)
    for note in _notes(cache, settings, train, all_taps=not taps):
        progress(Tick("sweep", 0, 0, note))
    candidates = list_candidates(settings, head_settings)
    choosing = choosing_rows(cache, train, val, settings)
    with Writer.begun(cache, settings, out, train, val, choosing, len(candidates), force) as writer:
        if writer.run.is_finished:
            note = f"{writer.run.path} already holds this finished sweep. To do it again: another `out`"
            progress(Tick("sweep", 0, 0, note))
            return writer.run
        _Sweep(cache, settings, train, val, writer, jobs, progress).run(candidates)
        if settings.refit and writer.run.ranked:
            log.info("Fitting the winner on train and val")
            writer.refit(cache, [*train, *val])
    return writer.run


def _notes(cache: Cache, settings: Settings, train: Sequence[ImageRow], *, all_taps: bool) -> list[str]:
    """Return what the user should know before the sweep begins."""
    notes: list[str] = []
    if all_taps:
        notes += cache.incomplete
    most = max(Counter(row.label for row in train).values())
    if settings.shots is not None and settings.shots > most:
        notes.append(f"`shots={settings.shots}` takes all: no class has more than {counted(most, 'training image')}")
    if not settings.selection.is_within_train:
        notes += notes_on_val(cache, settings)
    return notes


def _grid_of_preset(name: str, protocol: Preset, heads: str | Sequence[str] | None, grid: Grid) -> Grid:
    """Return the values of a preset, updated by those in `grid`. Raises UsageError for heads of another kind."""
    requested = heads.split(",") if isinstance(heads, str) else heads or []
    others = [head.strip() for head in requested if head.strip() not in ("", *protocol.grid)]
    if others:
        raise UsageError(
            f"`preset={name!r}` is a protocol of {protocol.heads}; `heads={','.join(others)!r}` contradicts it. "
            "Leave one of them out"
        )
    return {head: {**protocol.grid.get(head, {}), **grid.get(head, {})} for head in {**protocol.grid, **grid}}


def _taps_of_preset(cache: Cache, protocol: Preset) -> list[str]:
    """Return the taps to sweep if the user names none: of each backbone those that the protocol takes."""
    names_of: dict[Any, list[str]] = {}  # {backbone: its taps by depth}
    for name in by_depth(cache, cache.vectors):
        names_of.setdefault(cache.taps[name].backbone, []).append(name)
    taps: list[str] = []
    for names in names_of.values():
        taps += taps_of(protocol, names)
    return taps


def _parse_taps(cache: Cache, taps: str | Sequence[str]) -> tuple[str, ...]:
    """Return the full names of the taps to sweep, joined ones with + between. Raises UnknownTap, UsageError."""
    requested = taps.split(",") if isinstance(taps, str) else taps
    if not requested:
        names: tuple[str, ...] = cache.vectors
    elif "auto" in requested and "auto" not in cache.taps:
        raise UsageError(
            f"`taps='auto'` is for extract. {cache.path} has {', '.join(cache.taps)}; without `taps` all are swept"
        )
    else:
        names = tuple("+".join(cache.tap(part).name for part in taps_in(cache, name)) for name in requested)

    if not names and cache.incomplete:
        raise UsageError(f"{cache.path} has no tap to sweep. {cache.incomplete[0]}")
    maps = [
        name for name in single_taps(cache, names) if name not in cache.vectors and cache.taps[name].pooling == "none"
    ]
    if maps or not names:
        raise UsageError(
            f"{cache.path} has no vectors to sweep in tap '{', '.join(maps or cache.taps)}'. Extract with `pool`"
        )
    return tuple(dict.fromkeys(names))


def _check(settings: Settings) -> None:
    """Raise UsageError for values out of range, and for options that contradict each other."""
    shots, budget, memory, selection = settings.shots, settings.budget, settings.memory, settings.selection
    if shots is not None and shots < 1:
        raise UsageError(f"`shots` takes a number of images per class from 1; got {shots}")
    if budget is not None and not 0 < budget < math.inf:
        raise UsageError(f"`budget` takes a time such as 60s, 5m or 1h; got {budget:g} s")
    if memory is not None and not 0 < memory < math.inf:
        raise UsageError(f"`memory` takes a size such as 500M or 4G; got {memory:g} bytes")
    if selection.leaves_one_out and budget is not None:
        raise UsageError("`budget` has nothing to save with `cv='loo'`, which fits once. Leave one of them out")
    if selection.leaves_one_out and any("pca" in chain for chain in settings.prepare):
        raise UsageError("`cv='loo'` goes without pca, which would see the image that is left out. Use `cv=5`")
    if settings.few and (selection.is_within_train or shots or budget or settings.refit):
        raise UsageError(
            f"`preset={settings.preset!r}` draws its own images: leave out `cv`, `shots`, `budget` and `refit`"
        )
    if settings.class_weight is not None:
        choose("class_weight", settings.class_weight, ["balanced"])


def _check_views(cache: Cache, settings: Settings, head_settings: Sequence[Setting]) -> None:
    """Raise UsageError if heads cannot be fitted on several views of each training image, as was asked for."""
    if not settings.train_views:
        return
    if settings.selection.leaves_one_out:
        raise UsageError(
            "`train_views` cannot be combined with `cv='loo'`, because other views of the left-out image would stay in "
            "training. Use `cv=5`"
        )
    for setting in head_settings:
        if turned_off := early_stopping_off(setting):
            raise UsageError(
                f"`train_views` cannot be combined with the early stopping of '{setting.head}', because other views of "
                f"the images that it holds out would stay in training. Turn it off: `grid` {setting.head}.{turned_off}"
            )
    for tap in settings.taps:
        views_of(cache, tap)  # raises now, rather than after the trials of the taps before it


def _as_json(grid: Grid | None) -> dict[str, dict[str, list[Any]]] | None:
    """Return the grid as run.json will give it back: a run is continued if its settings equal those stored there."""
    if not grid:
        return None
    lists = {head: {name: list(values) for name, values in axes.items()} for head, axes in grid.items()}
    return dict(json.loads(canonical_json(lists)))


@dataclass(frozen=True)
class _Sweep:
    """What the trials of all taps have in common."""

    cache: Cache
    settings: Settings
    train: list[ImageRow]
    val: list[ImageRow]
    writer: Writer
    jobs: int
    progress: Progress

    def run(self, candidates: Sequence[Candidate]) -> None:
        """Try all candidates that have no trial yet, tap after tap."""
        clock = Clock(self.settings.budget)
        left = self._left(candidates)
        bundles = make_bundles(left)
        if self.settings.budget is not None:
            log.info("Trying all settings on few images")
            bundles, dropped = promising(bundles, self._data, self.settings, self.jobs, clock)
            losers = [candidate for candidate in left if candidate.number in dropped]
            self.writer.add([unscored_trial(loser, dropped[loser.number]) for loser in losers])
        for tap in dict.fromkeys(bundle.tap for bundle in bundles):
            self._try_tap(self._data(tap), [bundle for bundle in bundles if bundle.tap == tap], clock)
        late = f"{DROPPED} the time of the budget was over"
        self.writer.add([unscored_trial(candidate, late) for candidate in self._left(candidates)])

    def _left(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        done = self.writer.done
        return [candidate for candidate in candidates if candidate.number not in done]

    def _data(self, tap: str) -> TapData:
        return make_tap_data(self.cache, tap, self.train, self.val, self.settings)

    def _try_tap(self, data: TapData, bundles: Sequence[Bundle], clock: Clock) -> None:
        total = len(data.rounds) * sum(len(bundle.candidates) for bundle in bundles)
        ticks = count()

        def tick() -> None:
            self.progress(Tick(f"sweep {data.tap}", next(ticks), total))

        tick()
        kinds = list(dict.fromkeys((bundle.chain, bundle.few) for bundle in bundles))
        for chain, few in kinds:
            alike = [bundle for bundle in bundles if (bundle.chain, bundle.few) == (chain, few)]
            part = data if few is None else data.fitted_on(few_of(data.y[: data.num_train], *few))
            # The last kind may overwrite the features in place of copying them; a subset must leave them whole.
            is_last = (chain, few) == kinds[-1]
            prepared = Prepared(part, chain, last=is_last and few is None)
            results = fitted(part, prepared, alike, self.settings, self.jobs, may_begin=clock.may_begin, tick=tick)
            with closing(results):  # on an error too: the threads are told to end
                for bundle, outcomes in results:
                    self._add(part, bundle, outcomes)

    def _add(self, data: TapData, bundle: Bundle, outcomes: Sequence[Outcome]) -> None:
        """Write the heads and predictions of a bundle, and then its trials, which refer to them."""
        with ThreadPoolExecutor(WRITERS) as threads:
            trials = list(threads.map(partial(self._saved, data), bundle.candidates, outcomes))
        self.writer.add(trials)

    def _saved(self, data: TapData, candidate: Candidate, outcome: Outcome) -> Trial:
        """Return the trial of a candidate, with its head and predictions on the disk."""
        try:
            trial = scored_trial(data, candidate, outcome, self.settings)
        except Exception as error:  # a classifier of the user may predict anything
            return unscored_trial(candidate, failure(error).reason)
        if trial.status == "ok":
            folder = self.writer.run.path
            trial = replace(trial, size=store.save(head_file(folder, trial.trial), outcome.estimator))
            predictions = predictions_of_trial(data, outcome, trial)
            save_predictions(predictions_file(folder, trial.trial), predictions, data)
        return trial
