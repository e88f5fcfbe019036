"""The result of `leaks`: pairs of images that show the same, the thresholds, and whether test is contaminated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from featcache.spec import SPLITS

Kind = Literal["exact", "re-encoded", "resized", "rotated/flipped", "near"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ORDER = {name: number for number, name in enumerate((*SPLITS, ""))}


@dataclass(frozen=True)
class Pair:
    """Two images that show the same."""

    a: str  # path
    b: str
    kind: Kind
    similarity: float  # cosine of their features; around the mean features, if there are many images
    agreement: float | None  # correlation of their pixels; None if these were not compared
    splits: tuple[str, str]  # of a and b; "" for an image without a split

    @property
    def crosses(self) -> bool:
        """Return whether the two images are in different splits."""
        return self.splits[0] != self.splits[1] and "" not in self.splits


@dataclass(frozen=True)
class Thresholds:
    """From which similarity two images count as the same, and why."""

    features: float  # similarity from which the pixels of a pair are compared
    alone: float  # similarity from which features decide, if pixels cannot be compared
    hashes: float | None  # similarity of hashes from which the pixels of a pair are compared; None without images
    agreement: float | None  # least agreement of pixels of a pair that counts; None without images
    why: str


@dataclass(frozen=True)
class Leaks:
    """The images of a cache that show the same."""

    cache: Path
    tap: str
    images: int
    pairs: tuple[Pair, ...]  # contaminating ones first, then others that cross, then by kind
    guarded: str  # the split that must not share images with others: test, else val; "" if there is neither
    thresholds: Thresholds
    unseen: int  # images of which only the features were compared
    notes: tuple[str, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)  # of each step
    digests: Mapping[str, str] = field(default_factory=dict, repr=False)  # {path: SHA-256}, of images in pairs
    crossing_groups: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # {group: {split: images}}

    @property
    def contaminating(self) -> tuple[Pair, ...]:
        """Return the pairs of an image of the guarded split and an image of another split."""
        return tuple(pair for pair in self.pairs if pair.crosses and self.guarded in pair.splits)

    @property
    def contaminating_groups(self) -> tuple[str, ...]:
        """Return the groups with images in the guarded split and in another one."""
        return tuple(group for group, splits in self.crossing_groups.items() if self.guarded in splits)

    @property
    def contaminated(self) -> bool:
        """Return whether the guarded split shares images or groups with another split."""
        return bool(self.contaminating or self.contaminating_groups)

    @property
    def counts(self) -> Mapping[tuple[str, str], Mapping[Kind, int]]:
        """Return {splits: {kind: pairs}}, in the order train, val, test."""
        counts: dict[tuple[str, str], Counter[Kind]] = {}
        for pair in self.pairs:
            # test - train counts as train - test.
            first, second = sorted(pair.splits, key=ORDER.__getitem__)
            kinds = counts.setdefault((first, second), Counter())
            kinds[pair.kind] += 1
        in_order = sorted(counts, key=lambda splits: (ORDER[splits[0]], ORDER[splits[1]]))
        return {splits: counts[splits] for splits in in_order}
