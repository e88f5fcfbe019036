"""The result of `leaks`: pairs of images that show the same, the thresholds, and whether test is contaminated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from featcache.cache.reader import Cache
from featcache.errors import FeatcacheError
from featcache.images.jpegs import pictures
from featcache.images.manifest import read_image
from featcache.images.sources import open_source
from featcache.notebook import MOST_PICTURES, Thumbnail, html, never_raising
from featcache.spec import SPLITS
from featcache.text import Table, counted

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

    def __repr__(self) -> str:
        return f"Leaks({self.cache}, {counted(self.images, 'image')}, {counted(len(self.pairs), 'pair')})"

    @never_raising
    def _repr_html_(self) -> str:
        title = f"{counted(self.images, 'image')} of {self.cache}, compared by the features of {self.tap}"
        if not self.pairs:
            return html(title, lines=["No two images show the same.", self.verdict()], notes=self.notes)
        notes = list(self.notes)
        shown: list[Thumbnail] = []
        try:
            shown = self._pictures()
        except FeatcacheError as error:
            notes.append(f"The images cannot be shown: {error}")
        tables = [self.count_table(), self.pair_table()]
        return html(title, *tables, lines=[self.verdict()], pictures=shown, notes=notes)

    def _pictures(self) -> list[Thumbnail]:
        """Return the images of the first pairs, those of a pair side by side."""
        cache = Cache.open(self.cache)
        row_of = {row.path: row for row in cache.rows}
        rows = []
        for pair in self.pairs[: MOST_PICTURES // 2]:
            rows += [row_of[path] for path in (pair.a, pair.b) if path in row_of]  # the cache may have changed since
        return pictures(partial(read_image, open_source(cache.root)), rows)

    def pair_table(self, limit: int | None = None) -> Table:
        """Return the pairs, at most `limit`."""
        rows: list[list[object]] = []
        for pair in self.pairs[:limit]:
            agreement = "-" if pair.agreement is None else f"{pair.agreement:.2f}"
            rows.append([pair.a, pair.b, pair.kind, f"{pair.similarity:.3f}", agreement, _between(pair.splits)])
        return Table(["image", "shows the same as", "kind", "features", "pixels", "splits"], rows)

    def count_table(self) -> Table:
        """Return how many pairs there are between splits, of each kind."""
        rows: list[list[object]] = []
        for splits, kinds in self.counts.items():
            by_kind = [kinds.get(kind, 0) for kind in KINDS]
            rows.append([_between(splits), *by_kind, sum(kinds.values())])
        return Table(["pairs", *KINDS, "all"], rows)

    def verdict(self, *, was_fixed: bool = False) -> str:
        """Return what the pairs mean for the guarded split; in the past tense if that has been repaired."""
        if not self.guarded:
            return "There are no splits that could share images."
        if not self.contaminated:
            return f"No image of {self.guarded} is in another split as well."
        paths = set()
        for pair in self.contaminating:
            # Of such a pair one image is in the guarded split, and the other is not.
            paths.add(pair.a if pair.splits[0] == self.guarded else pair.b)
        are, have = ("were", "had") if was_fixed else ("are", "have")
        shared = []
        if paths:
            shared.append(f"{len(paths)} of its images {are} in other splits as well")
        if groups := self.contaminating_groups:
            shared.append(f"{len(groups)} of its groups, such as '{groups[0]}', {have} images in other splits")
        reasons = f"{' and '.join(shared)}, so scores on it {are} too good."
        if was_fixed:
            return f"Before the fix {self.guarded} was contaminated: {reasons}"
        return f"{self.guarded} is contaminated: {reasons}"

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


def _between(splits: tuple[str, str]) -> str:
    return " - ".join(name or "none" for name in splits)
