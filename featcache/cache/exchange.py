"""Exchange features: merge the caches of several machines into one, and export a cache to a NumPy or Parquet file."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from featcache.cache.changes import Changes, Review, later, with_review, without_review
from featcache.cache.layout import LISTING, looks_beside, state
from featcache.cache.parts import write_cache
from featcache.cache.reader import Cache, stored_rows
from featcache.cache.rows import Piece, by_tap
from featcache.errors import DataError, EnvironmentFault, UsageError
from featcache.files import again, disk_faults, matching, write_whole, writing
from featcache.outputs import Kind, check_output
from featcache.spec import Failure, ImageRow, canonical_json, unit_of

FORMATS = (".npz", ".parquet")


def merge_caches(sources: Sequence[str | Path], out: str | Path, *, force: bool = False) -> Cache:
    """Write one cache with the images and rows of all these caches, and return it.

    Each image appears once. The root is the root of the first cache with images. A look at the test images of any
    source counts as a look at the test images of the merged cache. force: replace any file at `out`; otherwise only a
    cache is replaced, and only if the sources hold everything in it. Raises DataError if two caches are arranged or
    split by different rules or disagree about an image, NotACache if a cache is damaged, UsageError if another file is
    at `out`.
    """
    out = Path(out)
    paths = [Path(source) for source in sources]
    if not sources:
        raise UsageError("There are no caches to merge; name one or more")
    kind = Kind("cache whose images and features are all in these", _part_of(paths))
    check_output(out, kind, inputs=paths, force=force)
    again(lambda: _merge(paths, out))
    return Cache.open(out)


def _part_of(sources: Sequence[Path]) -> Callable[[Path], bool]:
    """Return a function: whether these sources hold everything in a cache, as they do for their earlier merge."""

    def is_ours(path: Path) -> bool:
        images: set[ImageRow] = set()
        joined: set[tuple[str, str]] = set()
        reviews: set[Review] = set()
        for source in sources:
            cache = Cache.open(source)
            images.update(without_review(cache.rows, cache.changes))
            joined.update(cache.joined.items())
            reviews.update(cache.changes.reviews)

        earlier = Cache.open(path)
        return (
            images.issuperset(without_review(earlier.rows, earlier.changes))
            and joined.issuperset(earlier.joined.items())
            and reviews.issuperset(earlier.changes.reviews)
            and _row_keys(sources).issuperset(_row_keys([path]))
        )

    return is_ours


def _row_keys(caches: Sequence[Path]) -> set[tuple[str, str]]:
    """Return (fingerprint, digest) of every row of these caches."""
    keys: set[tuple[str, str]] = set()
    for cache in caches:
        for fingerprint, rows in stored_rows(cache).items():
            keys.update((fingerprint, digest) for digest in rows.at)
    return keys


def _merge(sources: Sequence[Path], out: Path) -> None:
    caches = [Cache.open(source) for source in sources]
    # A cache that only `fc.FeatureExtractor` filled has no images, so no rule for them either.
    with_images = [cache for cache in caches if cache.rows] or caches
    first = with_images[0]
    for other in with_images[1:]:
        if (other.split_spec, other.layout) != (first.split_spec, first.layout):
            raise DataError(
                f"{other.path} is split or arranged by another rule than {first.path}. Extract one of them again"
            )
    pieces: list[Piece] = []
    joined: dict[str, str] = {}
    moved: dict[str, str] = {}
    for cache in caches:
        for rows in stored_rows(cache.path).values():
            pieces += rows.pieces
        joined.update(cache.changes.joined)
        moved.update(cache.changes.moved)

    same_decoder = all(cache.decode == first.decode for cache in with_images)
    facts: dict[str, str | bytes] = {
        "root": os.fsencode(first.root),
        "layout": first.layout,
        "split_spec": canonical_json(asdict(first.split_spec)),
        "decode": first.decode if same_decoder else "",  # "": the next extraction tries all failures again
    }
    same_listing = all((cache.root, cache.listing) == (first.root, first.listing) for cache in with_images)
    if not same_listing:
        facts[LISTING] = canonical_json({"merged": [str(source.resolve()) for source in sources]})
    elif first.listing is not None:
        facts[LISTING] = canonical_json(first.listing)

    # Compare the images as they were before any review, then review all of them again: so an image that was
    # reviewed in one cache only does not contradict itself.
    united = _united(caches)
    failures = _failures(caches)
    images, changes = with_review(united, Changes(joined, moved), _reviews(caches))
    # Copy the records of looks at the test images before the cache appears, so that a kill in between loses none.
    for source in sources:
        for record in matching(looks_beside(source), "*.json"):
            write_whole(looks_beside(out) / record.name, record.read_bytes())
    write_cache(out, state(out), by_tap(pieces).values(), images, failures, facts, None, changes)


def _united(caches: Sequence[Cache]) -> list[ImageRow]:
    """Return each image of these caches once, sorted by path. Raises DataError if two caches contradict each other."""
    first_by_path: dict[str, tuple[ImageRow, Path]] = {}
    first_by_unit: dict[str, tuple[ImageRow, Path]] = {}  # unit: what must stay in one split, a content or a group
    for cache in caches:
        for row in without_review(cache.rows, cache.changes):
            known, source = first_by_path.setdefault(row.path, (row, cache.path))
            if known != row:
                change = "another image" if known.digest != row.digest else "labelled, grouped or split otherwise"
                raise DataError(
                    f"{row.path} is {change} in {cache.path} than in {source}. Bring one of them up to date"
                )
            if not row.split:
                continue
            for unit in {row.digest, unit_of(row)}:
                mate, source = first_by_unit.setdefault(unit, (row, cache.path))
                if mate.split != row.split and source != cache.path:
                    raise DataError(
                        f"{row.path} is {row.split} in {cache.path}, and its copy or group mate {mate.path} is "
                        f"{mate.split} in {source}: it would stand in both. Take one of them away, and bring its cache "
                        "up to date"
                    )
    return sorted((row for row, _ in first_by_path.values()), key=lambda row: os.fsencode(row.path))


def _reviews(caches: Sequence[Cache]) -> tuple[Review, ...]:
    """Return what was decided about labels in any of the caches. Raises DataError if two decide otherwise."""
    source_of: dict[tuple[str, str], tuple[Review, Path]] = {}
    for cache in caches:
        for review in cache.changes.reviews:
            known, source = source_of.setdefault((review.digest, review.label), (review, cache.path))
            if known.new_label != review.new_label:
                raise DataError(
                    f"{review.path}, labelled '{review.label}', was {known.outcome} by the review of {source} and "
                    f"{review.outcome} by the review of {cache.path}. Decide alike in both: "
                    "featcache leaks CACHE.h5 --apply FILE.csv"
                )
    return later((), (review for review, _ in source_of.values()))


def _failures(caches: Sequence[Cache]) -> Mapping[str, Failure]:
    """Return the failures of images that no cache could use."""
    usable: set[str] = set()
    for cache in caches:
        usable.update(row.path for row in cache.usable())

    failures: dict[str, Failure] = {}
    for cache in caches:
        for failure in cache.failures:
            if failure.path not in usable:
                failures[failure.path] = failure
    return failures


def export(
    cache: Cache, out: str | Path, tap: str | None = None, split: str | None = None, *, force: bool = False
) -> int:
    """Write features with labels, splits, paths and digests to a .npz or .parquet file; return the number of rows.

    .npz: X (N, D) float32, y (N,) int64 (-1 without a label), classes, path, label, group, split, digest.
    .parquet: the same as columns, `features` as a list of floats. force: replace a file at `out` that is not an earlier
    export. Raises UsageError, UnknownTap, EnvironmentFault.
    """
    out = Path(out)
    # Refuse a path before reading features, which may take minutes.
    if out.suffix not in FORMATS:
        raise UsageError(f"A cache is exported to a file that ends in {' or '.join(FORMATS)}; got {out.name}")
    check_output(out, EXPORTS[out.suffix], inputs=[cache.path], force=force)
    rows = cache.usable(split)
    X = cache.features(rows, tap)
    columns: dict[str, list[str]] = {}
    for name in ImageRow._fields:
        # Texts that any reader can decode: undecodable bytes of file names become \xNN.
        raw = [os.fsencode(getattr(row, name)) for row in rows]
        columns[name] = [text.decode("utf-8", "backslashreplace") for text in raw]

    index = {name: number for number, name in enumerate(cache.classes)}
    y = np.array([index.get(row.label, -1) for row in rows], np.int64)
    if out.suffix == ".npz":
        classes = np.array(cache.classes, dtype=np.str_)
        texts = {name: np.array(values, dtype=np.str_) for name, values in columns.items()}
        with disk_faults(out), writing(out) as sink:
            np.savez(sink, X=X, y=y, classes=classes, **texts)  # type: ignore[arg-type]
    else:
        _write_parquet(out, columns | {"class_index": y}, X)
    return len(rows)


def _write_parquet(out: Path, columns: Mapping[str, Any], X: Any) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise EnvironmentFault("Parquet needs pyarrow: pip install 'featcache[parquet]'; or export to .npz") from error
    features = pyarrow.FixedSizeListArray.from_arrays(X.ravel(), math.prod(X.shape[1:]))
    table = pyarrow.table({**columns, "features": features})
    with disk_faults(out), writing(out) as sink, os.fdopen(os.dup(sink.handle), "wb") as file:
        parquet.write_table(table, file)


def _is_npz(path: Path) -> bool:
    names = {f"{name}.npy" for name in ("X", "y", "classes", *ImageRow._fields)}
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist()) == names


def _is_parquet(path: Path) -> bool:
    from pyarrow import parquet

    return list(parquet.read_schema(path).names) == [*ImageRow._fields, "class_index", "features"]


EXPORTS = {".npz": Kind("export of a cache", _is_npz), ".parquet": Kind("export of a cache", _is_parquet)}
