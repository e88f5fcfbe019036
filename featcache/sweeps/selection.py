"""Which images choose among the heads: the validation split, or training images that are left out in turn.

`fc.sweep(cv=...)` and run.json spell it as None, a number of folds, or "loo"; here it becomes a value.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featcache.arrays import Classes
from featcache.errors import TooFewClasses, UsageError
from featcache.spec import ImageRow, units_of

LOO = "loo"
Folds = tuple[tuple[Classes, Classes], ...]  # of each fold: the rows to fit on, and those that choose


@dataclass(frozen=True)
class Selection:
    """How a sweep chooses among its heads; without arguments by the validation split."""

    num_folds: int = 0  # of cross-validation within train; 0: none
    leaves_one_out: bool = False  # every training image chooses once, by a head that never saw it

    @classmethod
    def parse(cls, cv: int | str | None) -> Selection:
        """Return the selection that `cv` spells. Raises UsageError."""
        if cv is None:
            return cls()
        if cv == LOO:
            return cls(leaves_one_out=True)
        if not str(cv).lstrip("-").isdecimal() or int(cv) < 2:
            raise UsageError(f"`cv` takes a number of folds from 2, or {LOO}; got {cv}")
        return cls(num_folds=int(cv))

    @property
    def cv(self) -> int | str | None:
        """Return its spelling in run.json."""
        return LOO if self.leaves_one_out else self.num_folds or None

    @property
    def is_within_train(self) -> bool:
        """Return whether training images choose, rather than validation images."""
        return self.leaves_one_out or self.num_folds > 0

    @property
    def split(self) -> str:
        """Return the split whose images choose."""
        return "train" if self.is_within_train else "val"

    @property
    def needed_images(self) -> int:
        """Return how many training images the largest class needs at least."""
        return 2 if self.leaves_one_out else self.num_folds

    @property
    def num_fits(self) -> int:
        """Return how many times each setting is fitted: after the folds once more, on all of train."""
        return self.num_folds + 1

    def __str__(self) -> str:
        """Return it as an argument of `fc.sweep`: cv=5, cv='loo'."""
        return f"cv={self.cv!r}"

    def describe(self) -> str:
        """Return it in words, as they follow "chosen by".

        >>> [Selection.parse(cv).describe() for cv in (None, 5, "loo")]
        ['the validation split', '5-fold cross-validation within train', 'leaving one out']
        """
        if self.leaves_one_out:
            return "leaving one out"
        if self.num_folds:
            return f"{self.num_folds}-fold cross-validation within train"
        return "the validation split"

    def folds(self, train: Sequence[ImageRow], labels: Classes, seed: int) -> Folds:
        """Return the folds over `labels`; none where one image is left out, which needs a single fit.

        labels: (N,) of `train`, followed by those of val where these choose. Raises TooFewClasses.
        """
        if self.leaves_one_out:
            return ()
        if self.num_folds:
            return folds_of(train, labels, self.num_folds, seed)
        rows = np.arange(len(labels))
        return ((rows[: len(train)], rows[len(train) :]),)


def folds_of(train: Sequence[ImageRow], labels: Classes, num_folds: int, seed: int) -> Folds:
    """Return the rows to fit on and to choose on of each fold. Raises TooFewClasses.

    A head can only name classes that it was fitted on. So where a fold would take all images of a class, these stay in
    training, with their groups; a class of one image stays in every fold. `Run.unjudged` names such classes.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    names = units_of(train)  # groups, and copies of one image: none may lie on both sides of a fold
    units = np.unique(names, return_inverse=True)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a class has fewer images than there are folds
        if len(set(names)) == len(names):
            splits = StratifiedKFold(num_folds, shuffle=True, random_state=seed).split(labels, labels)
        else:
            splits = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed).split(labels, labels, units)
        folds = []
        for fit_on, choose_on in splits:
            is_unseen = ~np.isin(labels[choose_on], labels[fit_on])
            # The whole unit stays: a copy left behind would give the class of the others away.
            stays = np.isin(units[choose_on], units[choose_on][is_unseen])
            folds.append((np.sort(np.concatenate([fit_on, choose_on[stays]])), choose_on[~stays]))
    if any(len(choose_on) == 0 for _, choose_on in folds):
        raise TooFewClasses(
            f"`cv={num_folds}`: the groups are too few, or too large, for this many folds. Use fewer, or the "
            "validation split"
        )
    return tuple(folds)


def rows_that_choose(folds: Folds, labels: Classes) -> Classes:
    """Return the rows that choose, fold after fold; without folds those that can be left out.

    A row can be left out if its class has another one: else no head could name its class.
    """
    if folds:
        return np.concatenate([choose_on for _, choose_on in folds])
    return np.flatnonzero(np.bincount(labels)[labels] > 1)
