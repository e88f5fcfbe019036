"""Cache -> trials -> best.

Every head is fitted on train, and chosen on the validation split or by cross-validation within train.
The test split is not read here.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from featcache.arrays import Classes, Features, Floats
from featcache.cache.reader import Cache
from featcache.errors import ShapeMismatch, TooFewClasses, UsageError
from featcache.heads import store
from featcache.heads.estimators import DEFAULT_HEADS, Setting, family_of, joined, settings
from featcache.heads.grids import Grid, Params
from featcache.heads.paths import Fold, Tried, together, try_all
from featcache.spec import ImageRow, Progress, Tick, canonical_json, choose, silent, unit_of
from featcache.sweeps.metrics import fit_temperature, log_loss, score
from featcache.sweeps.run import Run, Settings, Trial, digest_of_rows, free_folder, head_file

METRICS = ("accuracy", "balanced_accuracy", "macro_f1")
MIN_SELECT = 2  # images of validation below which nothing can be chosen on them


@dataclass(frozen=True)
class _Task:
    """The arrays of one tap, and which rows fit and which choose: one pair without, K pairs with cross-validation."""

    tap: str
    X: Features
    y: Classes
    folds: tuple[tuple[Classes, Classes], ...]
    num_train: int


@dataclass(frozen=True)
class _Fitted:
    trial: Trial
    estimator: Any


def sweep(
    cache: Cache | str | Path,
    heads: str | Sequence[str] = DEFAULT_HEADS,
    *,
    out: str | Path | None = None,
    taps: str | Sequence[str] | None = None,
    cv: int | None = None,
    metric: str = "accuracy",
    class_weight: str | None = None,
    shots: int | None = None,
    jobs: int = -1,
    seed: int = 0,
    grid: Grid | None = None,
    progress: Progress = silent,
) -> Run:
    """Fit every head on every tap and return the run, written to `out` (default: CACHE.run beside the cache).

    heads: names of families, each a grid: ridge, logreg, svm, softmax, knn, mlp, mlp:WIDTH or mlp:1024-512. cv: folds
    within train; without it the stored validation split chooses. metric: accuracy, balanced_accuracy or macro_f1.
    shots: use at most so many images per class, of train and of val alike. jobs: trials at once, -1 for one per core.
    grid: values instead of those of the heads' own grids: {"ridge": {"alpha": [0.1, 1, 10]}}.
    Raises TooFewClasses, UnknownHead, UnknownTap, UsageError.
    """
    started = time.perf_counter()
    cache = cache if isinstance(cache, Cache) else Cache.open(cache)
    todo = settings(heads, grid)
    asked = _settings(cache, todo, taps, cv, metric, class_weight, shots, seed)
    asked = replace(asked, grid=_plain(grid))
    train, val = _rows(cache, asked)
    folder = _folder(cache, out)
    fitted: list[_Fitted] = []
    for tap in asked.taps:
        task = _task(cache, tap, train, val, asked)
        fitted += _try_all(task, todo, asked, jobs, len(fitted), progress)
    for one in fitted:
        if one.trial.handoff and one.trial.status == "ok":
            store.save(head_file(folder, one.trial), one.estimator)
    run = Run(
        path=folder,
        settings=asked,
        classes=cache.classes,
        fingerprints={tap: cache.taps[tap].fingerprint for tap in asked.taps},
        num_train=len(train),
        num_select=len(train) if asked.cv else len(val),
        trials=tuple(one.trial for one in fitted),
        images_digest=digest_of_rows([*train, *val]),
        seconds=round(time.perf_counter() - started, 3),
    )
    run.save()
    return run


def _settings(
    cache: Cache,
    todo: Sequence[Setting],
    taps: str | Sequence[str] | None,
    cv: int | None,
    metric: str,
    class_weight: str | None,
    shots: int | None,
    seed: int,
) -> Settings:
    names = taps.split(",") if isinstance(taps, str) else taps
    chosen = tuple(cache.tap(name).name for name in names) if names else cache.vectors
    maps = [name for name in chosen if name not in cache.vectors and cache.taps[name].pooling == "none"]
    begun = [name for name, tap in cache.taps.items() if tap.pooling != "none" and name not in cache.vectors]
    if not chosen and begun:
        names = ", ".join(begun)
        raise UsageError(f"{cache.path} lacks images in tap '{names}'. Bring it up to date: featcache extract")
    if maps or not chosen:
        raise UsageError(
            f"{cache.path} has no vectors to sweep in tap '{', '.join(maps or cache.taps)}'. Extract with --pool"
        )
    if cv is not None and cv < 2:
        raise UsageError(f"--cv takes a number of folds from 2; got {cv}")
    if shots is not None and shots < 1:
        raise UsageError(f"--shots takes a number of images per class from 1; got {shots}")
    if class_weight is not None:
        choose("--class-weight", class_weight, ["balanced"])
    heads = tuple(dict.fromkeys(setting.head for setting in todo))
    return Settings(
        str(cache.path.resolve()),
        heads,
        chosen,
        cv,
        choose("--metric", metric, METRICS),
        class_weight,
        shots,
        seed,
    )


def _plain(grid: Grid | None) -> dict[str, dict[str, list[Any]]] | None:
    """Return the grid as JSON can hold it. Raises UsageError."""
    if not grid:
        return None
    found = {head: {name: list(values) for name, values in axes.items()} for head, axes in grid.items()}
    canonical_json(found)
    return found


def _rows(cache: Cache, asked: Settings) -> tuple[list[ImageRow], list[ImageRow]]:
    """Return the images that train and those that choose. Raises TooFewClasses."""
    train = [row for row in cache.usable("train", asked.shots) if row.label]
    val = [row for row in cache.usable("val", asked.shots) if row.label]
    found_of = Counter(row.label for row in train)
    counts = {name: found_of[name] for name in cache.classes}
    if len(counts) < 2:
        found = f"one class only, '{cache.classes[0]}'" if counts else "no labels"
        raise TooFewClasses(f"{cache.path} has {found}. A classifier needs images of at least two class folders")
    least = min(counts, key=lambda name: counts[name])
    if counts[least] == 0:
        raise TooFewClasses(
            f"Class '{least}' of {cache.path} has no readable image in train. Add images or take the class out"
        )
    if asked.cv and counts[least] < asked.cv:
        raise TooFewClasses(
            f"--cv {asked.cv} needs {asked.cv} training images of each class; '{least}' has {counts[least]}. Use fewer"
        )
    if not asked.cv and len(val) < MIN_SELECT:
        raise TooFewClasses(
            f"{cache.path} has {len(val)} validation images to choose on. Choose by cross-validation: --cv 5"
        )
    return train, val


def _folder(cache: Cache, out: str | Path | None) -> Path:
    if out is None:
        return free_folder(cache.path.with_suffix(".run"))
    if (Path(out) / "run.json").exists():
        raise UsageError(f"{out} holds a run already. Give another -o, or move it away")
    return Path(out)


def _task(cache: Cache, tap: str, train: list[ImageRow], val: list[ImageRow], asked: Settings) -> _Task:
    cache.check(tap)  # once; what follows rests on these numbers
    rows = train if asked.cv else [*train, *val]
    X, y = cache.features(rows, tap), cache.labels(rows)
    _check_finite(X, rows, tap)
    if not asked.cv:
        everything = np.arange(len(rows))
        return _Task(tap, X, y, ((everything[: len(train)], everything[len(train) :]),), len(train))
    return _Task(tap, X, y, _folds(train, y, asked), len(train))


def _folds(train: list[ImageRow], y: Classes, asked: Settings) -> tuple[tuple[Classes, Classes], ...]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    units = [unit_of(row) for row in train]  # what must not stand on both sides: groups, and copies of one image
    if len(set(units)) == len(units):
        splitter = StratifiedKFold(asked.cv, shuffle=True, random_state=asked.seed)
        return tuple(splitter.split(y, y))
    grouped = StratifiedGroupKFold(asked.cv, shuffle=True, random_state=asked.seed)
    folds = tuple(grouped.split(y, y, units))
    if any(len(np.unique(y[fit_on])) < len(np.unique(y)) for fit_on, _ in folds):
        raise TooFewClasses(
            f"--cv {asked.cv}: all groups of some class fall into one fold. Use fewer folds, or the validation split"
        )
    return folds


def _check_finite(X: Features, rows: list[ImageRow], tap: str) -> None:
    bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
    if len(bad):
        raise ShapeMismatch(
            f"Tap '{tap}' has features that are not finite, in {len(bad)} rows such as {rows[bad[0]].path}"
        )


def _try_all(
    task: _Task, todo: Sequence[Setting], asked: Settings, jobs: int, offset: int, progress: Progress
) -> list[_Fitted]:
    """Fit all settings on one tap, fold after fold.

    Each fold is scaled once. Heads are fitted on threads with one BLAS thread each, those that Keras trains one by
    one. What predicts later is fitted on all of train, which is the one fold that there is without folds.
    """
    from joblib import Parallel, delayed
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    outcomes, ticks = [_Outcome() for _ in todo], count(1)
    rounds = [*task.folds, (np.arange(task.num_train), np.arange(0))] if asked.cv else [*task.folds]

    def calls(groups: Sequence[_Group]) -> Iterator[tuple[_Group, Any, Fold]]:
        for fit_on, choose_on in rounds if groups else ():
            scaler, fold = _scaled(task, fit_on, choose_on)
            yield from ((group, scaler, fold) for group in groups)

    def fit(group: _Group, scaler: Any, fold: Fold) -> tuple[_Group, Any, list[Tried]]:
        return group, scaler, try_all(group.head, group.grid, fold, asked.class_weight, asked.seed)

    def note(group: _Group, scaler: Any, found: Sequence[Tried]) -> None:
        for number, tried in zip(group.numbers, found, strict=True):
            outcomes[number].add(tried, scaler)
            progress(Tick(f"sweep {task.tap}", next(ticks), len(rounds) * len(todo)))

    groups = _groups(todo)
    on_threads = calls([group for group in groups if not family_of(group.head).in_keras(group.grid[0])])
    in_keras = calls([group for group in groups if family_of(group.head).in_keras(group.grid[0])])
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # counted in Trial.converged
        # a fold is scaled when its first call is due, so that few folds are in memory, however many there are
        parallel = Parallel(n_jobs=jobs, prefer="threads", return_as="generator")
        for done in parallel(delayed(fit)(*one) for one in on_threads):
            note(*done)
    for one in in_keras:
        note(*fit(*one))
    truth = np.concatenate([task.y[choose_on] for _, choose_on in task.folds])
    return [
        _fitted(task, number, setting, outcome, truth, asked)
        for number, (setting, outcome) in enumerate(zip(todo, outcomes, strict=True), offset + 1)
    ]


@dataclass(frozen=True)
class _Group:
    """Settings of one head that are fitted together."""

    numbers: Sequence[int]  # among all
    head: str
    grid: Sequence[Params]


def _groups(todo: Sequence[Setting]) -> list[_Group]:
    groups: list[_Group] = []
    for head in dict.fromkeys(setting.head for setting in todo):
        numbers = [at for at, setting in enumerate(todo) if setting.head == head]
        for some in together(head, [todo[at].params for at in numbers]):
            chosen = [numbers[at] for at in some]
            groups.append(_Group(chosen, head, [todo[at].params for at in chosen]))
    return groups


def _scaled(task: _Task, fit_on: Classes, choose_on: Classes) -> tuple[Any, Fold]:
    from sklearn.preprocessing import StandardScaler

    X = task.X[fit_on]
    scaler = StandardScaler().fit(X)
    others = scaler.transform(task.X[choose_on]) if len(choose_on) else task.X[:0]
    return scaler, Fold(scaler.transform(X), task.y[fit_on], others)


@dataclass
class _Outcome:
    """What became of one setting so far, fold by fold."""

    predicted: list[Classes] = field(default_factory=list)
    logits: list[Floats] = field(default_factory=list)
    seconds: float = 0.0
    reason: str = ""
    estimator: Any = None  # of the last fold

    def add(self, tried: Tried, scaler: Any) -> None:
        self.reason = self.reason or tried.reason
        self.seconds += tried.seconds
        if not self.reason:
            self.estimator = joined(scaler, tried.classifier)
            self.predicted.append(tried.predicted)
            if tried.logits is not None:
                self.logits.append(tried.logits)


def _fitted(task: _Task, number: int, setting: Setting, outcome: _Outcome, truth: Classes, asked: Settings) -> _Fitted:
    """Return the trial; a classifier that raised has its reason instead of a score."""
    family = family_of(setting.head)
    trial = Trial(
        trial=number,
        tap=task.tap,
        width=task.X.shape[1],
        head=setting.head,
        params=dict(setting.params),
        status=outcome.reason or "ok",
        score=0.0,
        interval=(0.0, 0.0),
        fit_s=round(outcome.seconds, 3),
        handoff=family.handoff,
        converged=True,
        temperature=1.0,
        rank=setting.rank,
    )
    if outcome.reason:
        return _Fitted(trial, None)
    found = score(truth, np.concatenate(outcome.predicted), asked.metric)
    temperature, loss = 1.0, None
    if outcome.logits:
        logits = np.concatenate(outcome.logits)
        temperature = 1.0 if family.probabilities else fit_temperature(logits, truth)
        loss = log_loss(logits / temperature, truth)
    trial = replace(
        trial,
        score=found.value,
        interval=(found.low, found.high),
        converged=_converged(outcome.estimator[-1]),
        temperature=temperature,
        log_loss=loss,
    )
    return _Fitted(trial, outcome.estimator)


def _converged(classifier: Any) -> bool:
    iterations = getattr(classifier, "n_iter_", None)
    limit = getattr(classifier, "max_iter", None)
    return iterations is None or limit is None or bool(np.max(iterations) < limit)
