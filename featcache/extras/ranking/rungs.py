"""Choose the images of each rung: few at first, then about twice as many each time, always with those before.

Classes keep their shares. Of a group, and of copies, only one image takes part: with the others at hand, leaving it out
would prove nothing. The order within a class follows from the bytes of the images and the seed, so that a rung changes
little when images are added.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from featcache.errors import TooFewClasses
from featcache.images.manifest import Images
from featcache.images.splits import position
from featcache.spec import ImageRow, units_of
from featcache.sweeps.choosing import one_of_each_unit

FIRST = 100  # images of the first rung
FIRST_PER_CLASS = 5  # in the mean, where there are many classes
LEAST_PER_CLASS = 2  # so that one is left when one is left out
MOST = 10_000  # images of the last rung: their interval is 1 point wide
GROWTH = 2


def rows_to_rank(rows: Sequence[ImageRow], root: Path) -> list[ImageRow]:
    """Return the training images that can rank backbones: one of each group, of classes with at least two.

    root: where the images are, for the error. Raises TooFewClasses if fewer than two classes are left.
    """
    train = [row for row in rows if row.label and row.split == "train"]
    alone = one_of_each_unit(train)
    counts = Counter(row.label for row in alone)
    classes = sorted({row.label for row in rows if row.label})
    rare = [label for label in classes if counts[label] < LEAST_PER_CLASS]
    if len(classes) - len(rare) < 2:
        raise TooFewClasses(
            f"To rank backbones takes two classes with {LEAST_PER_CLASS} training images each that are in different "
            f"groups and no copies; '{rare[0]}' of {root} has {counts[rare[0]]}. Add images"
        )
    return [row for row in alone if row.label not in rare]


def rungs_of(rows: Sequence[ImageRow], seed: int) -> list[list[ImageRow]]:
    """Return the images of each rung. rows: those of the last rung, or more."""
    by_class: dict[str, list[ImageRow]] = {}
    for row in in_seeded_order(rows, seed):
        by_class.setdefault(row.label, []).append(row)

    num_last = min(len(rows), MOST)
    sizes: list[int] = []
    size = max(FIRST, FIRST_PER_CLASS * len(by_class))
    # A last rung that is hardly larger than the one before would tell nothing new.
    while size * math.sqrt(GROWTH) < num_last:
        sizes.append(size)
        size *= GROWTH
    sizes.append(num_last)

    rungs: list[list[ImageRow]] = []
    for size in sizes:
        rung: list[ImageRow] = []
        for of_class in by_class.values():
            num_of_class = round(len(of_class) * size / len(rows))
            rung += of_class[: max(LEAST_PER_CLASS, num_of_class)]
        rungs.append(rung)
    return rungs


def in_seeded_order(rows: Sequence[ImageRow], seed: int) -> list[ImageRow]:
    """Return the rows in an order by chance, which other rows do not change."""
    return sorted(rows, key=lambda row: (position(row.digest, seed), row.path))


def rows_to_judge(images: Images, ranked: Sequence[ImageRow]) -> list[ImageRow]:
    """Return validation images of the ranked classes, one of each group, by chance; none of a group in train."""
    labels = {row.label for row in ranked}
    units = units_of(images.rows)
    in_train = {unit for unit, row in zip(units, images.rows, strict=True) if row.split == "train"}
    candidates: list[ImageRow] = []
    for unit, row in zip(units, images.rows, strict=True):
        if row.split == "val" and row.label in labels and unit not in in_train:
            candidates.append(row)
    return in_seeded_order(one_of_each_unit(candidates), images.split_spec.seed)
