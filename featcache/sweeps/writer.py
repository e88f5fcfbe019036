"""The folder of a run while a sweep fills it: begun, continued, saved every few seconds.

run.json is the first file in it, and says from the beginning which sweep the folder belongs to: after a kill at any
moment the same command finds its folder and continues there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from itertools import takewhile
from pathlib import Path
from shlex import quote
from typing import NoReturn

from featcache.cache.reader import Cache
from featcache.errors import NotARun, UsageError
from featcache.files import TEMPORARY, again, make_folder, matching, remove, remove_litter
from featcache.heads import store
from featcache.heads.estimators import joined
from featcache.heads.folds import Fold
from featcache.heads.solvers.paths import try_all
from featcache.heads.steps import fit_steps
from featcache.locks import locked
from featcache.provenance import made_with
from featcache.spec import ImageRow
from featcache.sweeps import records
from featcache.sweeps.inputs import arrays_to_fit, digest_of_rows, single_taps, views_of
from featcache.sweeps.run import Run, Settings
from featcache.sweeps.run_paths import head_file, numbered, predictions_file
from featcache.sweeps.trial import Trial

SAVE_SHARE = 0.1  # of the time may go to writing run.json; a short run is saved after every bundle of trials
LOCK = ".lock"
BEGINNING = b'{\n  "format": '  # how every run.json begins
CACHE_FACTS = {  # of a run, that come from its cache: {field: its name in messages}
    "classes": "classes",
    "fingerprints": "features",
    "images_digest": "images",
    "num_train": "images",
    "planned": "trials",
}


@dataclass
class Writer:
    """The folder of a run, saved every few seconds and when the sweep ends, in whatever way."""

    run: Run
    _began: float
    _saved: float = field(default_factory=time.perf_counter)
    _save_s: float = 0.0  # seconds that saving it took
    _written: Run | None = None  # as it was saved last

    @classmethod
    @contextmanager
    def begun(
        cls,
        cache: Cache,
        settings: Settings,
        out: str | Path | None,
        train: Sequence[ImageRow],
        val: Sequence[ImageRow],
        choosing: Sequence[ImageRow],
        planned: int,
        force: bool = False,
    ) -> Iterator[Writer]:
        """Yield the writer of a new run, or of the one with the same settings, stopped or finished.

        choosing: the images that choose. planned: number of trials. force: replace the run in the folder `out` if it
        has other settings. Raises UsageError.
        """
        judged = {row.label for row in choosing}
        fresh = Run(
            path=Path(),
            settings=settings,
            classes=cache.classes,
            fingerprints=_fingerprints(cache, settings),
            num_train=len(train),
            num_select=len(choosing),
            trials=(),
            images_digest=digest_of_rows([*train, *val], with_groups=settings.selection.is_within_train),
            seconds=0.0,
            planned=planned,
            unjudged=tuple(name for name in cache.classes if name not in judged),
        )
        with ExitStack() as held:
            if out is None:
                run = _claim_first(held, cache, fresh)
            else:
                run = held.enter_context(_claim(Path(out), fresh, force))
            writer = cls(run, time.perf_counter() - run.seconds)
            try:
                yield writer
            finally:
                if writer.run.trials and writer.run is not run and writer.run is not writer._written:
                    writer.save()
                elif not writer.run.trials and not writer.run.test_opened:
                    _remove_if_empty(run.path)

    @property
    def done(self) -> set[int]:
        """Return the numbers of the trials that are written."""
        return {trial.trial for trial in self.run.trials}

    def add(self, trials: Sequence[Trial]) -> None:
        """Add trials, and the versions and the machine that made them."""
        all_trials = sorted([*self.run.trials, *trials], key=lambda trial: trial.trial)
        makers = self.run.makers
        if made_with() not in makers:
            makers = (*makers, made_with())
        self.run = replace(self.run, trials=tuple(all_trials), makers=makers)
        # A share without an upper bound: run.json holds all trials, so that thousands of them take seconds to write.
        if time.perf_counter() - self._saved > self._save_s / SAVE_SHARE:
            self.save()

    def save(self) -> None:
        """Write the run."""
        began = time.perf_counter()
        self.run = replace(self.run, seconds=round(began - self._began, 3))
        self.run.save()
        self._written = self.run
        self._saved = time.perf_counter()
        self._save_s = self._saved - began

    def refit(self, cache: Cache, rows: Sequence[ImageRow]) -> None:
        """Fit the winner on `rows`, those of train and val, and store its head."""
        best, settings = self.run.best.trial, self.run.settings
        X, y = arrays_to_fit(cache, rows, best.tap, settings.train_views, self.run.fingerprints)
        steps, X, no_others = fit_steps(best.prepare, X, X[:0])
        fold = Fold(X, y, no_others)
        [tried] = try_all(best.head, [best.params], fold, settings.class_weight, settings.seed)
        store.save(head_file(self.run.path, "refit"), joined(steps, tried.classifier))
        self.run = replace(self.run, refitted=best.trial)


def _fingerprints(cache: Cache, settings: Settings) -> dict[str, str]:
    """Return {tap: fingerprint} of all that heads are fitted or judged on: another set of views is another sweep."""
    names = list(settings.taps)
    if settings.train_views:
        for tap in settings.taps:
            names += views_of(cache, tap)
    return {tap: cache.taps[tap].fingerprint for tap in single_taps(cache, names)}


class _NotFree(UsageError):
    """A folder in which another sweep is at work, or that holds something else."""


def _claim_first(held: ExitStack, cache: Cache, fresh: Run) -> Run:
    """Return the last of CACHE.run, CACHE-2.run .. with the same settings, else a new one in the first free folder."""
    first = cache.path.with_suffix(".run")
    existing = list(takewhile(Path.exists, numbered(first)))
    for path in reversed(existing):
        with suppress(NotARun):
            if not _differences(Run.open(path), fresh):
                return held.enter_context(_claim(path, fresh))
    for path in numbered(first):
        if (path / "run.json").exists():
            continue
        # Another sweep may claim the same folder at this moment: then it is not free, and the next one is tried.
        with suppress(_NotFree, NotARun):
            return held.enter_context(_claim(path, fresh))
    raise AssertionError


@contextmanager
def _claim(path: Path, fresh: Run, force: bool = False) -> Iterator[Run]:
    """Keep other sweeps out of a folder and yield the run in it: the one with the same settings, or the new one.

    Raises UsageError if another sweep is at work there, or the folder holds something else.
    """
    if path.exists() and not path.is_dir():
        raise _NotFree(f"{path} is there already and is no run, so it is kept. Give another `out`")
    if not (path / "run.json").exists():
        strangers = _strangers(path)
        if strangers:
            raise _NotFree(f"{path} is there already and is no run: it holds {strangers[0]}. Give another `out`")
    with _alone(path):
        yield again(lambda: _begin_or_continue(path, fresh, force))


def _begin_or_continue(path: Path, fresh: Run, force: bool) -> Run:
    """Return the run of a folder; `fresh`, written there, if the folder is free. Raises UsageError, Overtaken."""
    fresh = replace(fresh, path=path)
    if not (path / "run.json").exists():
        fresh.save(replaces=False)
        return fresh
    try:
        stored = Run.open(path)
    except NotARun:
        is_damaged_run = (path / "run.json").read_bytes().startswith(BEGINNING)
        if not (force and is_damaged_run):
            raise
        _replace(fresh)
        return fresh
    fresh = replace(fresh, test_opened=stored.test_opened)  # a look at test is never forgotten
    differences = _differences(stored, fresh)
    if differences and not force:
        raise _NotFree(
            f"{path} holds a run already, with other {', '.join(differences)} (featcache show {quote(str(path))}). "
            "Give another `out`, or none for the next free name; `force=True` replaces it"
        )
    if differences:
        _replace(fresh)
        return fresh
    if stored.ranked or len(stored.trials) < stored.planned:
        # Of these settings only `refit` may be new: the trials stay, and the winner is fitted again.
        return replace(stored, settings=fresh.settings)
    # All its trials failed: try them again.
    return replace(fresh, tuned=stored.tuned, recorded=stored.recorded)


def _replace(fresh: Run) -> None:
    """Replace the run in a folder, its files only: records of looks at test stay, and so do the user's files."""
    fresh.save()
    # After run.json, so that a run that is not replaced keeps its records.
    for record in matching(fresh.path / records.TUNED, "*.json"):
        remove(record)
        remove(records.predictions_of(record))
    # run.json names none of these any more: a kill in between leaves files that nobody reads.
    for stale in (head_file(fresh.path, "*"), predictions_file(fresh.path, "*")):
        for file in matching(stale.parent, "*.npz") + matching(stale.parent, "*.skops"):
            remove(file)


def _strangers(path: Path) -> list[str]:
    """Return the names in a folder but for our locks and temporary files; none if there is no folder."""
    try:
        names = sorted(os.listdir(path))
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        return []  # making the folder reports it
    return [name for name in names if name != LOCK and not TEMPORARY.fullmatch(name)]


def _remove_if_empty(folder: Path) -> None:
    """Remove the files of a sweep that ended before its first trial, unless something else lies in the folder."""
    if set(_strangers(folder)) <= {"run.json", "trials.csv"}:
        remove(folder / "trials.csv")
        remove(folder / "run.json")  # last: it says which sweep the folder belongs to


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other sweeps out of a folder. Raises UsageError if one is at work there."""

    def refuse() -> NoReturn:
        raise _NotFree(f"Another sweep is at work in {folder}. Wait for it, or give another `out`")

    make_folder(folder)
    try:
        with locked(folder / LOCK, busy=refuse):
            for place in (folder, head_file(folder, 1).parent, predictions_file(folder, 1).parent):
                remove_litter(place)  # temporary files of a sweep that was killed
            try:
                yield
            finally:
                remove(folder / LOCK)
    finally:
        with suppress(OSError):  # as a rule it holds a run, and stays
            folder.rmdir()


def _differences(stored: Run, fresh: Run) -> list[str]:
    """Return how two runs differ: the names of settings or, if these are equal, of what the cache holds.

    A new `refit=True` is no difference: the same trials are made, and the winner is fitted again after them.
    """
    names = [setting.name for setting in fields(Settings)]
    if fresh.settings.refit:
        names.remove("refit")
    differences = [name for name in names if getattr(stored.settings, name) != getattr(fresh.settings, name)]
    if differences:
        return differences
    names = [text for fact, text in CACHE_FACTS.items() if getattr(stored, fact) != getattr(fresh, fact)]
    return list(dict.fromkeys(names))
