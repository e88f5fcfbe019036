"""Decides which split an image is in. The split follows from the image's content, so new images move no other image.

An image's unit is its group, or its content if it has no group; groups that share a copy of an image are one unit. The
hash of a unit is a number in [0, 1): below the share of train the unit is in train, then come val and test. So copies
of an image, and images of a group, are in one split, unless folders or a table already put them into different ones
(`carve` then moves copies of test images out of train). Each class is divided at the same percentages, and its
numbers vary slightly around them (80 images at 15 %: 12, give or take 3).
A class without any training image gets one: the unit with its smallest hash.

A cache keeps the splits that it has: see `extraction.stored`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from featcache.spec import SPLITS, ImageRow, SplitSpec, units_of


def position(unit: str, seed: int) -> float:
    """Return where a unit falls in [0, 1).

    >>> round(position("a", seed=0), 3), round(position("a", seed=1), 3)
    (0.617, 0.255)
    """
    hashed = hashlib.sha256(f"{seed}:{unit}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(hashed[:8], "big") / 2**64


def assign(rows: Iterable[ImageRow], spec: SplitSpec) -> list[ImageRow]:
    """Return the rows with their splits. A row that has a split keeps it, and the rest of its unit follows.

    If rows of one unit have several splits, the rest goes to train if that is one of them, else to val: test gets no
    image whose unit is elsewhere too.
    """
    rows = list(rows)
    units = units_of(rows)
    split_of: dict[str, str] = {}
    # First the splits that rows have already, then the hash for units without one.
    for unit, row in zip(units, rows, strict=True):
        if row.split:
            # SPLITS has train first, and test last.
            split_of[unit] = min(row.split, split_of.get(unit, row.split), key=SPLITS.index)
    for unit, row in zip(units, rows, strict=True):
        if row.label:
            split_of.setdefault(unit, _by_hash(unit, spec))
    _give_every_class_a_training_image(rows, units, split_of, spec.seed)

    assigned: list[ImageRow] = []
    for unit, row in zip(units, rows, strict=True):
        assigned.append(row._replace(split=row.split or split_of.get(unit, "")))
    return assigned


def carve(rows: Iterable[ImageRow], spec: SplitSpec) -> list[ImageRow]:
    """Return the rows with val taken out of train, for folders or a table that give train and test only.

    A copy of a test image is never trained on: it goes to test. Other images of its group stay in train or val.
    """
    rows = list(rows)
    test_digests = {row.digest for row in rows if row.split == "test"}
    others = [row._replace(split="") for row in rows if row.digest not in test_digests]
    without_test = replace(spec, train=100 - spec.val, test=0)
    split_of = {row.path: row.split for row in assign(others, without_test)}
    return [row._replace(split=split_of.get(row.path, "test")) for row in rows]


def _by_hash(unit: str, spec: SplitSpec) -> str:
    percent = position(unit, spec.seed) * 100
    if percent < spec.train:
        return "train"
    if percent < spec.train + spec.val:
        return "val"
    return "test"


def _give_every_class_a_training_image(
    rows: Sequence[ImageRow], units: Sequence[str], split_of: dict[str, str], seed: int
) -> None:
    units_of_class: dict[str, set[str]] = {}
    trained_labels: set[str] = set()
    for unit, row in zip(units, rows, strict=True):
        if row.label and not row.split:
            units_of_class.setdefault(row.label, set()).add(unit)
        if split_of.get(unit) == "train":
            trained_labels.add(row.label)
    for label in units_of_class.keys() - trained_labels:
        smallest = min(units_of_class[label], key=lambda unit: position(unit, seed))
        split_of[smallest] = "train"
