"""Find labels that look wrong: confident learning (Northcutt, Jiang, Chuang 2021, https://arxiv.org/abs/1911.00068).

A logistic regression on cached features judges every image. It has seen neither the image nor any image that shows the
same, since the five folds keep such sets together. Of three strengths the one with the least log loss on the left-out
images is used, so that its probabilities can be trusted.

With p_i(k) the left-out probability of class k for image i, and y_i its label, the usual confidence of class k is

    usual(k) = mean of p_i(k) over the images with y_i = k

Class k is possible for image i if p_i(k) >= usual(k). A label is doubted if the most probable possible class is another
one. Classes that are hard to tell apart have a low usual(k), so a rare or difficult class is not doubted as a whole.

Doubts are listed by margin, the lowest first: the probability of the label minus the probability of the suggested
class. Before them come photos that are there under two labels, byte for byte: one of the two is wrong, whatever the
regression says. Images whose labels somebody has reviewed are not listed again.
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
TOL = 1e-2  # enough for probabilities that are right to a thousandth
FOLDS = 5
LEAST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class Doubt:
    """One image whose label looks wrong."""

    path: str
    label: str
    split: str
    suggested: str  # of a photo under two labels the more probable one, which may be this label; "" if not judged
    probability: float | None  # of the label; None for a photo under two labels that could not be judged
    of_suggested: float | None  # probability of the suggested class
    same_photo: tuple[tuple[str, str], ...] = ()  # (path, label) of the same bytes under other labels

    @property
    def margin(self) -> float:
        """Return the label's probability minus the suggested class's; NaN if the image was not judged."""
        if self.probability is None or self.of_suggested is None:
            return math.nan
        return self.probability - self.of_suggested


@dataclass(frozen=True)
class Doubts:
    """The labels that look wrong, the most doubtful first."""

    images: int  # that were judged
    unjudged: int  # images of classes that fell into one fold as a whole
    accuracy: float  # of the regression, on images that it had not seen
    strength: float  # of the regression: C in scikit-learn
    tap: str  # whose features the regression used
    doubts: tuple[Doubt, ...]
    seconds: float
    reviewed: int = 0  # labels that look wrong but are not listed, because somebody has decided about them

    @property
    def photos_of_two_labels(self) -> tuple[tuple[tuple[str, str], ...], ...]:
        """Return for each photo that is there under several labels its (path, label), sorted."""
        photos: set[tuple[tuple[str, str], ...]] = set()
        for doubt in self.doubts:
            if doubt.same_photo:
                photos.add(tuple(sorted([(doubt.path, doubt.label), *doubt.same_photo])))
        return tuple(sorted(photos))


def doubts(
    leaks: Leaks, *, tap: str | None = None, without: str = "", seed: int = 0, progress: Progress = silent
) -> Doubts:
    """Return the labels that look wrong, in all splits.

    leaks: the result of `leaks` for the cache, so that no image is judged by its own copies.
    tap: the features to judge by; by default the compared ones, or others if these images trained their backbone.
    without: a split whose labels stay closed: they are neither judged nor learnt from.
    Raises TooFewClasses, ShapeMismatch, and UsageError if the images trained the backbone, which thus has seen them.
    """
    began = time.perf_counter()
    cache = Cache.open(leaks.cache)
    rows = [row for row in cache.usable() if row.label]
    if without:
        rows = [row for row in rows if row.split != without]
    names = sorted({row.label for row in rows})
    if len(names) < 2:
        raise TooFewClasses(f"{cache.path} has {len(names)} classes of labels; to doubt labels takes two")
    tap_name = _tap_to_judge_by(cache, rows, leaks, tap)
    class_index = {name: number for number, name in enumerate(names)}
    y = np.array([class_index[row.label] for row in rows], np.int64)
    # Copies of an image are in its fold, so the regression that judges it has seen none of them.
    _, set_numbers = np.unique(sets_of(leaks, rows), return_inverse=True)
    folds = _folds(set_numbers.astype(np.int64), y, seed)
    features = features_of(cache, rows, tap_name)
    with threadpool_limits(1):  # five times as fast while other processes use the cores
        probabilities, strength = left_out_probabilities(features, y, len(names), folds, progress)
    judged = np.flatnonzero(np.isfinite(probabilities[:, 0]))
    if not len(judged):
        raise TooFewClasses(f"{cache.path} has too few images for doubts: all images of each class show the same")

    all_doubts: list[Doubt] = []
    same_photos = _same_photos(rows)
    number_of_path = {row.path: number for number, row in enumerate(rows)}
    for path, others in same_photos.items():
        number = number_of_path[path]
        all_doubts.append(_of_two_labels(rows[number], others, probabilities[number], names))
    for place, suggested in doubted(probabilities[judged], y[judged]):
        number = judged[place]
        row = rows[number]
        if row.path in same_photos:
            continue
        of_label = float(probabilities[number, y[number]])
        of_suggested = float(probabilities[number, suggested])
        all_doubts.append(Doubt(row.path, row.label, row.split, names[suggested], of_label, of_suggested))

    decided_paths = _decided_paths(cache)
    open_doubts = tuple(doubt for doubt in all_doubts if doubt.path not in decided_paths)
    is_right = probabilities[judged].argmax(axis=1) == y[judged]
    return Doubts(
        images=len(judged),
        unjudged=len(rows) - len(judged),
        accuracy=float(is_right.mean()),
        strength=strength,
        tap=tap_name,
        doubts=open_doubts,
        seconds=round(time.perf_counter() - began, 3),
        reviewed=len(all_doubts) - len(open_doubts),
    )


def _same_photos(rows: Sequence[ImageRow]) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return {path: (path, label) of the same bytes under other labels}, photo by photo."""
    copies: dict[str, list[ImageRow]] = {}
    for row in rows:
        copies.setdefault(row.digest, []).append(row)
    others_of: dict[str, tuple[tuple[str, str], ...]] = {}
    for photo in copies.values():
        for row in photo:
            others = tuple((other.path, other.label) for other in photo if other.label != row.label)
            if others:
                others_of[row.path] = others
    return others_of


def _of_two_labels(
    row: ImageRow, others: tuple[tuple[str, str], ...], probabilities: Floats, names: Sequence[str]
) -> Doubt:
    """Return the doubt about a photo that is there under several labels. probabilities: (K,), NaN if not judged."""
    if not np.isfinite(probabilities[0]):
        return Doubt(row.path, row.label, row.split, "", None, None, others)
    probability_of = dict(zip(names, probabilities.tolist(), strict=True))
    labels = sorted({row.label, *(label for _, label in others)})
    suggested = max(labels, key=probability_of.__getitem__)
    of_label = probability_of[row.label]
    of_suggested = probability_of[suggested]
    return Doubt(row.path, row.label, row.split, suggested, of_label, of_suggested, others)


def _decided_paths(cache: Cache) -> set[str]:
    """Return the paths of the images whose label somebody has decided about."""
    # By content and label, so that a decision still counts after a file was renamed.
    decided = {(review.digest, review.label) for review in cache.changes.reviews}
    # A decision is about the label as the folder or table gives it, before any review.
    rows = without_review(cache.rows, cache.changes)
    return {row.path for row in rows if (row.digest, row.label) in decided}


def _tap_to_judge_by(cache: Cache, rows: Sequence[ImageRow], leaks: Leaks, tap: str | None) -> str:
    """Return the tap whose features can judge. Raises UsageError if these images trained every backbone."""
    first = leaks.tap if tap is None else cache.tap(tap).name
    reason = why_not_left_out(cache, rows, first)
    if not reason:
        return first
    others = [name for name in cache.vectors if not why_not_left_out(cache, rows, name)]
    if tap is None and others:
        return widest(cache, others)
    instead = f"`tap={' or '.join(others)}`" if others else "featcache extract with a backbone that they did not train"
    raise UsageError(f"No label can be judged: {reason}. Judge by other features: {instead}")


def doubted(probabilities: Floats, labels: Classes) -> list[tuple[int, int]]:
    """Return (image number, suggested class) of each doubted label, the lowest margin first.

    probabilities: (N, K), from a classifier that had not seen the image. labels: (N,).

    >>> p = np.array([[0.9, 0.1], [0.8, 0.2], [0.95, 0.05], [0.1, 0.9], [0.2, 0.8]])
    >>> doubted(p, np.array([0, 0, 1, 1, 1]))
    [(2, 0)]
    """
    num_classes = probabilities.shape[1]
    # usual(k), (K,): what a class must reach to be possible. A class without labelled images is never possible.
    usual = np.empty(num_classes)
    for number in range(num_classes):
        usual[number] = _mean(probabilities[labels == number, number])
    # -1 is below every probability, so an impossible class is suggested only where none is possible.
    possible = np.where(probabilities >= usual, probabilities, -1.0)
    suggested = possible.argmax(axis=1)
    has_possible_class = possible.max(axis=1) >= 0

    numbers = np.flatnonzero(has_possible_class & (suggested != labels))
    of_label = probabilities[numbers, labels[numbers]]
    of_suggested = probabilities[numbers, suggested[numbers]]
    order = numbers[np.argsort(of_label - of_suggested, kind="stable")]
    return list(zip(order.tolist(), suggested[order].tolist(), strict=True))


def _mean(values: Floats) -> float:
    """Return the mean, or infinity of nothing: no probability reaches it, and no log loss is worse."""
    return float(values.mean()) if len(values) else np.inf


def _folds(set_numbers: Classes, y: Classes, seed: int) -> Classes:
    """Return the fold of each image, (N,): sets stay together, classes are spread evenly."""
    from sklearn.model_selection import KFold, StratifiedKFold

    # Split the sets, each represented by its first image, and let the others follow.
    _, first = np.unique(set_numbers, return_index=True)
    num_folds = min(FOLDS, len(first))
    if num_folds < 2:
        raise TooFewClasses("All images show the same, so no label can be judged by the others")
    sets_of_class = np.bincount(y[first])
    can_stratify = sets_of_class[sets_of_class > 0].min() >= num_folds
    make_splitter = StratifiedKFold if can_stratify else KFold  # StratifiedKFold warns about rare classes
    splitter = make_splitter(num_folds, shuffle=True, random_state=seed)
    fold_of_set = np.empty(len(first), np.int64)
    for fold, (_, left_out) in enumerate(splitter.split(first, y[first])):
        fold_of_set[left_out] = fold
    return fold_of_set[set_numbers]


def left_out_probabilities(
    X: Features, y: Classes, num_classes: int, folds: Classes, progress: Progress
) -> tuple[npt.NDArray[np.float64], float]:
    """Return (N, K), the probabilities that left-out images get, and the strength of the regression.

    The row of an image is NaN if its class was left out as a whole.
    """
    from sklearn.preprocessing import StandardScaler

    grid = [{"C": strength, "tol": TOL} for strength in STRENGTHS]
    probabilities = np.full((len(grid), len(y), num_classes), np.nan)
    num_folds = int(folds.max()) + 1
    progress(Tick("labels", 0, num_folds))
    for number in range(num_folds):
        train = folds != number
        classes = np.unique(y[train])
        # An image of a class that the fold did not train cannot be judged.
        judged = np.flatnonzero(~train & np.isin(y, classes))
        if len(classes) > 1 and len(judged):
            # The scaler, too, must not see the images that it prepares for judgement.
            scaler = StandardScaler().fit(X[train])
            fold = Fold(scaler.transform(X[train]), y[train], scaler.transform(X[judged]), keep=False)
            for at, candidate in enumerate(try_all("logreg", grid, fold)):
                if candidate.logits is not None:
                    probabilities[at, judged] = 0.0  # for classes that the fold did not train
                    probabilities[at, judged[:, None], classes] = softmax(candidate.logits)
        progress(Tick("labels", number + 1, num_folds))

    # The strength with the least log loss on left-out images: its probabilities are the best calibrated.
    losses: list[float] = []
    for of_label in probabilities[:, np.arange(len(y)), y]:
        of_judged = of_label[np.isfinite(of_label)]
        # One image with a probability of 0 would make the loss infinite, whatever the others say.
        of_judged = np.maximum(of_judged, LEAST_PROBABILITY)
        losses.append(_mean(-np.log(of_judged)))
    best = int(np.argmin(losses))
    return probabilities[best], STRENGTHS[best]
