"""Which split an image belongs to: a pure function of its content, so that adding images moves nobody.

An image's unit is its group, or its own content where it has none. The unit's hash is a number in [0, 1);
below the share of train it is train, and so on. Copies of one image therefore never stand in two splits,
and each class is cut at the same shares, up to chance (80 images at 15 %: 12, give or take 3).
Only a class that would have no training image at all gets one, from its smallest hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from featcache.spec import ImageRow, SplitSpec, unit_of


def position(unit: str, seed: int) -> float:
    """Return where a unit falls in [0, 1).

    >>> round(position("a", seed=0), 3), round(position("a", seed=1), 3)
    (0.617, 0.255)
    """
    hashed = hashlib.sha256(f"{seed}:{unit}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(hashed[:8], "big") / 2**64


def assign(rows: Iterable[ImageRow], spec: SplitSpec) -> list[ImageRow]:
    """Return the rows with their splits. A row that has one keeps it."""
    rows = list(rows)
    split_of = {unit_of(row): row.split for row in rows if row.split}
    for row in rows:
        if row.label:
            split_of.setdefault(unit_of(row), _by_hash(unit_of(row), spec))
    _give_every_class_a_training_image(rows, split_of, spec.seed)
    return [row._replace(split=row.split or split_of.get(unit_of(row), "")) for row in rows]


def _by_hash(unit: str, spec: SplitSpec) -> str:
    at = position(unit, spec.seed) * 100
    return "train" if at < spec.train else "val" if at < spec.train + spec.val else "test"


def _give_every_class_a_training_image(rows: list[ImageRow], split_of: dict[str, str], seed: int) -> None:
    units: dict[str, set[str]] = {}
    for row in rows:
        if row.label and not row.split:
            units.setdefault(row.label, set()).add(unit_of(row))
    trained = {row.label for row in rows if split_of.get(unit_of(row)) == "train"}
    for label in units.keys() - trained:
        split_of[min(units[label], key=lambda unit: position(unit, seed))] = "train"
