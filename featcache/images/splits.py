"""Which split an image belongs to: a pure function of its content, so that adding images moves nobody.

An image's unit is its group, or its own content where it has none; groups that share a copy are one unit. The
unit's hash is a number in [0, 1); below the share of train it is train, and so on. So neither copies of one image nor
images of one group ever stand in two splits, and each class is cut at the same shares, up to chance (80 images at
15 %: 12, give or take 3).
Only a class that would have no training image at all gets one, from its smallest hash.
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
    """Return the rows with their splits. A row that has one keeps it, and the rest of its unit follows.

    Where those of one unit have several, the rest goes to train if one of them is there, else to val: test gets nothing
    that is elsewhere as well.
    """
    rows = list(rows)
    units = units_of(rows)
    split_of: dict[str, str] = {}
    for unit, row in zip(units, rows, strict=True):
        if row.split:
            split_of[unit] = min(row.split, split_of.get(unit, row.split), key=SPLITS.index)
    for unit, row in zip(units, rows, strict=True):
        if row.label:
            split_of.setdefault(unit, _by_hash(unit, spec))
    _give_every_class_a_training_image(rows, units, split_of, spec.seed)
    return [row._replace(split=row.split or split_of.get(unit, "")) for unit, row in zip(units, rows, strict=True)]


def carve(rows: Iterable[ImageRow], spec: SplitSpec) -> list[ImageRow]:
    """Return the rows with val taken out of train, where folders or a table gave train and test only.

    A copy of a test image is never trained on: it goes to test. Others of its group stay in train or val.
    """
    rows = list(rows)
    tested = {row.digest for row in rows if row.split == "test"}
    free = [row._replace(split="") for row in rows if row.digest not in tested]
    split_of = {row.path: row.split for row in assign(free, replace(spec, train=100 - spec.val, test=0))}
    return [row._replace(split=split_of.get(row.path, "test")) for row in rows]


def _by_hash(unit: str, spec: SplitSpec) -> str:
    at = position(unit, spec.seed) * 100
    return "train" if at < spec.train else "val" if at < spec.train + spec.val else "test"


def _give_every_class_a_training_image(
    rows: Sequence[ImageRow], units: Sequence[str], split_of: dict[str, str], seed: int
) -> None:
    units_of_class: dict[str, set[str]] = {}
    trained: set[str] = set()
    for unit, row in zip(units, rows, strict=True):
        if row.label and not row.split:
            units_of_class.setdefault(row.label, set()).add(unit)
        if split_of.get(unit) == "train":
            trained.add(row.label)
    for label in units_of_class.keys() - trained:
        split_of[min(units_of_class[label], key=lambda unit: position(unit, seed))] = "train"
