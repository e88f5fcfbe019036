"""Which images of a cache train the heads and which choose among them, and whether there are enough of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from featcache.cache.reader import Cache
from featcache.errors import TooFewClasses, UsageError
from featcache.spec import ImageRow, units_of
from featcache.sweeps.inputs import rows_of, single_taps, taps_in
from featcache.sweeps.run import Settings
from featcache.sweeps.selection import rows_that_choose
from featcache.sweeps.unseen import roles, why_not_left_out
from featcache.text import counted

MIN_SELECT = 2  # images of validation below which nothing can be chosen on them


def images_of(cache: Cache, settings: Settings) -> tuple[list[ImageRow], list[ImageRow]]:
    """Return the images of train and of val that the sweep uses.

    Raises TooFewClasses; UsageError for folds of images that trained the backbone.
    """
    train = rows_of(cache, "train", settings.taps, settings.shots)
    val = rows_of(cache, "val", settings.taps, settings.shots)
    selection = settings.selection
    # `advise` leaves one out too, and has no such argument.
    option = "Leaving one out" if selection.leaves_one_out else f"`{selection}`"
    _check_classes(cache, train, selection.needed_images, option)
    if selection.is_within_train:
        _check_left_out(cache, train, settings)
    elif len(val) < MIN_SELECT:
        raise _too_few_choose(cache, train, val, settings)
    return train, val


def choosing_rows(cache: Cache, train: list[ImageRow], val: list[ImageRow], settings: Settings) -> list[ImageRow]:
    """Return the images that choose. Raises TooFewClasses if those of cross-validation show less than two classes."""
    selection = settings.selection
    if not selection.is_within_train:
        return val
    labels = cache.labels(train)
    choosing = rows_that_choose(selection.folds(train, labels, settings.seed), labels)
    rows = [train[number] for number in np.sort(choosing)]
    if len({row.label for row in rows}) < 2:
        raise TooFewClasses(
            f"`{selection}` needs two classes with training images that can be left out, which others of their "
            "class are not copies of or in one group with. Add images, or choose on the validation split: leave out "
            "`cv`"
        )
    return rows


def notes_on_val(cache: Cache, settings: Settings) -> list[str]:
    """Return what to say of validation images that trained a backbone, or may have."""
    rows = _labelled_val(cache, settings)
    notes = []
    for tap in single_taps(cache, settings.taps):
        roles_of_rows = roles(cache, rows, tap)
        if num_trained := roles_of_rows.count("trained"):
            notes.append(
                f"{num_trained} of {len(rows)} validation images trained the backbone of tap '{tap}', so they do not "
                "choose"
            )
        elif "unknown" in roles_of_rows:
            notes.append(
                f"{cache.taps[tap].backbone.weights}, the backbone of tap '{tap}', does not record which images "
                "trained it: if validation images did, scores on them are too good"
            )
    return notes


def one_of_each_unit(rows: Sequence[ImageRow]) -> list[ImageRow]:
    """Return one image of each group, and one of all copies, in the order of the rows."""
    first_of: dict[str, ImageRow] = {}
    for unit, row in zip(units_of(rows), rows, strict=True):
        # By digest: the image must not depend on the order of the rows.
        if unit not in first_of or row.digest < first_of[unit].digest:
            first_of[unit] = row
    paths = {row.path for row in first_of.values()}
    return [row for row in rows if row.path in paths]


def _labelled_val(cache: Cache, settings: Settings) -> list[ImageRow]:
    """Return the labelled validation images, whatever they did for a backbone."""
    return [row for row in cache.usable("val", settings.shots) if row.label]


def _check_classes(cache: Cache, train: Sequence[ImageRow], needed: int, option: str) -> None:
    """Raise TooFewClasses without two classes, with an empty one, or if none has the `needed` images of `option`."""
    num_images = Counter(row.label for row in train)
    if len(cache.classes) < 2:
        labels = f"one class only, '{cache.classes[0]}'" if cache.classes else "no labels"
        raise TooFewClasses(f"{cache.path} has {labels}. A classifier needs images of at least two class folders")
    smallest = min(cache.classes, key=lambda name: num_images[name])
    if num_images[smallest] == 0:
        raise TooFewClasses(
            f"Class '{smallest}' of {cache.path} has no readable image in train. Add images or take the class out"
        )
    largest = max(cache.classes, key=lambda name: num_images[name])
    if num_images[largest] < needed:
        raise TooFewClasses(
            f"{option} needs {needed} training images of a class; the largest, '{largest}', has {num_images[largest]}. "
            "Use fewer folds, or add some images"
        )


def _check_left_out(cache: Cache, train: list[ImageRow], settings: Settings) -> None:
    """Raise UsageError if scores on training images that are left out would mean nothing on one of the taps."""
    first_reason = ""
    sound = []  # taps on which they mean something
    for name in settings.taps:
        reasons = [why_not_left_out(cache, train, tap) for tap in taps_in(cache, name)]
        reason = next(filter(None, reasons), "")
        first_reason = first_reason or reason
        if not reason:
            sound.append(name)
    if first_reason:
        other_taps = f", or name other taps: `taps='{','.join(sound)}'`" if sound else ""
        raise UsageError(
            f"`{settings.selection}`: {first_reason}. Choose on validation images: leave out `cv`{other_taps}"
        )


def _too_few_choose(
    cache: Cache, train: list[ImageRow], val: list[ImageRow], settings: Settings
) -> TooFewClasses | UsageError:
    """Return what to raise where too few validation images are left to choose on."""
    seen = [tap for tap in single_taps(cache, settings.taps) if why_not_left_out(cache, train, tap)]
    shortage = f"{cache.path} has {counted(len(val), 'validation image')} to choose on"
    if not seen:
        return TooFewClasses(f"{shortage}. Choose by cross-validation: `cv=5`")
    num_trained = len(_labelled_val(cache, settings)) - len(val)
    return UsageError(
        f"{shortage} besides {num_trained} that trained the backbone of tap '{seen[0]}', as training images did, so "
        "`cv` tells nothing either. Extract with the `split` and `seed` that it was tuned with, into another `out`"
    )
