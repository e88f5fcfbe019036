"""What was read before: digests by path, so that a scan reads only what is new or has changed.

A digest holds while the stamp of its file (size, time, inode) stays the same. A file that was changed within two
seconds before it was read, or in the future, is not remembered, because it may change again without its stamp
showing it (the "racy" rule of git). The index is disposable: damaged, or of another place, it is not used.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from featcache.errors import DiskFault
from featcache.files import write_whole
from featcache.images.decode import Undecodable
from featcache.images.folder import Source, Stamp

FORMAT = "featcache index 1"
RACY_NS = 2 * 10**9  # FAT keeps times to two seconds

Entry = tuple[int, int, int, str]  # a stamp, and the digest of what it stands for


def is_index(path: Path) -> bool:
    """Return whether a file is an index, or does not exist."""
    try:
        return bool(json.loads(path.read_bytes())["format"] == FORMAT)
    except FileNotFoundError:
        return True
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


class Index:
    """The digests of the images in one source. path: the file that keeps them between scans; None keeps none."""

    def __init__(self, path: Path | None, source: Source, clock: Callable[[], int] = time.time_ns) -> None:
        self._path = None if source.location is None else path
        self._place = str(Path(source.location or "").resolve())
        self._source = source
        self._clock = clock
        self._before: dict[str, Entry] = {}
        if self._path is not None:
            self._before = _entries(self._path, self._place)
        self._now: dict[str, Entry] = {}

    def known(self, paths: Sequence[str]) -> dict[str, str]:
        """Return the digests of the images that have not changed since they were read."""
        digests: dict[str, str] = {}
        now = self._clock()
        for path in paths:
            entry = self._before.get(path)
            if entry is None:
                continue
            size, mtime_ns, inode, digest = entry
            # A file from the future may change again without its stamp showing it.
            if mtime_ns <= now and self._stamp(path) == (size, mtime_ns, inode):
                self._now[path] = entry
                digests[path] = digest
        return digests

    def read(self, path: str) -> tuple[bytes, str]:
        """Return the bytes of an image and their digest, and remember it. Raises Undecodable."""
        if self._path is None:
            data = self._source.read(path)
            return data, hashlib.sha256(data).hexdigest()
        before = self._stamp(path)
        began = self._clock()
        data = self._source.read(path)
        digest = hashlib.sha256(data).hexdigest()
        # The stamp again, after reading: a file that was changed meanwhile has the bytes of two versions.
        is_racy = before is None or before.mtime_ns >= began - RACY_NS
        if before is not None and not is_racy and self._stamp(path) == before:
            self._now[path] = (*before, digest)
        return data, digest

    def save(self) -> None:
        """Write the digests if they differ from the file. A full disk is no error: images are read again next time."""
        if self._path is None or self._now == self._before:
            return
        content = {"format": FORMAT, "place": self._place, "files": self._now}
        text = json.dumps(content, separators=(",", ":"))
        with suppress(DiskFault):
            write_whole(self._path, text.encode())

    def _stamp(self, path: str) -> Stamp | None:
        try:
            return self._source.stamp(path)
        except Undecodable:
            return None


def _entries(path: Path, place: str) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    try:
        content = json.loads(path.read_bytes())
        if (content["format"], content["place"]) != (FORMAT, place):
            return {}
        for name, (size, mtime_ns, inode, digest) in content["files"].items():
            if not isinstance(digest, str) or len(digest) != 64:
                return {}
            entries[name] = (int(size), int(mtime_ns), int(inode), digest)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}  # nothing is lost but the time to read the images again
    return entries
