"""Answer two questions about a cache: is it undamaged, and does it have the features of this file?"""

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
    """The result of `verify`: without problems, every byte is what was written."""

    files: int
    rows: int  # in all taps together
    problems: tuple[str, ...]


def verify(path: str | Path) -> Verified:
    """Read all of a cache and of its parts, and compare everything with the stored digests.

    Raises NotACache if there is no cache, or CacheVersion.
    """
    return again(lambda: _verify(Path(path)))


def _verify(cache: Path) -> Verified:
    table = layout.table_of(cache)
    if not table.exists():
        Cache.open(cache)  # raises, and says what to do
    num_rows = 0
    problems: list[str] = []
    files = [table, *layout.part_files(cache)]
    for file in files:
        try:
            num_rows += _verified_rows(file)
        except NotACache as error:
            problems.append(str(error))
    # A damaged part lacks its rows as well, and is reported already.
    if cache.is_dir() and not problems:
        problems += lost_rows(cache)
    return Verified(len(files), num_rows, tuple(problems))


def lost_rows(cache: Path) -> list[str]:
    """Return a sentence for each tap of a folder of parts that has fewer rows than at the last merge."""
    # Read the counts first: rows that another process adds in between then do no harm.
    counts = layout.counted_rows(cache)
    stored = stored_rows(cache)
    sentences: list[str] = []
    for fingerprint, num_before in counts.items():
        num_now = 0
        name = fingerprint[:12]  # all that is known of a tap whose last row is gone
        if fingerprint in stored:
            num_now = len(stored[fingerprint].at)
            name = stored[fingerprint].tap.name
        if num_now < num_before:
            sentences.append(
                f"{cache} has lost {num_before - num_now} of {num_before} rows of tap '{name}': a part is gone. "
                "Run featcache extract again"
            )
    return sentences


def _verified_rows(file: Path) -> int:
    """Return the number of rows in a file. Raises NotACache if anything in it does not match its digest."""
    with layout.reading_all_of_part(file) if is_part(file) else opened(file) as hdf5:
        layout.check_complete(hdf5, file)
        num_rows = compared_rows(hdf5, file)
    if not is_part(file):
        Cache.open(file)  # compares the table of images
    return num_rows


@dataclass(frozen=True)
class TapAnswer:
    """Whether one tap has the features of a file, and the reason."""

    tap: str
    hit: bool
    reason: str


@dataclass(frozen=True)
class Why:
    """What a cache knows about one file."""

    digest: str
    same: tuple[str, ...]  # paths of images in the cache with the same bytes
    taps: tuple[TapAnswer, ...]
    reviews: tuple[Review, ...] = ()  # what was decided about labels of images with the same bytes


def why(cache: Cache, file: str | Path, read: Callable[[str], bytes] | None = None) -> Why:
    """Return for every tap whether an extraction would compute this file, and the reason. Raises DataError.

    file: a path, or the path of an image in the cache. read: returns the bytes of an image in the cache that is not a
    file, as in an archive.
    """
    path, digest = _digest(cache, Path(file), read)
    same = tuple(row.path for row in cache.rows if row.digest == digest)
    failures = [failure for failure in cache.failures if failure.digest == digest]
    answers: list[TapAnswer] = []
    for rows in stored_rows(cache.path).values():
        is_hit = digest in rows.at
        if is_hit:
            reason = "its bytes are those that a row was computed from"
        elif failures:
            reason = f"it was skipped: {failures[0].status}, {failures[0].reason}"
        else:
            reason = _why_missing(cache, path, bool(same))
        answers.append(TapAnswer(rows.tap.name, is_hit, reason))
    reviews = tuple(review for review in cache.changes.reviews if review.digest == digest)
    return Why(digest, same, tuple(answers), reviews)


def _why_missing(cache: Cache, path: Path, is_known: bool) -> str:
    """Return why a tap lacks an image. is_known: the cache has an image with the same bytes."""
    if is_known:
        return "this tap was last brought up to date before the image came"
    for row in cache.rows:
        if (cache.root / row.path).absolute() == path.absolute():
            return f"it has other bytes than when it was extracted: edited since (then {row.digest[:12]})"
    return "no image with its bytes was extracted"


def _digest(cache: Cache, file: Path, read: Callable[[str], bytes] | None) -> tuple[Path, str]:
    """Return the path of the image and the digest of its bytes."""
    for path in (file, cache.root / file):
        if path.is_file():
            try:
                return path, file_digest(path)
            except OSError as error:
                raise DataError(f"Cannot read {path}: {error.strerror}") from error
    if read is not None and str(file) in {row.path for row in cache.rows}:
        return cache.root / file, hashlib.sha256(read(str(file))).hexdigest()
    raise DataError(f"There is no file {file}, neither here nor in {cache.root}")
