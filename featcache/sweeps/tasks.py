"""What a sweep fits on and chooses on: images, folds, and features as the heads get them."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featcache.arrays import Classes, Features
from featcache.cache.reader import Cache
from featcache.errors import DiskFault, ShapeMismatch, TooFewClasses, UsageError
from featcache.files import reserve
from featcache.heads.steps import STANDARDISE, make_steps
from featcache.heads.tried import Fold
from featcache.spec import ImageRow, units_of
from featcache.sweeps.run import LOO, Settings, features_of, rows_of, single_taps, taps_in
from featcache.sweeps.unseen import roles, why_not_left_out

MIN_SELECT = 2  # images of validation below which nothing can be chosen on them
KEEP_BYTES = 2**30  # of prepared features; what is more is prepared again for every group of heads
BLOCK = 4096  # rows that are standardised at a time where they are many
SHARE = 4  # of the machine's memory features may take one part: heads take as much again
BAD_ROWS = 3  # rows with features that are not finite, which are named


@dataclass(frozen=True)
class Task:
    """The arrays of one tap, and which rows fit and which choose: one pair without, K pairs with cross-validation.

    The last round fits on all of train what predicts later; without folds it is the one that there is. With folds, or
    leaving one out, nothing is left to choose there.
    """

    tap: str
    X: Features
    y: Classes
    folds: tuple[tuple[Classes, Classes], ...]
    num_train: int
    streamed: bool = False  # X lies on the disk
    is_one_model: bool = True  # its taps take images of one size and as many bits

    @property
    def rounds(self) -> tuple[tuple[Classes, Classes], ...]:
        """Return the rows to fit on and to choose on, of every fit."""
        return self.folds if self.is_split else (*self.folds, (np.arange(self.num_train), np.arange(0)))

    @property
    def is_split(self) -> bool:
        """Return whether one fit on train is judged by other images."""
        return len(self.folds) == 1

    @property
    def choosing(self) -> Classes:
        """Return the rows that choose, in the order in which they are judged: not all of train, see `folds_of`."""
        if self.folds:
            return np.concatenate([choose_on for _, choose_on in self.folds])
        return _in_company(self.y)

    @property
    def truth(self) -> Classes:
        """Return the classes of the images that choose, in that order."""
        return self.y[self.choosing]


class Prepared:
    """The features of a task after a chain of steps that is fitted on what each round fits on."""

    def __init__(self, task: Task, chain: str, *, last: bool) -> None:
        """`last`: nobody needs the task's features afterwards, so that they may be changed in place."""
        self._task, self._chain = task, chain
        self._in_place = (last or task.streamed) and task.is_split and chain == STANDARDISE
        self._keep = len(task.rounds) * task.X.nbytes <= KEEP_BYTES or task.is_split
        self._kept: dict[int, tuple[list[tuple[str, Any]], Fold]] = {}
        self._locks = [threading.Lock() for _ in task.rounds]

    def __getitem__(self, number: int) -> tuple[list[tuple[str, Any]], Fold]:
        """Return the fitted steps and the fold of a round."""
        if not self._keep:
            return self._made(number)
        with self._locks[number]:
            if number not in self._kept:
                self._kept[number] = self._made(number)
            return self._kept[number]

    def _made(self, number: int) -> tuple[list[tuple[str, Any]], Fold]:
        task = self._task
        fit_on, choose_on = task.rounds[number]
        keep = number == len(task.rounds) - 1
        if self._in_place:  # the rows that fit are the first ones
            scaler, X = _standardised_in_place(task.X, task.num_train)
            fold = Fold(X[: task.num_train], task.y[fit_on], X[task.num_train :], keep, task.streamed)
            return [(STANDARDISE, scaler)], fold
        X, others = task.X[fit_on], task.X[choose_on]
        steps = make_steps(self._chain)
        for _, step in steps:
            X = step.fit_transform(X)
            others = step.transform(others) if len(others) else others[:, :0]
        return steps, Fold(X, task.y[fit_on], others if len(others) else X[:0], keep)


def images_of(cache: Cache, asked: Settings) -> tuple[list[ImageRow], list[ImageRow]]:
    """Return the images that train and those that choose.

    Raises TooFewClasses; UsageError for folds of images that trained the backbone.
    """
    train, val = rows_of(cache, "train", asked), rows_of(cache, "val", asked)
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
    needed = 2 if asked.cv == LOO else asked.cv
    most = max(counts, key=lambda name: counts[name])
    if isinstance(needed, int) and counts[most] < needed:
        how = "Leaving one out" if asked.cv == LOO else f"`cv={asked.cv}`"
        raise TooFewClasses(
            f"{how} needs {needed} training images of a class; the largest, '{most}', has {counts[most]}. Use fewer "
            "folds, or add some images"
        )
    if asked.cv:
        _check_left_out(cache, train, asked)
    elif len(val) < MIN_SELECT:
        raise _too_few_choose(cache, train, val, asked)
    return train, val


def choosing_rows(cache: Cache, train: list[ImageRow], val: list[ImageRow], asked: Settings) -> list[ImageRow]:
    """Return the images that choose. Raises TooFewClasses if they show fewer than two classes of several folds."""
    if not asked.cv:
        return val
    y = cache.labels(train)
    if asked.cv == LOO:
        chosen_by = _in_company(y)
    else:
        folds = folds_of(train, y, int(asked.cv), asked.seed)
        chosen_by = np.concatenate([choose_on for _, choose_on in folds])
    rows = [train[at] for at in np.sort(chosen_by)]
    if len({row.label for row in rows}) < 2:
        raise TooFewClasses(
            f"`cv={asked.cv}` needs two classes with training images that can be left out, which others of their class "
            "are not copies of or in one group with. Add images, or choose on the validation split: leave out `cv`"
        )
    return rows


def _check_left_out(cache: Cache, train: list[ImageRow], asked: Settings) -> None:
    """Raise UsageError if leaving out training images tells nothing on one of the taps."""
    reasons = {name: [why_not_left_out(cache, train, tap) for tap in taps_in(cache, name)] for name in asked.taps}
    reason = next((text for texts in reasons.values() for text in texts if text), "")
    if reason:
        others = [name for name, texts in reasons.items() if not any(texts)]
        another = f", or name other taps: `taps='{','.join(others)}'`" if others else ""
        raise UsageError(f"`cv={asked.cv}`: {reason}. Choose on validation images: leave out `cv`{another}")


def _too_few_choose(
    cache: Cache, train: list[ImageRow], val: list[ImageRow], asked: Settings
) -> TooFewClasses | UsageError:
    """Return what to raise where next to no image is left to choose on."""
    seen = [tap for tap in single_taps(cache, asked.taps) if why_not_left_out(cache, train, tap)]
    there = f"{cache.path} has {len(val)} validation images to choose on"
    if not seen:
        return TooFewClasses(f"{there}. Choose by cross-validation: `cv=5`")
    trained = len([row for row in cache.usable("val", asked.shots) if row.label]) - len(val)
    return UsageError(
        f"{there} besides {trained} that trained the backbone of tap '{seen[0]}', as training images did, so --cv "
        "tells nothing either. Extract with the --split and --seed that it was tuned with, into another -o"
    )


def notes_on_val(cache: Cache, asked: Settings) -> list[str]:
    """Return what to say of validation images that trained a backbone, or may have."""
    rows = [row for row in cache.usable("val", asked.shots) if row.label]
    notes = []
    for tap in single_taps(cache, asked.taps):
        of_images = roles(cache, rows, tap)
        if trained := of_images.count("trained"):
            notes.append(
                f"{trained} of {len(rows)} validation images trained the backbone of tap '{tap}', so they do not choose"
            )
        elif "unknown" in of_images:
            notes.append(
                f"{cache.taps[tap].backbone.weights}, the backbone of tap '{tap}', does not record which images "
                "trained it: if validation images did, scores on them are too good"
            )
    return notes


def make_task(cache: Cache, tap: str, train: list[ImageRow], val: list[ImageRow], asked: Settings) -> Task:
    """Return the arrays of a tap, or of several that are joined. Raises ShapeMismatch, TooFewClasses, UsageError."""
    names = taps_in(cache, tap)
    if asked.cv == LOO and (mates := len(train) - len(one_of_each_unit(train))):
        raise UsageError(
            f"`cv='{LOO}'` leaves out one image at a time, and {mates} of {len(train)} training images of {cache.path} "
            "are copies or in the group of another, which would stay. Folds keep them together: `cv=5`"
        )
    rows = train if asked.cv else [*train, *val]
    y, width = cache.labels(rows), sum(cache.features(rows[:1], name).shape[1] for name in names)
    size, room = len(rows) * width * 4, asked.memory or physical_memory() / SHARE
    streamed = size > room
    if streamed:
        _check_streamed(asked, tap, size, room)
    X = _on_disk(cache, rows, tap, width) if streamed else features_of(cache, rows, tap)
    _check(X, rows, tap)
    everything = np.arange(len(rows))
    folds: tuple[tuple[Classes, Classes], ...] = ((everything[: len(train)], everything[len(train) :]),)
    if asked.cv:
        folds = () if asked.cv == LOO else folds_of(train, y, int(asked.cv), asked.seed)
    preprocesses = [cache.taps[name].preprocess for name in names]
    inputs = {(preprocess.size, preprocess.resize, preprocess.bits) for preprocess in preprocesses}
    return Task(tap, X, y, folds, len(train), streamed, len(inputs) == 1)


def one_of_each_unit(rows: Sequence[ImageRow]) -> list[ImageRow]:
    """Return one image of each group, and one of all copies, in the order of the rows."""
    first_of: dict[str, ImageRow] = {}
    for unit, row in zip(units_of(rows), rows, strict=True):
        if unit not in first_of or row.digest < first_of[unit].digest:
            first_of[unit] = row
    paths = {row.path for row in first_of.values()}
    return [row for row in rows if row.path in paths]


def parse_bytes(text: str) -> float:
    """Return the bytes of a size.

    >>> parse_bytes("500M"), parse_bytes("1.5g")
    (500000000.0, 1500000000.0)
    """
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)([kmgt]b?|b)", text.strip().lower())
    if match is None:
        raise UsageError(f"`memory` takes a size such as 500M or 4G; got '{text}'")
    return float(match[1]) * 1000.0 ** "bkmgt".index(match[2][0])


def physical_memory() -> int:
    """Return the bytes of memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check_streamed(asked: Settings, tap: str, size: float, room: float) -> None:
    """Raise UsageError if what is asked takes features in memory."""
    given = {"`cv`": asked.cv, "`budget`": asked.budget, "`refit`": asked.refit, f"`preset={asked.preset}`": asked.few}
    extra = [name for name, value in given.items() if value]
    if asked.prepare != (STANDARDISE,):
        extra.append("`prepare`")
    if extra:
        raise UsageError(
            f"The features of tap '{tap}' take {size / 1e9:.2g} GB, more than the {room / 1e9:.2g} GB they may, so "
            f"they are streamed; that goes without {', '.join(extra)}. Leave that out, or give more `memory`"
        )


def _on_disk(cache: Cache, rows: Sequence[ImageRow], tap: str, width: int) -> Features:
    """Return features that lie in a file without a name beside the cache, which goes when they do. Raises DiskFault."""
    num_bytes = len(rows) * width * 4
    try:
        with tempfile.TemporaryFile(dir=cache.path.parent) as file:
            reserve(file.fileno(), num_bytes)
            X = np.memmap(file, np.float32, "r+", shape=(len(rows), width))
    except OSError as error:
        raise DiskFault(
            f"Cannot keep {num_bytes / 1e6:.0f} MB of features of tap '{tap}' in {cache.path.absolute().parent}: "
            f"{error.strerror or error}. Free some space there, or keep them in memory: give more `memory`"
        ) from error
    for at in range(0, len(rows), BLOCK):
        X[at : at + BLOCK] = features_of(cache, rows[at : at + BLOCK], tap)
    return X


def part_of(task: Task, rows: Classes) -> Task:
    """Return the task with these images to fit on, once, and those of its first fold to choose on."""
    return replace(task, folds=((rows, task.folds[0][1]),))


def _standardised_in_place(X: Features, num_train: int) -> tuple[Any, Features]:
    from sklearn.preprocessing import StandardScaler

    if num_train <= BLOCK:
        scaler = StandardScaler(copy=False).fit(X[:num_train])
    else:
        scaler = StandardScaler(copy=False)
        for at in range(0, num_train, BLOCK):
            scaler.partial_fit(X[at : min(at + BLOCK, num_train)])
    for at in range(0, len(X), BLOCK):
        X[at : at + BLOCK] = scaler.transform(X[at : at + BLOCK])
    return scaler.set_params(copy=True), X


def folds_of(train: Sequence[ImageRow], y: Classes, num_folds: int, seed: int) -> tuple[tuple[Classes, Classes], ...]:
    """Return the rows to fit on and to choose on of each fold. Raises TooFewClasses.

    A head cannot name a class that it never saw. So images of a class that training would lack stay in training, with
    their group: of a class of one image, in all folds. Such images choose nothing, which `Run.unjudged` tells.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    names = units_of(train)  # what must not stand on both sides: groups, and copies of one image
    units = np.unique(names, return_inverse=True)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a class has fewer images than there are folds
        if len(set(names)) == len(names):
            splits = StratifiedKFold(num_folds, shuffle=True, random_state=seed).split(y, y)
        else:
            splits = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed).split(y, y, units)
        folds = []
        for fit_on, choose_on in splits:
            unseen = ~np.isin(y[choose_on], y[fit_on])
            stays = np.isin(units[choose_on], units[choose_on][unseen])
            folds.append((np.sort(np.concatenate([fit_on, choose_on[stays]])), choose_on[~stays]))
    if not all(len(choose_on) for _, choose_on in folds):
        raise TooFewClasses(
            f"`cv={num_folds}`: the groups are too few, or too large, for so many folds. Use fewer, or the validation "
            "split"
        )
    return tuple(folds)


def _in_company(y: Classes) -> Classes:
    """Return the rows whose class has another one, so that a head that never saw the row can name its class."""
    return np.flatnonzero(np.bincount(y)[y] > 1)


def _check(X: Features, rows: Sequence[ImageRow], tap: str) -> None:
    bad = np.flatnonzero([not np.isfinite(X[at : at + BLOCK]).all() for at in range(0, len(X), BLOCK)])
    if len(bad):
        found = np.concatenate(
            [at + np.flatnonzero(~np.isfinite(X[at : at + BLOCK]).all(axis=1)) for at in (bad * BLOCK).tolist()]
        )
        names = ", ".join(rows[at].path for at in found[:BAD_ROWS])
        raise ShapeMismatch(f"Tap '{tap}' has features that are not finite, in {len(found)} rows such as {names}")
    if (X[:1] == X).all():
        raise ShapeMismatch(
            f"Tap '{tap}' has the same features for all {len(rows)} images, so that no head can tell them apart"
        )
