"""What was found: pairs of images that show the same, the thresholds that said so, and whether test is contaminated."""

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
    similarity: float  # cosine of their features, around the mean of all where there are many
    agreement: float | None  # correlation of their pixels; None if nobody compared them
    splits: tuple[str, str]  # of a and b; "" of an image without one

    @property
    def crosses(self) -> bool:
        """Return whether it leads from one split to another."""
        return self.splits[0] != self.splits[1] and "" not in self.splits


@dataclass(frozen=True)
class Thresholds:
    """From where on two images count as the same, and why."""

    features: float  # similarity from which a pair is looked at; where no pixels can be compared, see `alone`
    alone: float  # similarity from which features decide where no pixels can be compared
    hashes: float | None  # similarity of hashes from which a pair is looked at; None without images
    agreement: float | None  # of the pixels of a pair that counts; None without images
    why: str


@dataclass(frozen=True)
class Leaks:
    """Which images of a cache show the same."""

    cache: Path
    tap: str
    images: int
    pairs: tuple[Pair, ...]  # those that contaminate first, then others that cross, then by kind
    guarded: str  # the split that must not share images with others: test, else val; "" if there is neither
    thresholds: Thresholds
    unseen: int  # images of which features alone were compared
    notes: tuple[str, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)  # of each step
    digests: Mapping[str, str] = field(default_factory=dict, repr=False)  # {path: SHA-256} of the images of pairs
    crossing_groups: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # {group: {split: images}}

    @property
    def contaminating(self) -> tuple[Pair, ...]:
        """Return the pairs of an image of the guarded split and one of another."""
        return tuple(pair for pair in self.pairs if pair.crosses and self.guarded in pair.splits)

    @property
    def contaminating_groups(self) -> tuple[str, ...]:
        """Return the groups that stand in the guarded split and in another one."""
        return tuple(group for group, splits in self.crossing_groups.items() if self.guarded in splits)

    @property
    def contaminated(self) -> bool:
        """Return whether the guarded split shares images, or images of a group, with another one."""
        return bool(self.contaminating or self.contaminating_groups)

    @property
    def counts(self) -> Mapping[tuple[str, str], Mapping[Kind, int]]:
        """Return how many pairs of each kind there are between two splits, in the order train, val, test."""
        found: dict[tuple[str, str], Counter[Kind]] = {}
        for pair in self.pairs:
            first, second = sorted(pair.splits, key=ORDER.__getitem__)
            found.setdefault((first, second), Counter())[pair.kind] += 1
        return dict(sorted(found.items(), key=lambda one: [ORDER[name] for name in one[0]]))
