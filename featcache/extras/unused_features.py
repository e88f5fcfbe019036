"""Drop features that no image of a cache needs, unless a run beside the cache may still need them.

What a run was made from is in the table of images of its cache. If the table has changed since, the images that are
gone may be the run's, so their features are kept until somebody says otherwise.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from featcache.cache import parts
from featcache.cache.unused_rows import UnusedRows, drop_unused, unused_rows
from featcache.errors import DataError, NotARun
from featcache.spec import Progress, Tick, silent
from featcache.sweeps import Run
from featcache.text import counted


@dataclass(frozen=True)
class UnusedFeatures:
    """The features in a cache that no image of it has, and the runs that may have been made from them."""

    cache: Path
    taps: tuple[UnusedRows, ...]
    runs: tuple[Path, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of all taps together."""
        return sum(tap.rows for tap in self.taps)

    @property
    def bytes(self) -> int:
        """Bytes of these rows."""
        return sum(tap.bytes for tap in self.taps)


def unused_features(cache: str | Path) -> UnusedFeatures:
    """Return what `drop_unused_features` would drop.

    Raises NotACache, DataError if an extraction was stopped or there is no table of images.
    """
    path = Path(cache)
    taps = tuple(unused_rows(path))
    return UnusedFeatures(path, taps, tuple(_runs_of_other_images(path)) if taps else ())


def drop_unused_features(cache: str | Path, *, force: bool = False, progress: Progress = silent) -> UnusedFeatures:
    """Drop the features of images that are not in the table of a cache, and return what was dropped.

    Images, labels, splits, reviews and looks at test stay. force: also if a run beside the cache may need them. Raises
    DataError if such a run is there and as `unused_features` does, NotACache if rows are damaged, DiskFault.
    """
    path = Path(cache)
    unused_features(path)  # raises, before the lock makes a folder beside what is no cache

    def wait() -> None:
        progress(Tick("wait", 0, 0, f"An extraction is at work on {path}; waiting for it"))

    with parts.lock(path, wait):
        # Now, because that extraction may have changed which rows are unused, and which runs may need them.
        unused = unused_features(path)
        if unused.runs and not force:
            raise DataError(
                f"{path} lists other images now than when {unused.runs[0]} was made from it, so "
                f"{counted(unused.rows, 'row')} may be the run's. Extract its images again, or drop them with "
                "`force=True`"
            )
        return replace(unused, taps=tuple(drop_unused(path)))


def _runs_of_other_images(cache: Path) -> list[Path]:
    """Return the runs near a cache that were made from it, from other images than it lists now.

    Near is its folder, and the folders in there, such as runs/.
    """
    runs: list[Path] = []
    folder = cache.absolute().parent
    for file in sorted([*folder.glob("*/run.json"), *folder.glob("*/*/run.json")]):
        try:
            run = Run.open(file.parent)
        except DataError:
            continue
        if os.path.realpath(run.cache_path) != os.path.realpath(cache):
            continue
        try:
            run.cache()
        except NotARun:
            runs.append(run.path)
    return runs
