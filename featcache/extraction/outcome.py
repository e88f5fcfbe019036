"""What an extraction did, or would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from featcache.images.groups import Groups
from featcache.spec import Failure


@dataclass(frozen=True)
class TapReport:
    """One tap that was extracted."""

    tap: str
    width: int  # numbers per image
    precision: str
    engine: str


@dataclass(frozen=True)
class Extracted:
    """What an extraction did."""

    cache: str
    images: int
    hits: int  # images with all their rows in the cache before
    computed: int  # images that went through a backbone, counted once for each backbone
    copies: int  # images that are copies of a computed one
    failed: tuple[Failure, ...]
    taps: tuple[TapReport, ...]
    seconds: float
    others: Mapping[str, int]  # {suffix: number of files} that are not images
    stray: tuple[str, ...]  # images beside the class folders: no label, left out
    groups: Groups
    remarks: tuple[str, ...]  # on unexpected groups, tables and splits
    notes: tuple[str, ...] = ()  # on kinds of images whose pixels may not look as intended

    @property
    def images_per_s(self) -> float:
        """Images computed per second, from the start to the merged cache."""
        return self.computed / self.seconds


@dataclass(frozen=True)
class Estimate:
    """What an extraction would do."""

    cache: str
    images: int
    hits: int
    missing: int  # images to compute, counted once for each backbone
    bytes: int  # added to the cache
    free_bytes: int  # on the disk of the cache
    seconds: float  # of computing, estimated from two batches of the missing images
    taps: tuple[str, ...]
    notes: tuple[str, ...] = ()  # as in Extracted, on the images that were timed
