"""Caches for others: two machines' caches become one, and one becomes a NumPy or a Parquet file."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from featcache.cache.layout import LISTING, looks_beside, state
from featcache.cache.parts import write_cache
from featcache.cache.reader import Cache, stored_rows
from featcache.cache.rows import by_tap
from featcache.errors import DataError, EnvironmentFault, UsageError
from featcache.files import again, disk_faults, matching, write_whole, writing
from featcache.outputs import Kind, check_output
from featcache.spec import Failure, ImageRow, canonical_json, unit_of

FORMATS = (".npz", ".parquet")


def merge_caches(sources: Sequence[str | Path], out: str | Path, *, force: bool = False) -> Cache:
    """Write one cache with the images and rows of all these caches, and return it.

    An image stands in it once; the root is that of the first. Looks at the test images of any count as looks at those
    of the merged one. force: replace what lies at `out` even if it is not a
    cache of which the merged one holds everything. Raises DataError if two caches are arranged or split by other rules
    or disagree about an image, NotACache if one is damaged, UsageError if something else lies at `out`.
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
    """Return what tells whether a cache has nothing that these have not: an earlier merge of them has not."""

    def is_ours(path: Path) -> bool:
        caches = [Cache.open(source) for source in sources]
        earlier = Cache.open(path)
        images = {row for cache in caches for row in cache.rows}
        joined = {item for cache in caches for item in cache.joined.items()}
        return (
            images.issuperset(earlier.rows)
            and joined.issuperset(earlier.joined.items())
            and _features(sources).issuperset(_features([path]))
        )

    return is_ours


def _features(caches: Sequence[Path]) -> set[tuple[str, str]]:
    """Return (fingerprint, digest) of every row of these caches."""
    stored = [rows for cache in caches for rows in stored_rows(cache).values()]
    return {(rows.tap.fingerprint, digest) for rows in stored for digest in rows.at}


def _merge(sources: Sequence[Path], out: Path) -> None:
    caches = [Cache.open(source) for source in sources]
    first = caches[0]
    for other in caches[1:]:
        if (other.split_spec, other.layout) != (first.split_spec, first.layout):
            raise DataError(
                f"{other.path} is split or arranged by another rule than {first.path}. Extract one of them anew"
            )
    pieces = [piece for cache in caches for rows in stored_rows(cache.path).values() for piece in rows.pieces]
    facts: dict[str, str | bytes] = {
        "root": os.fsencode(first.root),
        "layout": first.layout,
        "split_spec": canonical_json(asdict(first.split_spec)),
        "decode": first.decode if all(one.decode == first.decode for one in caches) else "",  # failures: try again
    }
    if any((one.root, one.listing) != (first.root, first.listing) for one in caches):
        facts[LISTING] = canonical_json({"merged": [str(source.resolve()) for source in sources]})
    elif first.listing is not None:
        facts[LISTING] = canonical_json(first.listing)
    images = _united(caches)
    failures = _failures(caches, images)
    joined = {path: given for cache in caches for path, given in cache.joined.items()}
    _copy_looks(sources, out)  # before the cache, so that a kill in between forgets none
    write_cache(out, state(out), by_tap(pieces).values(), images, failures, facts, None, joined)


def _copy_looks(sources: Sequence[Path], out: Path) -> None:
    """Record beside a cache, too, what is recorded beside its sources: that their test images were looked at."""
    for source in sources:
        for record in matching(looks_beside(source), "*.json"):
            write_whole(looks_beside(out) / record.name, record.read_bytes())


def _united(caches: Sequence[Cache]) -> list[ImageRow]:
    found: dict[str, tuple[ImageRow, Path]] = {}
    split_of: dict[str, tuple[str, ImageRow, Path]] = {}
    for cache in caches:
        for row in cache.rows:
            known, source = found.setdefault(row.path, (row, cache.path))
            if known != row:
                what = "another image" if known.digest != row.digest else "labelled, grouped or split otherwise"
                raise DataError(f"{row.path} is {what} in {cache.path} than in {source}. Bring one of them up to date")
            for unit in {row.digest, unit_of(row)} if row.split else ():
                split, copy, source = split_of.setdefault(unit, (row.split, row, cache.path))
                if split != row.split and source != cache.path:
                    raise DataError(
                        f"{row.path} is {row.split} in {cache.path}, and its copy or group mate {copy.path} is {split} "
                        f"in {source}: it would stand in both. Take one of them away, and bring its cache up to date"
                    )
    return sorted((row for row, _ in found.values()), key=lambda row: os.fsencode(row.path))


def _failures(caches: Sequence[Cache], images: Sequence[ImageRow]) -> Mapping[str, Failure]:
    """Return the failures of images that every cache which has them could not use."""
    used = {row.path for cache in caches for row in cache.usable()}
    return {one.path: one for cache in caches for one in cache.failures if one.path not in used}


def export(
    cache: Cache, out: str | Path, tap: str | None = None, split: str | None = None, *, force: bool = False
) -> int:
    """Write features with labels, splits, paths and digests to a .npz or .parquet file; return the number of rows.

    .npz: X (N, D) float32, y (N,) int64 (-1 without a label), classes, path, label, group, split, digest.
    .parquet: the same as columns, `features` a list of floats. force: replace what lies at `out` even if it is no
    earlier export. Raises UsageError, UnknownTap, EnvironmentFault.
    """
    out = Path(out)
    if out.suffix not in FORMATS:
        raise UsageError(f"A cache is exported to a file that ends in {' or '.join(FORMATS)}; got {out.name}")
    check_output(out, EXPORTS[out.suffix], inputs=[cache.path], force=force)
    rows = cache.usable(split)
    X = cache.features(rows, tap)
    columns = {name: [_text(getattr(row, name)) for row in rows] for name in ImageRow._fields}
    index = {name: number for number, name in enumerate(cache.classes)}
    y = np.array([index.get(row.label, -1) for row in rows], np.int64)
    if out.suffix == ".npz":
        texts = {name: np.array(values, dtype=np.str_) for name, values in columns.items()}
        with disk_faults(out), writing(out) as sink:
            np.savez(sink, X=X, y=y, classes=np.array(cache.classes, dtype=np.str_), **texts)  # type: ignore[arg-type]
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
    with zipfile.ZipFile(path) as archive:
        return {*archive.namelist()} == {f"{name}.npy" for name in ("X", "y", "classes", *ImageRow._fields)}


def _is_parquet(path: Path) -> bool:
    from pyarrow import parquet

    return list(parquet.read_schema(path).names) == [*ImageRow._fields, "class_index", "features"]


EXPORTS = {".npz": Kind("export of a cache", _is_npz), ".parquet": Kind("export of a cache", _is_parquet)}


def _text(value: str) -> str:
    """Return a text that any reader can decode: undecodable bytes of names as \\xNN."""
    return os.fsencode(value).decode("utf-8", "backslashreplace")
