"""Which labels look wrong? Confident learning (Northcutt, Jiang, Chuang 2021, https://arxiv.org/abs/1911.00068).

Every image is judged by a logistic regression on cached features that has seen neither it nor any image that shows the
same: five folds over sets of images. Its strength is the one of three with the least log loss on what was left out, so
that the probabilities can be believed. A class counts as possible for an image if it is given at least the probability
that images labelled so get in the mean. A label is doubted where the most probable possible class is another one.

The doubted stand in the order of the margin: probability of the label less that of the likeliest other class. Before
them stand photos that are there under two labels, byte for byte: one of these is wrong, whatever the regression thinks.
What somebody has reviewed is not listed again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from featcache.arrays import Classes, Features, Floats
from featcache.cache.changes import without_review
from featcache.cache.reader import Cache
from featcache.errors import TooFewClasses, UsageError
from featcache.extras.leaks.finding import features_of, widest
from featcache.extras.leaks.fixing import sets_of
from featcache.extras.leaks.results import Leaks
from featcache.heads.folds import Fold
from featcache.heads.logits import softmax
from featcache.heads.solvers.paths import try_all
from featcache.spec import ImageRow, Progress, Tick, silent
from featcache.sweeps.unseen import why_not_left_out

STRENGTHS = (0.01, 0.1, 1.0)
TOL = 1e-2  # where the probabilities are right to a thousandth
FOLDS = 5
LEAST = 1e-12  # probability


@dataclass(frozen=True)
class Doubt:
    """One image whose label looks wrong."""

    path: str
    label: str
    split: str
    suggested: str  # for a photo under two labels the more probable of them, which may be this one; "" if not judged
    probability: float | None  # of the label; None of a photo under two labels that could not be judged
    of_suggested: float | None
    same_photo: tuple[tuple[str, str], ...] = ()  # (path, label) of the same bytes under other labels

    @property
    def margin(self) -> float:
        """Return how much more probable the label is than the suggested class; not a number if it was not judged."""
        if self.probability is None or self.of_suggested is None:
            return math.nan
        return self.probability - self.of_suggested


@dataclass(frozen=True)
class Doubts:
    """The labels that look wrong, the most doubtful first."""

    images: int  # that were judged
    unjudged: int  # of classes all of whose images fell into one fold
    accuracy: float  # of what judged, on images that it had not seen
    strength: float
    tap: str  # whose features judged
    doubts: tuple[Doubt, ...]
    seconds: float
    reviewed: int = 0  # that look wrong and are not listed, because somebody has decided about them

    @property
    def photos_of_two_labels(self) -> tuple[tuple[tuple[str, str], ...], ...]:
        """Return for each photo that is there under several labels its (path, label), sorted."""
        photos = {tuple(sorted([(one.path, one.label), *one.same_photo])) for one in self.doubts if one.same_photo}
        return tuple(sorted(photos))


def doubts(
    found: Leaks, *, tap: str | None = None, without: str = "", seed: int = 0, progress: Progress = silent
) -> Doubts:
    """Return the labels that look wrong, of all splits.

    found: what `leaks` gave for the cache, so that what judges an image has not seen its copies. tap: whose features
    judge, by default those that were compared, or others if these images trained their backbone. without: a split whose
    labels stay closed: they are neither judged nor learnt from.
    Raises TooFewClasses, ShapeMismatch, UsageError if the images trained the backbone, so that it has seen them all.
    """
    began = time.perf_counter()
    cache = Cache.open(found.cache)
    rows = [row for row in cache.usable() if row.label and not (without and row.split == without)]
    names = sorted({row.label for row in rows})
    if len(names) < 2:
        raise TooFewClasses(f"{cache.path} has {len(names)} classes of labels; to doubt labels takes two")
    name = _judge(cache, rows, found, tap)
    number_of = {name: number for number, name in enumerate(names)}
    y = np.array([number_of[row.label] for row in rows], np.int64)
    folds = _folds(_units(found, rows), y, seed)
    with threadpool_limits(1):  # five times as fast where others use the cores, too
        probabilities, strength = _left_out(features_of(cache, rows, name), y, len(names), folds, progress)
    judged = np.flatnonzero(np.isfinite(probabilities[:, 0]))
    if not len(judged):
        raise TooFewClasses(f"{cache.path} has too few images for doubts: all images of each class show the same")
    p, labels = probabilities[judged], y[judged]
    place_of = {row.path: place for place, row in enumerate(rows)}
    others_of = _same_photos(rows)
    listed = [
        _of_two_labels(rows[place_of[path]], others, probabilities[place_of[path]], names)
        for path, others in others_of.items()
    ]
    for place, other in doubted(p, labels):
        at = judged[place]
        row = rows[at]
        if row.path not in others_of:
            values = float(probabilities[at, y[at]]), float(probabilities[at, other])
            listed.append(Doubt(row.path, row.label, row.split, names[other], *values))
    decided = _decided(cache)
    open_doubts = tuple(doubt for doubt in listed if doubt.path not in decided)
    return Doubts(
        images=len(judged),
        unjudged=len(rows) - len(judged),
        accuracy=float((p.argmax(axis=1) == labels).mean()),
        strength=strength,
        tap=name,
        doubts=open_doubts,
        seconds=round(time.perf_counter() - began, 3),
        reviewed=len(listed) - len(open_doubts),
    )


def _same_photos(rows: Sequence[ImageRow]) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return {path: (path, label) of the same bytes under other labels}, those of one photo one after the other."""
    copies: dict[str, list[ImageRow]] = {}
    for row in rows:
        copies.setdefault(row.digest, []).append(row)
    return {
        row.path: tuple((other.path, other.label) for other in photo if other.label != row.label)
        for photo in copies.values()
        if len({row.label for row in photo}) > 1
        for row in photo
    }


def _of_two_labels(
    row: ImageRow, others: tuple[tuple[str, str], ...], probabilities: Floats, names: Sequence[str]
) -> Doubt:
    """Return what is known of a photo that is there under several labels. probabilities: (K,), of the classes."""
    if not np.isfinite(probabilities[0]):
        return Doubt(row.path, row.label, row.split, "", None, None, others)
    probability_of = dict(zip(names, probabilities.tolist(), strict=True))
    labels = sorted({row.label, *(label for _, label in others)})
    suggested = max(labels, key=probability_of.__getitem__)
    return Doubt(
        row.path, row.label, row.split, suggested, probability_of[row.label], probability_of[suggested], others
    )


def _decided(cache: Cache) -> set[str]:
    """Return the paths of the images about whose label somebody has decided."""
    decided = {(review.digest, review.label) for review in cache.changes.reviews}
    given = without_review(cache.rows, cache.changes)
    return {row.path for row in given if (row.digest, row.label) in decided}


def _judge(cache: Cache, rows: Sequence[ImageRow], found: Leaks, tap: str | None) -> str:
    """Return the tap whose features judge. Raises UsageError if none can: its backbone was trained by these images."""
    first = found.tap if tap is None else cache.tap(tap).name
    reason = why_not_left_out(cache, rows, first)
    if not reason:
        return first
    others = [name for name in cache.vectors if not why_not_left_out(cache, rows, name)]
    if tap is None and others:
        return widest(cache, others)
    instead = f"--tap {' or '.join(others)}" if others else "featcache extract with a backbone that they did not train"
    raise UsageError(f"No label can be judged: {reason}. Judge by other features: {instead}")


def doubted(probabilities: Floats, labels: Classes) -> list[tuple[int, int]]:
    """Return which labels are doubted, and the class that is suggested, the least margin first.

    probabilities: (N, K), of images that their classifier had not seen. labels: (N,).

    >>> p = np.array([[0.9, 0.1], [0.8, 0.2], [0.95, 0.05], [0.1, 0.9], [0.2, 0.8]])
    >>> doubted(p, np.array([0, 0, 1, 1, 1]))
    [(2, 0)]
    """
    usual = np.array([_mean(probabilities[labels == name, name]) for name in range(probabilities.shape[1])])
    possible = np.where(probabilities >= usual, probabilities, -1.0)
    suggested = possible.argmax(axis=1)
    at = np.flatnonzero((possible.max(axis=1) >= 0) & (suggested != labels))
    margin = probabilities[at, labels[at]] - probabilities[at, suggested[at]]
    order = at[np.argsort(margin, kind="stable")]
    return [(int(one), int(suggested[one])) for one in order]


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else np.inf


def _units(found: Leaks, rows: Sequence[ImageRow]) -> Classes:
    """Return the number of the set that each image belongs to, (N,)."""
    names = sets_of(found, rows)
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _folds(units: Classes, y: Classes, seed: int) -> Classes:
    """Return the fold of each image, (N,): sets stay together, classes are spread evenly."""
    from sklearn.model_selection import KFold, StratifiedKFold

    _, first = np.unique(units, return_index=True)
    count = min(FOLDS, len(first))
    if count < 2:
        raise TooFewClasses("All images show the same, so no label can be judged by the others")
    of_class = np.bincount(y[first])
    even = of_class[of_class > 0].min() >= count
    kind = StratifiedKFold if even else KFold  # of rare classes it would warn
    fold_of = np.empty(len(first), np.int64)
    for number, (_, left_out) in enumerate(kind(count, shuffle=True, random_state=seed).split(first, y[first])):
        fold_of[left_out] = number
    return fold_of[units]


def _left_out(
    X: Features, y: Classes, num_classes: int, folds: Classes, progress: Progress
) -> tuple[npt.NDArray[np.float64], float]:
    """Return (N, K), what is said of images that were left out, not numbers for those of classes that were, too.

    Also the strength of the regression that says it.
    """
    from sklearn.preprocessing import StandardScaler

    grid = [{"C": strength, "tol": TOL} for strength in STRENGTHS]
    said = np.full((len(grid), len(y), num_classes), np.nan)
    count = int(folds.max()) + 1
    progress(Tick("labels", 0, count))
    for number in range(count):
        seen, left_out = folds != number, np.flatnonzero(folds == number)
        classes = np.unique(y[seen])
        known = left_out[np.isin(y[left_out], classes)]
        if len(classes) > 1 and len(known):
            scaler = StandardScaler().fit(X[seen])
            fold = Fold(scaler.transform(X[seen]), y[seen], scaler.transform(X[known]), keep=False)
            for at, tried in enumerate(try_all("logreg", grid, fold)):
                if tried.logits is not None:
                    said[at, known] = 0.0
                    said[at, known[:, None], classes] = softmax(tried.logits)
        progress(Tick("labels", number + 1, count))
    right = said[:, np.arange(len(y)), y]
    loss = [_mean(-np.log(np.maximum(one[np.isfinite(one)], LEAST))) for one in right]
    best = int(np.argmin(loss))
    return said[best], STRENGTHS[best]
