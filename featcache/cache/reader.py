"""Read a cache: its images, its taps, and their features as arrays."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.arrays import Classes, Features
from featcache.cache import layout
from featcache.cache.changes import UNCHANGED, Changes, Review
from featcache.cache.rows import Digests, Piece, TapRows, by_tap, described, pieces_in, tap_table
from featcache.errors import NotACache, UnknownTap
from featcache.files import again
from featcache.notebook import html, import_pandas, never_raising
from featcache.spec import IDENTITY, SPLITS, Failure, ImageRow, SplitSpec, Tap, choose, count_by, did_you_mean
from featcache.text import counted, counts_text

if TYPE_CHECKING:
    from featcache.extras.similar import Similar


@dataclass(frozen=True)
class Cache:
    """The description of one CACHE.h5. Features stay on the disk until a method reads them.

    `rows` are the images of the last extraction with their labels and splits; `failures` are images without features.
    """

    path: Path
    root: Path
    rows: tuple[ImageRow, ...]
    failures: tuple[Failure, ...]
    taps: Mapping[str, Tap]
    split_spec: SplitSpec
    decode: str  # version of the decoder that found the failures
    layout: str = "classes"  # of the images: classes, splits, flat ...
    changes: Changes = UNCHANGED  # what `leaks --fix` and reviews of labels changed
    listing: Mapping[str, Any] | None = None  # see `Images.listing`; None: an earlier version did not record it
    report: Any = None  # what the extraction that returned this cache did

    def __repr__(self) -> str:
        return f"Cache({self.path}, {counted(len(self.rows), 'image')}, taps {', '.join(self.taps)})"

    @never_raising
    def _repr_html_(self) -> str:
        taps = tap_table(stored_rows(self.path).values())
        return html(f"Cache {self.path}", taps, lines=[self.summary])

    @property
    def summary(self) -> str:
        """Return a line on its images: how many, from where, and in which splits."""
        if not self.rows:
            return "No table of images yet, only features: fc.FeatureExtractor made them. Next: featcache extract"
        images = f"{counted(len(self.rows), 'image')} of {self.root}"
        splits = counts_text(self.splits) or "no labels"
        return f"{images}, {len(self.failures)} without features; {splits}"

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
            columns = [_column(group, name, path) for name in layout.IMAGE_COLUMNS]
            changes = _changes(group, columns[0], path)
            if layout.images_digest(group) != layout.text_of(group, "content_digest"):
                raise layout.damaged(path, "its images are not those that were written")
            rows, failures = _images(columns)
            # This compares the digests of the groups with the file's; rows are compared when somebody reads them.
            layout.check_complete(file, path)
            taps = [described(group, path) for group in layout.tap_groups(file, path)]
            spec = SplitSpec(**json.loads(layout.text_of(group, "split_spec")))
            decode = layout.text_of(group, "decode")
            root = Path(layout.text_of(group, "root"))
            arranged = layout.text_of(group, "layout")
            listing_json = layout.text_of(group, layout.LISTING)
            listing = dict(json.loads(listing_json)) if listing_json else None
        if path.is_dir():
            # The file with the images has no taps then: they are in the parts.
            taps = [tap_rows.tap for tap_rows in _stored_rows(path).values()]
        by_name = {tap.name: tap for tap in taps}
        return cls(path, root, rows, failures, by_name, spec, decode, arranged, changes, listing)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the class index."""
        return tuple(sorted({row.label for row in self.rows if row.label}))

    @property
    def joined(self) -> Mapping[str, str]:
        """The group that an image had before, {path: group}, of those in groups of `leaks --fix`."""
        return self.changes.joined

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
        """Names of the taps with one vector for every usable image: no views, no spatial maps.

        Taps that lack the row of an image are left out: see `incomplete`.
        """
        return tuple(name for name, lacking in self._lacking.items() if not lacking)

    @property
    def incomplete(self) -> tuple[str, ...]:
        """A sentence for each tap that `vectors` leaves out because it lacks rows.

        Such a tap remains if an extraction was given up, if new images were extracted only for another backbone, or if
        `rank` dropped its backbone.
        """
        return tuple(
            f"Tap '{name}' lacks features of {lacking} of {len(self.usable())} images, so it is left out. "
            "Bring it up to date: featcache extract with its backbone"
            for name, lacking in self._lacking.items()
            if lacking
        )

    @cached_property
    def _lacking(self) -> dict[str, int]:
        """{name: number of usable images without a row} of every tap of vectors."""
        digests = [row.digest for row in self.usable()]
        stored = stored_rows(self.path)
        lacking: dict[str, int] = {}
        for name, tap in self.taps.items():
            if tap.view == IDENTITY and tap.pooling != "none":
                lacking[name] = stored[tap.fingerprint].lack(digests)
        return lacking

    def usable(self, split: str | None = None, shots: int | None = None) -> list[ImageRow]:
        """Return the images that have features: all or of one split, and at most `shots` of each class.

        Digests decide which images `shots` keeps: the same images every time, and more `shots` only add images.
        Raises UsageError if no split has this name.
        """
        if split is not None:
            choose("split", split, SPLITS)
        rows = list(self.rows)
        if split is not None:
            rows = [row for row in rows if row.split == split]
        failed = {failure.path for failure in self.failures}
        # Most caches have no failures, and then need no search for each image.
        if failed:
            rows = [row for row in rows if row.path not in failed]
        if shots is None:
            return rows
        kept = {row.path for row in _few(rows, shots)}
        return [row for row in rows if row.path in kept]

    def tap(self, name: str | None = None) -> Tap:
        """Return a tap by its name, or by the layer at its end if only one tap ends so; without a name, the only tap.

        Raises UnknownTap with the names of all taps.
        """
        if name is None:
            matches = [tap for tap in self.taps.values() if tap.view == IDENTITY]
            problem = "several taps"
        elif name in self.taps:
            return self.taps[name]
        else:
            matches = [tap for tap in self.taps.values() if tap.name.endswith(f"/{name}")]
            problem = "several taps" if matches else f"no tap '{name}'{did_you_mean(name, self.taps)}"
        if len(matches) == 1:
            return matches[0]
        raise UnknownTap(f"{self.path} has {problem}; choose one of: {', '.join(self.taps)}")

    def features(self, rows: Sequence[ImageRow], tap: str | None = None) -> Features:
        """Return the (N, D) float32 features of these images, in their order; (N, h, w, C) for a tap without pooling.

        Raises UnknownTap if the tap lacks the row of an image, NotACache if its rows do not match their digest.
        """
        return self._read(rows, [row.digest for row in rows], self.tap(tap))

    def _read(self, rows: Sequence[ImageRow], digests: Digests, wanted: Tap) -> Features:
        return again(lambda: self._features(rows, digests, wanted))

    def _features(self, rows: Sequence[ImageRow], digests: Digests, wanted: Tap) -> Features:
        stored = _stored_rows(self.path, wanted.fingerprint).get(wanted.fingerprint)
        if stored is None:
            missing = [row.path for row in rows]
        else:
            try:
                return stored.features(digests)
            except KeyError:
                missing = [row.path for row in rows if row.digest not in stored.at]
        example = f", such as {missing[0]}" if missing else ""
        option = "" if wanted.view == IDENTITY else f", with `views={wanted.view!r}`"
        raise UnknownTap(
            f"{self.path}: tap '{wanted.name}' has no features of {len(missing)} of {len(rows)} images{example}. "
            f"Bring it up to date: repeat the featcache extract that made it{option}"
        )

    def require_features(self, rows: Sequence[ImageRow], tap: str | None = None) -> tuple[int, ...]:
        """Return the shape of one row of a tap, (D,) or (h, w, C). Raises UnknownTap if an image has no row."""
        wanted = self.tap(tap)
        stored = stored_rows(self.path, wanted.fingerprint).get(wanted.fingerprint)
        if stored is None or stored.lack([row.digest for row in rows]):
            self.features(rows, wanted.name)  # says which
        assert stored is not None
        return stored.shape

    def views(self, tap: str | None = None) -> list[str]:
        """Return the names of a tap and of its views: 'mobilenet_v2/top', 'mobilenet_v2/top@hflip' ..."""
        wanted = self.tap(tap)
        names: list[str] = []
        for other in self.taps.values():
            differs_only_in_view = replace(other, view=wanted.view).fingerprint == wanted.fingerprint
            if differs_only_in_view:
                names.append(other.name)
        return names

    def similar(self, query: str | Path, *, tap: str | None = None, top: int = 20) -> Similar:
        """Return the images that are nearest to a photo, or to an image of this cache by its path: see `fc.similar`."""
        # The one import of a later room: users call this method on a cache, and what it needs loads only then.
        from featcache.extras.similar import similar

        return similar(self, query, tap=tap, top=top)

    def check(self, tap: str) -> None:
        """Raise NotACache if the rows of a tap do not match their digest, as every method that reads features does.

        Reads all rows, once in a process while the file does not change.
        """
        fingerprint = self.tap(tap).fingerprint
        again(lambda: _stored_rows(self.path, fingerprint)[fingerprint].check())

    def labels(self, rows: Sequence[ImageRow]) -> Classes:
        """Return the (N,) class indices of these images."""
        index = {name: number for number, name in enumerate(self.classes)}
        return np.array([index[row.label] for row in rows], dtype=np.int64)

    @cached_property
    def _labelled(self) -> tuple[list[ImageRow], Any, Classes]:
        """The labelled images, their digests (N,) in the dtype of a stored column, and their class indices (N,)."""
        rows = [row for row in self.usable() if row.label]
        digests = np.array([row.digest for row in rows], f"S{layout.DIGEST_WIDTH}")
        return rows, digests, self.labels(rows)

    def arrays(
        self, split: str | None = None, tap: str | None = None, *, views: bool = False
    ) -> tuple[Features, Classes]:
        """Return (X, y) of the labelled images, all or of one split: (N, D) float32 and (N,) int64.

        views: return the rows of all V views of the tap, one view after another: (V * N, D) and (V * N,).
        """
        rows, digests, y = self._labelled
        if split is not None:
            choose("split", split, SPLITS)
            in_split = np.array([row.split == split for row in rows], bool)
            rows = [row for row in rows if row.split == split]
            digests = digests[in_split]
            y = y[in_split]
        names = self.views(tap) if views else [self.tap(tap).name]
        arrays = [self._read(rows, digests, self.tap(name)) for name in names]
        if len(arrays) == 1:
            # A copy: the caller may change y, and `_labelled` must keep its own.
            return arrays[0], y.copy()
        return np.concatenate(arrays), np.tile(y, len(arrays))

    def dataset(
        self,
        split: str | None = None,
        tap: str | None = None,
        *,
        kind: str = "tf",
        batch_size: int | None = None,
        shuffle: bool | None = None,
        seed: int = 0,
    ) -> Any:
        """Return the labelled images, all or of one split, as a dataset that reads features while it is used.

        kind: "tf" gives a tf.data.Dataset of batches (B, D) float32 and (B,) int64; "torch" a map-style dataset of
        PyTorch for a DataLoader. Either has `class_names`.
        batch_size, shuffle, seed: of "tf"; 32 images by default, and only train in another order every epoch, because
        images lie class by class. Give a DataLoader its own.
        Raises UsageError, UnknownTap, and EnvironmentFault without the library.
        """
        # The one import of a later room: users call this method on a cache, and TensorFlow loads only if they do.
        from featcache.extras.datasets import make_dataset

        return make_dataset(self, split, tap, kind=kind, batch_size=batch_size, shuffle=shuffle, seed=seed)

    def to_frame(self, split: str | None = None, tap: str | None = None) -> Any:
        """Return the images as a pandas.DataFrame, a row each, all or of one split.

        Columns: path, label, group, split, digest, and status, which is "ok" for images with features.
        tap: only images with features, and a column "TAP_0", "TAP_1" ... for each feature, with the name of the tap.
        Raises UsageError, UnknownTap, and EnvironmentFault without pandas.
        """
        pandas = import_pandas()
        usable = self.usable(split)
        rows = usable if tap is not None else [row for row in self.rows if split in (None, row.split)]
        status_of = {failure.path: failure.status for failure in self.failures}
        frame = pandas.DataFrame(rows, columns=ImageRow._fields)
        frame["status"] = [status_of.get(row.path, "ok") for row in rows]
        if tap is None:
            return frame
        features = self.features(rows, tap).reshape(len(rows), -1)
        columns = [f"{self.tap(tap).name}_{number}" for number in range(features.shape[1])]
        return pandas.concat([frame, pandas.DataFrame(features, columns=columns)], axis=1)


def stored_rows(path: Path, fingerprint: str | None = None) -> dict[str, TapRows]:
    """Return {fingerprint: rows} of a finished cache, a file or a folder of parts, for all taps or only one.

    Reading their features raises Overtaken if another process replaces the file meanwhile: see `files.again`.
    """
    return again(lambda: _stored_rows(path, fingerprint))


def _stored_rows(path: Path, fingerprint: str | None = None) -> dict[str, TapRows]:
    sources = layout.part_files(path) if path.is_dir() else [path]
    pieces: list[Piece] = []
    for source in sources:
        pieces += pieces_in(source, fingerprint)
    return by_tap(pieces)


def _few(rows: list[ImageRow], shots: int) -> list[ImageRow]:
    """Return the first `shots` images of each class, in the order of their digests."""
    few: list[ImageRow] = []
    counts = Counter[str]()
    for row in sorted(rows, key=lambda row: row.digest):
        if counts[row.label] < shots:
            few.append(row)
        counts[row.label] += 1
    return few


def _column(group: Any, name: str, source: Path) -> list[str]:
    """Return a column as texts, one for each image.

    Equal values share one text, which saves memory: a label is stored for every image.
    """
    values = layout.plain(group, name, "S", (1,), source)[()].tolist()
    texts = {value: os.fsdecode(value) for value in set(values)}
    return [texts[value] for value in values]


def _changes(group: Any, paths: list[str], source: Path) -> Changes:
    before: dict[str, dict[str, str]] = {}
    for name, field_name in layout.COLUMNS_OF_CHANGES.items():
        before[field_name] = {}
        if name not in group:
            continue
        for path, text in zip(paths, _column(group, name, source), strict=True):
            if text:
                before[field_name][path] = text[1:]  # after the "=" that marks a changed image

    reviews: list[Review] = []
    if layout.REVIEWS in group:
        reviews = [Review.from_json(text) for text in _column(group, layout.REVIEWS, source)]
    return Changes(**before, reviews=tuple(reviews))


def _images(columns: list[list[str]]) -> tuple[tuple[ImageRow, ...], tuple[Failure, ...]]:
    rows: list[ImageRow] = []
    failures: list[Failure] = []
    for path, label, group, split, digest, status, reason in zip(*columns, strict=True):
        rows.append(ImageRow(path, label, group, split, digest))
        if status != "ok":
            failures.append(Failure(path, digest, status, reason))
    return tuple(rows), tuple(failures)
