"""What a sweep fits on and chooses on: images, folds, and features as the heads get them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featcache.arrays import Classes, Features
from featcache.cache.reader import Cache
from featcache.errors import ShapeMismatch, TooFewClasses
from featcache.heads.steps import STANDARDISE, make_steps
from featcache.heads.tried import Fold
from featcache.spec import ImageRow, unit_of
from featcache.sweeps.run import LOO, Settings, features_of

MIN_SELECT = 2  # images of validation below which nothing can be chosen on them
KEEP_BYTES = 2**30  # of prepared features; what is more is prepared again for every group of heads
BLOCK = 16_384  # rows that are standardised at a time where they are many
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

    @property
    def rounds(self) -> tuple[tuple[Classes, Classes], ...]:
        """Return the rows to fit on and to choose on, of every fit."""
        return self.folds if self.is_split else (*self.folds, (np.arange(self.num_train), np.arange(0)))

    @property
    def is_split(self) -> bool:
        """Return whether one fit on train is judged by other images."""
        return len(self.folds) == 1

    @property
    def truth(self) -> Classes:
        """Return the classes of the images that choose, in the order in which they are judged."""
        return np.concatenate([self.y[choose_on] for _, choose_on in self.folds]) if self.folds else self.y


class Prepared:
    """The features of a task after a chain of steps that is fitted on what each round fits on."""

    def __init__(self, task: Task, chain: str, *, last: bool) -> None:
        """`last`: nobody needs the task's features afterwards, so that they may be changed in place."""
        self._task, self._chain = task, chain
        self._in_place = last and task.is_split and chain == STANDARDISE
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
            return [(STANDARDISE, scaler)], Fold(X[: task.num_train], task.y[fit_on], X[task.num_train :], keep)
        X, others = task.X[fit_on], task.X[choose_on]
        steps = make_steps(self._chain)
        for _, step in steps:
            X = step.fit_transform(X)
            others = step.transform(others) if len(others) else others[:, :0]
        return steps, Fold(X, task.y[fit_on], others if len(others) else X[:0], keep)


def images_of(cache: Cache, asked: Settings) -> tuple[list[ImageRow], list[ImageRow]]:
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
    needed = 2 if asked.cv == LOO else asked.cv
    if isinstance(needed, int) and counts[least] < needed:
        raise TooFewClasses(
            f"--cv {asked.cv} needs {needed} training images of each class; '{least}' has {counts[least]}. Use fewer"
        )
    if not asked.cv and len(val) < MIN_SELECT:
        raise TooFewClasses(
            f"{cache.path} has {len(val)} validation images to choose on. Choose by cross-validation: --cv 5"
        )
    return train, val


def make_task(cache: Cache, tap: str, train: list[ImageRow], val: list[ImageRow], asked: Settings) -> Task:
    """Return the arrays of a tap, or of several that are joined. Raises ShapeMismatch, TooFewClasses."""
    for name in tap.split("+") if tap not in cache.taps else [tap]:
        cache.check(name)  # once; what follows rests on these numbers
    rows = train if asked.cv else [*train, *val]
    X, y = features_of(cache, rows, tap), cache.labels(rows)
    _check(X, rows, tap)
    everything = np.arange(len(rows))
    if asked.cv == LOO:
        return Task(tap, X, y, (), len(train))
    if asked.cv:
        return Task(tap, X, y, _folds(train, y, asked), len(train))
    return Task(tap, X, y, ((everything[: len(train)], everything[len(train) :]),), len(train))


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


def _check(X: Features, rows: Sequence[ImageRow], tap: str) -> None:
    bad = np.flatnonzero([not np.isfinite(X[at : at + BLOCK]).all() for at in range(0, len(X), BLOCK)])
    if len(bad):
        found = np.flatnonzero(~np.isfinite(X).all(axis=1))
        names = ", ".join(rows[at].path for at in found[:BAD_ROWS])
        raise ShapeMismatch(f"Tap '{tap}' has features that are not finite, in {len(found)} rows such as {names}")
    if (X[:1] == X).all():
        raise ShapeMismatch(
            f"Tap '{tap}' has the same features for all {len(rows)} images, so that no head can tell them apart"
        )
