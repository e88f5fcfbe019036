"""The features of one tap as the heads get them: read, prepared by steps, and streamed from the disk if too large."""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from featcache.arrays import Classes, Features
from featcache.cache.reader import Cache
from featcache.errors import DiskFault, ShapeMismatch, UsageError
from featcache.files import reserve
from featcache.heads.folds import Fold
from featcache.heads.row_blocks import row_slices
from featcache.heads.steps import STANDARDISE, fit_steps
from featcache.spec import ImageRow
from featcache.sweeps.choosing import one_of_each_unit
from featcache.sweeps.fold_products import FoldProducts
from featcache.sweeps.inputs import features_of, taps_in, views_of
from featcache.sweeps.run import Settings
from featcache.sweeps.selection import Folds, rows_that_choose
from featcache.text import counted

KEEP_BYTES = 2**30  # of prepared features; larger ones are prepared again for every bundle of heads
BLOCK = 4096  # rows that are read or checked at a time
MEMORY_SHARE = 1 / 4  # of the machine's memory for features: heads take as much again
COPIES_OF_A_FIT = 2  # of the features, while a head is fitted: logistic regression has them along other axes
BAD_ROWS = 3  # rows with features that are not finite, which are named


@dataclass(frozen=True)
class TapData:
    """The arrays of one tap, and which images fit and which choose: one pair without, K pairs with cross-validation."""

    tap: str
    X: Features  # one row for each image
    y: Classes
    folds: Folds  # empty where one image is left out
    num_train: int  # the first rows of X are those of train
    streamed: bool = False  # X lies on the disk
    is_one_model: bool = True  # its taps take images of one size and as many bits
    other_views: tuple[Features, ...] = ()  # of the training images, on which heads are fitted, too

    @property
    def rounds(self) -> Folds:
        """Return the rows to fit on and to choose on, of every fit.

        The classifier of the last round is the one that predicts later: it is fitted on all of train. Under
        cross-validation, or leaving one out, no rows are left to choose in that round.
        """
        if self.is_split:
            return self.folds
        return (*self.folds, (np.arange(self.num_train), np.arange(0)))

    @property
    def is_split(self) -> bool:
        """Return whether a single fit on train is scored on other images."""
        return len(self.folds) == 1

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all features."""
        return self.X.nbytes + sum(view.nbytes for view in self.other_views)

    @property
    def choosing(self) -> Classes:
        """Return the rows that choose, in the order of their predictions: not all of train, see `folds_of`."""
        return rows_that_choose(self.folds, self.y)

    @property
    def truth(self) -> Classes:
        """Return the classes of the images that choose, in that order."""
        return self.y[self.choosing]

    def arrays_to_fit(self, images: Classes) -> tuple[Features, Classes]:
        """Return the features and classes of all views of these training images, one view after another."""
        if not self.other_views:
            return self.X[images], self.y[images]
        views = (self.X, *self.other_views)
        X = np.empty((len(views) * len(images), self.X.shape[1]), self.X.dtype)
        for view, block in zip(views, row_slices(len(X), len(images)), strict=True):
            X[block] = view[images]
        return X, np.tile(self.y[images], len(views))

    def fitted_on(self, rows: Classes) -> TapData:
        """Return the data with a single fit, on these rows, and with the images of the first fold to choose on."""
        return replace(self, folds=((rows, self.folds[0][1]),))


class Prepared:
    """The features of a tap after a chain of steps, which is fitted on the rows that each round fits on."""

    def __init__(self, data: TapData, chain: str, *, last: bool) -> None:
        """`last`: nobody needs the features afterwards, so that they may be changed in place."""
        self._data, self._chain = data, chain
        self._in_place = (last or data.streamed) and not data.other_views and data.is_split
        self._keep = len(data.rounds) * data.num_bytes <= KEEP_BYTES or data.is_split
        self._kept: dict[int, tuple[list[tuple[str, Any]], Fold] | Exception] = {}
        self._locks = [threading.Lock() for _ in data.rounds]
        self._products: FoldProducts | None = None
        is_plain = chain == STANDARDISE and not data.other_views
        if is_plain and FoldProducts.are_worth_it(data.X, data.rounds):
            self._products = FoldProducts(data.X, data.rounds)

    def __getitem__(self, number: int) -> tuple[list[tuple[str, Any]], Fold]:
        """Return the fitted steps and the fold of a round."""
        if not self._keep:
            return self._made(number)
        # Threads that want the same round wait for the first one, rather than preparing it too.
        with self._locks[number]:
            if number not in self._kept:
                try:
                    self._kept[number] = self._made(number)
                except Exception as error:
                    # Not tried again: in place, features that are half prepared would be prepared twice.
                    self._kept[number] = error
            kept = self._kept[number]
        if isinstance(kept, Exception):
            raise kept
        return kept

    def num_workers(self, jobs: int, settings: Settings) -> int:
        """Return how many fits may run at once: `jobs`, or fewer if their copies of the features need more memory."""
        from joblib import effective_n_jobs

        workers = int(effective_n_jobs(jobs))
        if self._data.streamed:
            return workers  # heads read blocks of what lies on the disk
        held, copies = 1, COPIES_OF_A_FIT
        if not self._keep:
            copies += 1  # every fit prepares its round
        elif not self._in_place:
            held += len(self._data.rounds)
        free = 2 * allowed_bytes(settings) - held * self._data.num_bytes
        return max(1, min(workers, int(free / (copies * self._data.num_bytes))))

    def _made(self, number: int) -> tuple[list[tuple[str, Any]], Fold]:
        data = self._data
        fit_on, choose_on = data.rounds[number]
        keep = number == len(data.rounds) - 1
        if self._in_place:
            # Slices rather than `fit_on` and `choose_on`, which would copy: the rows that fit come first.
            X, y, others = data.X[: data.num_train], data.y[fit_on], data.X[data.num_train :]
        else:
            (X, y), others = data.arrays_to_fit(fit_on), data.X[choose_on]
        steps, X, others = fit_steps(self._chain, X, others)
        fold = Fold(X, y, others, keep, data.streamed)
        if self._products is not None:
            scale = steps[0][1].scale_
            fold = replace(fold, products=partial(self._products.standardised, number, scale))
        return steps, fold


def make_tap_data(cache: Cache, tap: str, train: list[ImageRow], val: list[ImageRow], settings: Settings) -> TapData:
    """Return the arrays of a tap, or of several that are joined. Raises ShapeMismatch, TooFewClasses, UsageError."""
    selection = settings.selection
    if selection.leaves_one_out:
        num_mates = len(train) - len(one_of_each_unit(train))
        if num_mates:
            raise UsageError(
                f"`{selection}` leaves out one image at a time, and {num_mates} of {len(train)} training images "
                f"of {cache.path} are copies or in the group of another, which would stay. Folds keep them together: "
                "`cv=5`"
            )
    rows = train if selection.is_within_train else [*train, *val]
    labels = cache.labels(rows)

    names = taps_in(cache, tap)
    width = sum(cache.features(rows[:1], name).shape[1] for name in names)
    views = views_of(cache, tap)[1:] if settings.train_views else []
    num_bytes = (len(rows) + len(train) * len(views)) * width * 4
    allowed = allowed_bytes(settings)
    streamed = num_bytes > allowed
    if streamed:
        _check_streamed(settings, tap, num_bytes, allowed)
        X = _on_disk(cache, rows, tap, width)
    else:
        X = features_of(cache, rows, tap)
    _check_features(X, rows, tap)
    other_views = []
    for name in views:
        other_views.append(features_of(cache, train, name))
        _check_features(other_views[-1], train, name)

    preprocesses = [cache.taps[name].preprocess for name in names]
    inputs = {preprocess.shown for preprocess in preprocesses}
    folds = selection.folds(train, labels, settings.seed)
    return TapData(tap, X, labels, folds, len(train), streamed, len(inputs) == 1, tuple(other_views))


def parse_bytes(text: str) -> float:
    """Return the bytes of a size.

    >>> parse_bytes("500M"), parse_bytes("1.5g")
    (500000000.0, 1500000000.0)
    """
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)([kmgt]b?|b)", text.strip().lower())
    if match is None:
        raise UsageError(f"`memory` takes a size such as 500M or 4G; got '{text}'")
    return float(match[1]) * 1000.0 ** "bkmgt".index(match[2][0])


def allowed_bytes(settings: Settings) -> float:
    """Return how much memory the features of a tap may take."""
    return settings.memory or physical_memory() * MEMORY_SHARE


def physical_memory() -> int:
    """Return the bytes of memory that the machine has."""
    import psutil

    return int(psutil.virtual_memory().total)


def _check_streamed(settings: Settings, tap: str, num_bytes: float, allowed: float) -> None:
    """Raise UsageError if the settings need features in memory."""
    need_memory = {
        "`cv`": settings.selection.is_within_train,
        "`budget`": settings.budget is not None,
        "`refit`": settings.refit,
        "`train_views`": settings.train_views,
        f"`preset={settings.preset!r}`": settings.few,
        "`prepare`": settings.prepare != (STANDARDISE,),
    }
    options = [option for option, is_set in need_memory.items() if is_set]
    if options:
        raise UsageError(
            f"The features of tap '{tap}' take {num_bytes / 1e9:.2g} GB, more than the {allowed / 1e9:.2g} GB they "
            f"may, so they are streamed; that goes without {', '.join(options)}. Leave that out, or give more "
            "`memory`"
        )


def _on_disk(cache: Cache, rows: Sequence[ImageRow], tap: str, width: int) -> Features:
    """Return features in a nameless file beside the cache, which the system removes with them. Raises DiskFault."""
    num_bytes = len(rows) * width * 4
    try:
        with tempfile.TemporaryFile(dir=cache.path.parent) as file:
            # Before it is mapped: on a full disk, writing into a hole of a mapped file kills the process (SIGBUS).
            reserve(file.fileno(), num_bytes)
            X = np.memmap(file, np.float32, "r+", shape=(len(rows), width))
    except OSError as error:
        raise DiskFault(
            f"Cannot keep {num_bytes / 1e6:.0f} MB of features of tap '{tap}' in {cache.path.absolute().parent}: "
            f"{error.strerror or error}. Free some space there, or keep them in memory: give more `memory`"
        ) from error
    for begin in range(0, len(rows), BLOCK):
        X[begin : begin + BLOCK] = features_of(cache, rows[begin : begin + BLOCK], tap)
    return X


def _check_features(X: Features, rows: Sequence[ImageRow], tap: str) -> None:
    """Raise ShapeMismatch if features are not finite, or the same for all images."""
    bad: list[int] = []
    for block in row_slices(len(X), BLOCK):
        is_finite = np.isfinite(X[block])
        if not is_finite.all():
            bad += (block.start + np.flatnonzero(~is_finite.all(axis=1))).tolist()
    if bad:
        names = ", ".join(rows[number].path for number in bad[:BAD_ROWS])
        where = f"in {counted(len(bad), 'row')} such as {names}"
        raise ShapeMismatch(f"Tap '{tap}' has features that are not finite, {where}")
    if all((X[:1] == X[block]).all() for block in row_slices(len(X), BLOCK)):
        raise ShapeMismatch(
            f"Tap '{tap}' has the same features for all {len(rows)} images, so that no head can tell them apart"
        )
