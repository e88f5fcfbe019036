"""What people changed in the table of images: groups and splits by `leaks --fix`, labels by a review.

The table holds what is true now, so that every reader finds it there. Beside it stands what an image was before, so
that the change can be undone, and so that a later extraction, which reads folders or a table, can make it again. A
review comes after a fix: take it back first.

A review is known by the bytes of the image and by the label that its folder or table gives. So it outlives moves and
renames, and ends where the user gives the image another label there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from featcache.spec import ImageRow, canonical_json

NOTHING: Mapping[str, str] = MappingProxyType({})


class Review(NamedTuple):
    """What somebody decided about the label of an image."""

    digest: str  # of the image
    label: str  # that its folder or table gives
    new_label: str  # that it has instead; the same if it was kept, "" if the image was dropped
    path: str  # where the image was then
    split: str  # that the image was in then
    at: str  # UTC

    @property
    def outcome(self) -> str:
        """Return kept, changed or dropped."""
        if self.new_label == self.label:
            return "kept"
        return "changed" if self.new_label else "dropped"

    def to_json(self) -> str:
        """Return the text that `from_json` reads."""
        return canonical_json(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> Review:
        """Return the review that `to_json` wrote."""
        return cls(**json.loads(text))


class Changes(NamedTuple):
    """What was changed in a table of images, as {path: what it had before}, and all reviews."""

    joined: Mapping[str, str] = NOTHING  # the group, of images in groups of `leaks --fix`
    moved: Mapping[str, str] = NOTHING  # the split, of the same images
    relabelled: Mapping[str, str] = NOTHING  # the label, of images whose label a review changed or took away
    dropped: Mapping[str, str] = NOTHING  # the split, of images that a review dropped
    reviews: tuple[Review, ...] = ()  # also of images that are not in the table now


UNCHANGED = Changes()


def without_review(rows: Iterable[ImageRow], changes: Changes) -> tuple[ImageRow, ...]:
    """Return the rows with the labels and splits that they had before the review."""
    return tuple(
        row._replace(
            label=changes.relabelled.get(row.path, row.label),
            split=changes.dropped.get(row.path, row.split),
        )
        for row in rows
    )


def with_review(
    rows: Iterable[ImageRow], changes: Changes, reviews: Sequence[Review]
) -> tuple[tuple[ImageRow, ...], Changes]:
    """Return rows without a review as these reviews leave them, and the changes with what they were.

    An image that was dropped loses label and split: it neither trains nor judges, and its features stay.
    """
    review_of = {(review.digest, review.label): review for review in reviews}
    relabelled: dict[str, str] = {}
    dropped: dict[str, str] = {}
    reviewed: list[ImageRow] = []
    for row in rows:
        review = review_of.get((row.digest, row.label))
        if review is None or review.outcome == "kept":
            reviewed.append(row)
            continue
        split = row.split
        relabelled[row.path] = row.label
        if review.outcome == "dropped":
            dropped[row.path] = row.split
            split = ""
        reviewed.append(row._replace(label=review.new_label, split=split))

    return tuple(reviewed), changes._replace(relabelled=relabelled, dropped=dropped, reviews=tuple(reviews))


def later(earlier: Iterable[Review], new: Iterable[Review]) -> tuple[Review, ...]:
    """Return all reviews, one for each image and label: the new one, unless it decides what was decided before."""
    review_of = {(review.digest, review.label): review for review in earlier}
    for review in new:
        key = (review.digest, review.label)
        known = review_of.get(key)
        if known is None or known.new_label != review.new_label:
            review_of[key] = review
    return tuple(review_of[key] for key in sorted(review_of))
