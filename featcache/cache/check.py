"""Is a cache what was written, and does it have the features of this file?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from featcache.cache import layout
from featcache.cache.changes import Review
from featcache.cache.reader import Cache, stored_rows
from featcache.cache.rows import compared_rows, is_part, opened
from featcache.errors import DataError, NotACache
from featcache.files import again, file_digest


@dataclass(frozen=True)
class Verified:
    """What `verify` found: an empty tuple of problems means that every byte is what was written."""

    files: int
    rows: int  # of all taps together
    problems: tuple[str, ...]


def verify(path: str | Path) -> Verified:
    """Read all of a cache, and of the parts beside it, and compare it with the digests it was written with.

    Raises NotACache where there is none, or CacheVersion.
    """
    return again(lambda: _verify(Path(path)))


def _verify(cache: Path) -> Verified:
    table = layout.table_of(cache)
    if not table.exists():
        Cache.open(cache)  # says what is missing
    rows, problems = 0, list[str]()
    files = [table, *layout.part_files(cache)]
    for file in files:
        try:
            rows += _verified(file)
        except NotACache as error:
            problems.append(str(error))
    if cache.is_dir() and not problems:
        problems += lost_rows(cache)
    return Verified(len(files), rows, tuple(problems))


def lost_rows(cache: Path) -> list[str]:
    """Return which taps of a folder of parts have fewer rows than when it was finished: a part is gone."""
    counts = layout.counted_rows(cache)
    stored = stored_rows(cache)
    there = {fingerprint: len(stored[fingerprint].at) if fingerprint in stored else 0 for fingerprint in counts}
    return [
        f"{cache} has lost {counts[one] - there[one]} of {counts[one]} rows of tap "
        f"'{stored[one].tap.name if one in stored else one[:12]}': a part is gone. Run featcache extract again"
        for one in counts
        if there[one] < counts[one]
    ]


def _verified(file: Path) -> int:
    """Return the number of rows; raise NotACache if one of them, or anything beside them, is not what was written."""
    with layout.reading_all_of_part(file) if is_part(file) else opened(file) as found:
        layout.check_complete(found, file)
        rows = compared_rows(found, file)
    if not is_part(file):
        Cache.open(file)
    return rows


@dataclass(frozen=True)
class TapAnswer:
    """Whether one tap has the features of a file, and why."""

    tap: str
    hit: bool
    reason: str


@dataclass(frozen=True)
class Why:
    """What a cache knows of one file."""

    digest: str
    same: tuple[str, ...]  # images of the cache with the same bytes
    taps: tuple[TapAnswer, ...]
    reviews: tuple[Review, ...] = ()  # what was decided about labels of images with the same bytes


def why(cache: Cache, file: str | Path, read: Callable[[str], bytes] | None = None) -> Why:
    """Return for every tap whether an extraction would compute this file, and why. Raises DataError.

    file: a path, or the path of an image as the cache has it. read: gives the bytes of such a one where the images
    are no files, as in an archive.
    """
    path, digest = _digest(cache, Path(file), read)
    same = tuple(row.path for row in cache.rows if row.digest == digest)
    failed = next((one for one in cache.failures if one.digest == digest), None)
    answers = []
    for rows in stored_rows(cache.path).values():
        if digest in rows.at:
            answers.append(TapAnswer(rows.tap.name, True, "its bytes are those that a row was computed from"))
        elif failed is not None:
            answers.append(TapAnswer(rows.tap.name, False, f"it was skipped: {failed.status}, {failed.reason}"))
        else:
            answers.append(TapAnswer(rows.tap.name, False, _missing(cache, path, bool(same))))
    reviews = tuple(review for review in cache.changes.reviews if review.digest == digest)
    return Why(digest, same, tuple(answers), reviews)


def _missing(cache: Cache, path: Path, known: bool) -> str:
    if known:
        return "this tap was last brought up to date before the image came"
    before = [row for row in cache.rows if (cache.root / row.path).absolute() == path.absolute()]
    if before:
        return f"it has other bytes than when it was extracted: edited since (then {before[0].digest[:12]})"
    return "no image with its bytes was extracted"


def _digest(cache: Cache, file: Path, read: Callable[[str], bytes] | None) -> tuple[Path, str]:
    """Return where the image lies and the digest of its bytes."""
    for path in (file, cache.root / file):
        if path.is_file():
            try:
                return path, file_digest(path)
            except OSError as error:
                raise DataError(f"Cannot read {path}: {error.strerror}") from error
    if read is not None and str(file) in {row.path for row in cache.rows}:
        return cache.root / file, hashlib.sha256(read(str(file))).hexdigest()
    raise DataError(f"There is no file {file}, neither here nor in {cache.root}")
