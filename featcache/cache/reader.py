"""Read a cache: which taps it holds, and their features as arrays."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from featcache.arrays import Classes, Features
from featcache.cache import layout
from featcache.cache.rows import Digests, TapRows, by_tap, described, pieces_in
from featcache.errors import NotACache, UnknownTap
from featcache.files import again
from featcache.spec import IDENTITY, SPLITS, Failure, ImageRow, SplitSpec, Tap, choose, count_by, did_you_mean


@dataclass(frozen=True)
class Cache:
    """An open description of one CACHE.h5; features are read when asked for.

    `rows` are the images of the last extraction, with their labels and splits; `failures` those without features.
    """

    path: Path
    root: Path
    rows: tuple[ImageRow, ...]
    failures: tuple[Failure, ...]
    taps: Mapping[str, Tap]
    split_spec: SplitSpec
    decode: str  # version of the decoder that found the failures
    layout: str = "classes"  # of the images: classes, splits, flat ...
    joined: Mapping[str, str] = field(
        default_factory=dict
    )  # {path: the group it had} of those in groups of `leaks --fix`
    listing: Mapping[str, Any] | None = None  # see `Images.listing`; None: an earlier version did not record it
    report: Any = None  # what the extraction that returned this cache did

    def __repr__(self) -> str:
        return f"Cache({self.path}, {len(self.rows)} images, taps {', '.join(self.taps)})"

    @classmethod
    def open(cls, path: str | Path) -> Cache:
        """Open a cache. Raises NotACache or CacheVersion."""
        return again(lambda: cls._opened(Path(path)))

    @classmethod
    def _opened(cls, path: Path) -> Cache:
        with layout.reading(path) as file:
            if "images" not in file:
                raise NotACache(f"{path} has no images: it is a part, or damaged. Run featcache extract again")
            group = layout.own_group(file, "images", path)
            columns = [_texts(layout.plain(group, name, "S", (1,), path)) for name in layout.IMAGE_COLUMNS]
            joined = _joined(group, columns[0], path)
            if layout.images_digest(group) != layout.text_of(group, "content_digest"):
                raise layout.damaged(path, "its images are not those that were written")
            rows, failures = _images(columns)
            layout.check_complete(file, path)
            taps = [described(group, path) for group in layout.tap_groups(file, path)]
            spec = SplitSpec(**json.loads(layout.text_of(group, "split_spec")))
            decode = layout.text_of(group, "decode")
            root = Path(layout.text_of(group, "root"))
            arranged = layout.text_of(group, "layout")
            listed_by = layout.text_of(group, layout.LISTING)
            listing = dict(json.loads(listed_by)) if listed_by else None
        if path.is_dir():
            taps = [rows_of.tap for rows_of in _stored_rows(path).values()]
        return cls(path, root, rows, failures, {tap.name: tap for tap in taps}, spec, decode, arranged, joined, listing)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the class index."""
        return tuple(sorted({row.label for row in self.rows if row.label}))

    @property
    def images_from(self) -> Path:
        """The folder, archive or table that `extract` took the images from."""
        table = (self.listing or {}).get("table")
        return self.root / table if table else self.root

    @property
    def splits(self) -> Mapping[str, int]:
        """Number of images with features per split."""
        return count_by([row.split for row in self.usable() if row.split])

    @cached_property
    def vectors(self) -> tuple[str, ...]:
        """Names of the taps that hold one vector for each image as it is: no views, no spatial maps.

        A tap of which images have no row, since an extraction was given up, is not among them.
        """
        named = [name for name, tap in self.taps.items() if tap.view == IDENTITY and tap.pooling != "none"]
        digests, stored = [row.digest for row in self.usable()], stored_rows(self.path)
        return tuple(name for name in named if not stored[self.taps[name].fingerprint].lack(digests))

    def usable(self, split: str | None = None, shots: int | None = None) -> list[ImageRow]:
        """Return the images that have features, of one split, and at most `shots` of each class.

        Which ones `shots` keeps is decided by digest: the same few whenever it is asked, more when more are asked.
        Raises UsageError if there can be no such split.
        """
        if split is not None:
            choose("split", split, SPLITS)
        failed = {failure.path for failure in self.failures}
        rows = list(self.rows) if split is None else [row for row in self.rows if row.split == split]
        if failed:
            rows = [row for row in rows if row.path not in failed]
        if shots is None:
            return rows
        kept = {row.path for row in _few(rows, shots)}
        return [row for row in rows if row.path in kept]

    def tap(self, name: str | None = None) -> Tap:
        """Return a tap by its name, or by the layer at its end where only one ends so, or the only one.

        Raises UnknownTap naming those there are.
        """
        plain = [tap for tap in self.taps.values() if tap.view == IDENTITY]
        if name is None and len(plain) == 1:
            return plain[0]
        ends = [tap for tap in self.taps.values() if name and tap.name.endswith(f"/{name}")]
        if name is not None and name in self.taps:
            return self.taps[name]
        if len(ends) == 1:
            return ends[0]
        wanted = f"no tap '{name}'{did_you_mean(name, self.taps)}" if name and not ends else "several taps"
        raise UnknownTap(f"{self.path} has {wanted}; choose one of: {', '.join(self.taps)}")

    def features(self, rows: Sequence[ImageRow], tap: str | None = None) -> Features:
        """Return the (N, D) float32 features of these images, in their order; (N, h, w, C) of a tap without pooling.

        Raises UnknownTap if the tap has no row for one of them, NotACache if its rows are not those that were written.
        """
        return self._read(rows, [row.digest for row in rows], self.tap(tap))

    def _read(self, rows: Sequence[ImageRow], digests: Digests, wanted: Tap) -> Features:
        return again(lambda: self._features(rows, digests, wanted))

    def _features(self, rows: Sequence[ImageRow], digests: Digests, wanted: Tap) -> Features:
        stored = _stored_rows(self.path, wanted.fingerprint).get(wanted.fingerprint)
        try:
            if stored is not None:
                return stored.features(digests)
        except KeyError:
            pass
        missing = [row.path for row in rows if stored is None or row.digest not in stored.at]
        such = f", such as {missing[0]}" if missing else ""
        raise UnknownTap(
            f"{self.path}: tap '{wanted.name}' has no features of {len(missing)} of {len(rows)} images{such}. "
            "Bring it up to date: featcache extract"
        )

    def views(self, tap: str | None = None) -> list[str]:
        """Return the names of a tap and of its views: 'mobilenet_v2/top', 'mobilenet_v2/top@hflip' ..."""
        wanted = self.tap(tap)
        return [
            tap.name for tap in self.taps.values() if replace(tap, view=wanted.view).fingerprint == wanted.fingerprint
        ]

    def check(self, tap: str) -> None:
        """Raise NotACache if the rows of a tap are not those that were written; whatever reads features does the same.

        Reads all of them, once in a process while the file stays as it is.
        """
        fingerprint = self.tap(tap).fingerprint
        again(lambda: _stored_rows(self.path, fingerprint)[fingerprint].check())

    def labels(self, rows: Sequence[ImageRow]) -> Classes:
        """Return the (N,) class indices of these images."""
        index = {name: number for number, name in enumerate(self.classes)}
        return np.array([index[row.label] for row in rows], dtype=np.int64)

    @cached_property
    def _labelled(self) -> tuple[list[ImageRow], Any, Classes]:
        """The labelled images, their digests (N,) as a column holds them, and their class indices (N,)."""
        rows = [row for row in self.usable() if row.label]
        return rows, np.array([row.digest for row in rows], f"S{layout.DIGEST_WIDTH}"), self.labels(rows)

    def arrays(
        self, split: str | None = None, tap: str | None = None, *, views: bool = False
    ) -> tuple[Features, Classes]:
        """Return (X, y) of the labelled images of one split: (N, D) float32 and (N,) int64.

        views: with the rows of every view of the tap below one another, so V * N of them.
        """
        rows, digests, y = self._labelled
        if split is not None:
            wanted = choose("split", split, SPLITS)
            chosen = np.flatnonzero([row.split == wanted for row in rows])
            rows, digests, y = [rows[at] for at in chosen.tolist()], digests[chosen], y[chosen]
        names = self.views(tap) if views else [self.tap(tap).name]
        if len(names) == 1:
            return self._read(rows, digests, self.tap(names[0])), y.copy()
        return np.concatenate([self._read(rows, digests, self.tap(name)) for name in names]), np.tile(y, len(names))


def stored_rows(path: Path, fingerprint: str | None = None) -> dict[str, TapRows]:
    """Return {fingerprint: rows} of a finished cache, of all taps or one: of its one file, or its folder of parts.

    Reading their features raises Overtaken if the file is replaced meanwhile: see `files.again`.
    """
    return again(lambda: _stored_rows(path, fingerprint))


def _stored_rows(path: Path, fingerprint: str | None = None) -> dict[str, TapRows]:
    sources = layout.part_files(path) if path.is_dir() else [path]
    return by_tap(piece for source in sources for piece in pieces_in(source, fingerprint))


def _few(rows: list[ImageRow], shots: int) -> list[ImageRow]:
    by_class: dict[str, list[ImageRow]] = {}
    for row in sorted(rows, key=lambda row: row.digest):
        by_class.setdefault(row.label, []).append(row)
    return [row for of_class in by_class.values() for row in of_class[:shots]]


def _texts(dataset: Any) -> list[str]:
    values = dataset[()].tolist()
    known = {value: os.fsdecode(value) for value in set(values)}  # one text for all images of a class
    return [known[value] for value in values]


def _joined(group: Any, paths: list[str], path: Path) -> dict[str, str]:
    if layout.GIVEN_GROUP not in group:
        return {}
    given = _texts(layout.plain(group, layout.GIVEN_GROUP, "S", (1,), path))
    return {path: text[1:] for path, text in zip(paths, given, strict=True) if text}


def _images(columns: list[list[str]]) -> tuple[tuple[ImageRow, ...], tuple[Failure, ...]]:
    rows, failures = [], []
    for path, label, group, split, digest, status, reason in zip(*columns, strict=True):
        rows.append(ImageRow(path, label, group, split, digest))
        if status != "ok":
            failures.append(Failure(path, digest, status, reason))
    return tuple(rows), tuple(failures)
