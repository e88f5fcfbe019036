"""The products X'X of standardised features for every round of cross-validation, from one pass over the features.

Round k fits on all rows of train but those of its fold. With the sums S = sum (x - c)(x - c)' and s = sum (x - c)
over the n rows of a round, for any centre c, features standardised by their mean and scale have

    Z'Z = (S - s s' / n) / (scale scale')

and S of a round is S of all rows minus S of its fold. So N D^2 / 2 multiplications serve all rounds, where K folds and
the fit on all of train would take K times as many. c is the mean of all rows, which keeps the difference exact.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from featcache.arrays import Classes, Features, Floats
from featcache.heads.row_blocks import row_slices
from featcache.sweeps.selection import Folds

MAX_BYTES = 2**28  # of the sums of all folds, which stay in memory while a tap is swept


class FoldProducts:
    """The sums over the rows of each fold. They are made when the first head wants them."""

    def __init__(self, X: Features, rounds: Folds) -> None:
        """rounds: see `TapData.rounds`. The last one fits on all rows, and those of each other leave out its fold."""
        self._X, self._rounds = X, rounds
        self._sums: list[tuple[Floats, Floats]] = []  # (S, s) of the rows that each round fits on
        self._lock = threading.Lock()

    @staticmethod
    def are_worth_it(X: Features, rounds: Folds) -> bool:
        """Return whether rounds share rows, heads use X'X rather than XX', and there is room for the sums."""
        num_rows, num_features = X.shape
        num_bytes = 8 * len(rounds) * num_features**2
        return len(rounds) > 1 and num_rows > 2 * num_features and num_bytes <= MAX_BYTES

    def standardised(self, number: int, scale: Floats) -> Floats:
        """Return Z'Z (D, D) of the rows that a round fits on. scale: (D,), `StandardScaler.scale_`."""
        with self._lock:
            if not self._sums:
                self._sums = self._all_sums()
        squares, total = self._sums[number]
        fit_on, _ = self._rounds[number]
        products = squares - np.outer(total / len(fit_on), total)
        products /= scale
        products /= scale[:, None]
        return products

    def _all_sums(self) -> list[tuple[Floats, Floats]]:
        train, _ = self._rounds[-1]
        centre = self._X[train].mean(axis=0, dtype=np.float64)
        of_folds = [self._sums_over(fold, centre) for _, fold in self._rounds[:-1]]
        in_a_fold = np.concatenate([fold for _, fold in self._rounds[:-1]])
        squares, total = self._sums_over(np.setdiff1d(train, in_a_fold), centre)
        for fold_squares, fold_total in of_folds:
            squares += fold_squares
            total += fold_total
        of_rounds = [(squares - fold_squares, total - fold_total) for fold_squares, fold_total in of_folds]
        return [*of_rounds, (squares, total)]

    def _sums_over(self, rows: Classes, centre: Floats) -> tuple[Floats, Floats]:
        num_features = len(centre)
        squares: Any = np.zeros((num_features, num_features))
        total: Any = np.zeros(num_features)
        for block in row_slices(len(rows)):
            centred = self._X[rows[block]] - centre
            squares += centred.T @ centred
            total += centred.sum(axis=0)
        return squares, total
