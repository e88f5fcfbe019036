"""The folder of a run while it is made: begun, gone on with, written again and again.

run.json is the first file in it, and says from the beginning which sweep the folder belongs to: after a kill at any
moment the same command finds its folder and goes on there.
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
from featcache.heads.paths import try_all
from featcache.heads.steps import make_steps
from featcache.heads.tried import Fold
from featcache.locks import locked
from featcache.provenance import made_with
from featcache.spec import ImageRow
from featcache.sweeps import records
from featcache.sweeps.run import (
    Run,
    Settings,
    Trial,
    digest_of_rows,
    features_of,
    head_file,
    numbered,
    predictions_file,
    single_taps,
)

SAVE_SHARE = 0.1  # of the time that goes to writing run.json; of a short run every group of trials is written at once
LOCK = ".lock"
BEGINNING = b'{\n  "format": '  # of every run.json


@dataclass
class Writer:
    """The folder of the run, written every few seconds and when the sweep ends, in whatever way."""

    run: Run
    _began: float
    _saved: float = field(default_factory=time.perf_counter)
    _save_s: float = 0.0  # that writing it took

    @classmethod
    @contextmanager
    def begun(
        cls,
        cache: Cache,
        asked: Settings,
        out: str | Path | None,
        train: Sequence[ImageRow],
        val: Sequence[ImageRow],
        choosing: Sequence[ImageRow],
        planned: int,
        force: bool = False,
    ) -> Iterator[Writer]:
        """Give a writer of a new run, or of the one that was asked the same, stopped or finished.

        choosing: the images that choose. force: replace the run in the folder `out` if it was asked something else.
        Raises UsageError.
        """
        judged = {row.label for row in choosing}
        fresh = Run(
            path=Path(),
            settings=asked,
            classes=cache.classes,
            fingerprints={tap: cache.taps[tap].fingerprint for tap in single_taps(cache, asked.taps)},
            num_train=len(train),
            num_select=len(choosing),
            trials=(),
            images_digest=digest_of_rows([*train, *val], asked.cv),
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
                if writer.run.trials and writer.run is not run:
                    writer.save()
                elif not writer.run.trials and not writer.run.test_opened:
                    _give_back(run.path)

    @property
    def done(self) -> set[int]:
        """Return the numbers of the trials that were tried."""
        return {trial.trial for trial in self.run.trials}

    def add(self, trials: Sequence[Trial]) -> None:
        """Write down what was tried, and with which versions on which machine."""
        together = sorted([*self.run.trials, *trials], key=lambda trial: trial.trial)
        makers = self.run.makers if made_with() in self.run.makers else (*self.run.makers, made_with())
        self.run = replace(self.run, trials=tuple(together), makers=makers)
        # No upper bound: run.json holds all trials, so that thousands take seconds to write, and more each time.
        if time.perf_counter() - self._saved > self._save_s / SAVE_SHARE:
            self.save()

    def save(self) -> None:
        """Write the run."""
        began = time.perf_counter()
        self.run = replace(self.run, seconds=round(began - self._began, 3))
        self.run.save()
        self._saved = time.perf_counter()
        self._save_s = self._saved - began

    def refit(self, cache: Cache, rows: Sequence[ImageRow]) -> None:
        """Fit the winner on train and val."""
        best, asked = self.run.best.trial, self.run.settings
        X, steps = features_of(cache, rows, best.tap), make_steps(best.prepare)
        for _, step in steps:
            X = step.fit_transform(X)
        fold = Fold(X, cache.labels(rows), X[:0])
        [tried] = try_all(best.head, [best.params], fold, asked.class_weight, asked.seed)
        store.save(head_file(self.run.path, "refit"), joined(steps, tried.classifier))
        self.run = replace(self.run, refitted=best.trial)


class _NotFree(UsageError):
    """A folder in which another sweep is at work, or that holds something else."""


def _claim_first(held: ExitStack, cache: Cache, fresh: Run) -> Run:
    """Return the last of CACHE.run, CACHE-2.run .. that was asked the same, else a new one in the first free folder."""
    first = cache.path.with_suffix(".run")
    there = list(takewhile(Path.exists, numbered(first)))
    for path in reversed(there):
        with suppress(NotARun):
            if not _differences(Run.open(path), fresh):
                return held.enter_context(_claim(path, fresh))
    for path in numbered(first):
        if (path / "run.json").exists():
            continue
        # Another sweep may claim the same folder at this moment: then it is not free, and the next one is looked at.
        with suppress(_NotFree, NotARun):
            return held.enter_context(_claim(path, fresh))
    raise AssertionError


@contextmanager
def _claim(path: Path, fresh: Run, force: bool = False) -> Iterator[Run]:
    """Keep other sweeps out of a folder and give the run in it: the one that was asked the same, or the new one.

    Raises UsageError if another sweep is at work there, or the folder holds something else.
    """
    if path.exists() and not path.is_dir():
        raise _NotFree(f"{path} is there already and is no run, so it is kept. Give another -o")
    if not (path / "run.json").exists() and (others := _strangers(path)):
        raise _NotFree(f"{path} is there already and is no run: it holds {others[0]}. Give another -o")
    with _alone(path):
        yield again(lambda: _begun(path, fresh, force))


def _begun(path: Path, fresh: Run, force: bool) -> Run:
    """Return the run of a folder, which is written there if the folder is free. Raises UsageError, Overtaken."""
    fresh = replace(fresh, path=path)
    if not (path / "run.json").exists():
        fresh.save(replaces=False)
        return fresh
    try:
        there = Run.open(path)
    except NotARun:
        if not (force and (path / "run.json").read_bytes().startswith(BEGINNING)):
            raise
        _replace(fresh)  # damaged, but ours
        return fresh
    fresh = replace(fresh, test_opened=there.test_opened)  # of these nothing is lost, whatever happens to the run
    differ = _differences(there, fresh)
    if differ and not force:
        raise _NotFree(
            f"{path} holds a run already, with other {', '.join(differ)} (featcache show {quote(str(path))}). "
            "Give another `out`, or none for the next free name; `force=True` replaces it"
        )
    if differ:
        _replace(fresh)
        return fresh
    if there.ranked or len(there.trials) < there.planned:
        return there
    return replace(fresh, tuned=there.tuned, recorded=there.recorded)  # all of it was tried and failed: anew


def _replace(fresh: Run) -> None:
    """Replace the run in a folder: its files only. Records of looks at test stay, and so does what else lies there."""
    fresh.save()
    # After run.json, so that a run that is not replaced keeps what is recorded of it.
    for record in matching(fresh.path / records.TUNED, "*.json"):  # of trials that are gone
        remove(record)
        remove(records.predictions_of(record))
    # It no longer names any of these: a kill in between leaves files that nobody reads.
    for stale in (head_file(fresh.path, "*"), predictions_file(fresh.path, "*")):
        for file in matching(stale.parent, "*.npz") + matching(stale.parent, "*.skops"):
            remove(file)


def _strangers(path: Path) -> list[str]:
    """Return what lies in a folder beside locks and temporary files of ours; nothing if it is not there."""
    try:
        names = sorted(os.listdir(path))
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        return []  # making the folder says so
    return [name for name in names if name != LOCK and not TEMPORARY.fullmatch(name)]


def _give_back(folder: Path) -> None:
    """Remove the folder of a sweep that ended before its first trial, unless something else lies in it."""
    if set(_strangers(folder)) <= {"run.json", "trials.csv"}:
        for name in ("trials.csv", "run.json"):  # last what says whose the folder is
            remove(folder / name)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other sweeps out of a folder. Raises UsageError if one is at work there."""

    def refuse() -> NoReturn:
        raise _NotFree(f"Another sweep is at work in {folder}. Wait for it, or give another -o")

    make_folder(folder)
    try:
        with locked(folder / LOCK, busy=refuse):
            for place in (folder, head_file(folder, 1).parent, predictions_file(folder, 1).parent):
                remove_litter(place)  # of a sweep that was killed
            try:
                yield
            finally:
                remove(folder / LOCK)
    finally:
        with suppress(OSError):  # something is in it, as it should be
            folder.rmdir()


def _differences(found: Run, fresh: Run) -> list[str]:
    """Return in what two runs differ: names of settings, or of what the cache holds."""
    asked = [one.name for one in fields(Settings) if _of(found, one.name) != _of(fresh, one.name)]
    same = ("classes", "fingerprints", "images_digest", "num_train", "planned")
    return asked or [_SAID[one] for one in same if getattr(found, one) != getattr(fresh, one)]


def _of(run: Run, setting: str) -> object:
    return getattr(run.settings, setting)


_SAID = {
    "classes": "classes",
    "fingerprints": "features",
    "images_digest": "images",
    "num_train": "images",
    "planned": "trials",
}
