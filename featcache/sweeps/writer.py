"""The folder of a run while it is made: begun, gone on with, written again and again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from itertools import takewhile
from pathlib import Path

from featcache.cache.reader import Cache
from featcache.errors import NotARun, UsageError
from featcache.files import make_folder
from featcache.heads import store
from featcache.heads.estimators import joined
from featcache.heads.paths import try_all
from featcache.heads.steps import make_steps
from featcache.heads.tried import Fold
from featcache.spec import ImageRow
from featcache.sweeps.run import (
    Run,
    Settings,
    Trial,
    digest_of_rows,
    features_of,
    free_folder,
    head_file,
    numbered,
    single_taps,
)

SAVE_EVERY_S = 2.0


@dataclass
class Writer:
    """The folder of the run, written every few seconds and when the sweep ends, in whatever way."""

    run: Run
    _began: float
    _saved: float = field(default_factory=time.perf_counter)

    @classmethod
    @contextmanager
    def begun(
        cls,
        cache: Cache,
        asked: Settings,
        out: str | Path | None,
        train: Sequence[ImageRow],
        val: Sequence[ImageRow],
        planned: int,
    ) -> Iterator[Writer]:
        """Give a writer of a new run, or of the one that was asked the same, stopped or finished."""
        fresh = Run(
            path=Path(),
            settings=asked,
            classes=cache.classes,
            fingerprints={tap: cache.taps[tap].fingerprint for tap in single_taps(cache, asked.taps)},
            num_train=len(train),
            num_select=len(train) if asked.cv else len(val),
            trials=(),
            images_digest=digest_of_rows([*train, *val], asked.cv),
            seconds=0.0,
            planned=planned,
        )
        run = _place(cache, out, fresh)
        with _alone(run.path):
            writer = cls(run, time.perf_counter() - run.seconds)
            try:
                yield writer
            finally:
                if writer.run.trials and writer.run is not run:
                    writer.save()

    @property
    def done(self) -> set[int]:
        """Return the numbers of the trials that were tried."""
        return {trial.trial for trial in self.run.trials}

    def add(self, trials: Sequence[Trial]) -> None:
        """Write down what was tried."""
        together = sorted([*self.run.trials, *trials], key=lambda trial: trial.trial)
        self.run = replace(self.run, trials=tuple(together))
        if time.perf_counter() - self._saved > SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the run."""
        self.run = replace(self.run, seconds=round(time.perf_counter() - self._began, 3))
        self.run.save()
        self._saved = time.perf_counter()

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


def _place(cache: Cache, out: str | Path | None, fresh: Run) -> Run:
    """Return the new run in a folder of its own, or the one that was asked the same before. Raises UsageError."""
    if out is None:
        first = cache.path.with_suffix(".run")
        return _asked_before(first, fresh) or replace(fresh, path=_new_folder(first))
    if not (Path(out) / "run.json").exists():
        return replace(fresh, path=Path(out))
    found = Run.open(out)
    if differ := _differences(found, fresh):
        raise UsageError(
            f"{out} holds a run already, with other {', '.join(differ)} (featcache show {out}). "
            "Give another -o, or none for the next free name"
        )
    return _resumed(found, fresh)


def _new_folder(first: Path) -> Path:
    """Make and return the first folder that does not exist; another sweep may be looking for one, too."""
    while True:
        path = free_folder(first)
        try:
            path.mkdir()
            return path
        except FileExistsError:
            continue


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other sweeps out of a folder. Raises UsageError if one is at work there."""
    from filelock import FileLock, Timeout

    make_folder(folder)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UsageError(f"Another sweep is at work in {folder}. Wait for it, or give another -o") from error
    try:
        yield
    finally:
        lock.release()
        (folder / ".lock").unlink(missing_ok=True)
        with suppress(OSError):  # something is in it, as it should be
            folder.rmdir()


def _asked_before(first: Path, fresh: Run) -> Run | None:
    """Return the last of CACHE.run, CACHE-2.run .. that was asked the same, stopped or finished, if there is one."""
    there = list(takewhile(Path.exists, numbered(first)))
    for path in reversed(there):
        with suppress(NotARun):
            found = Run.open(path)
            if not _differences(found, fresh):
                return _resumed(found, fresh)
    return None


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


def _resumed(found: Run, fresh: Run) -> Run:
    """Return the run with what is done; anew where all of it was tried and failed."""
    some = found.ranked or len(found.trials) < found.planned
    return found if some else replace(fresh, path=found.path)
