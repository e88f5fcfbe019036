"""Where the bytes of images come from: the methods of every source, and the simplest source, a folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple, Protocol

from featcache.images.decode import Undecodable

MAX_FILE_BYTES = 2**30


class Stamp(NamedTuple):
    """Tells whether a file changed without reading it: equal stamps mean equal bytes, except under the racy rule."""

    size: int
    mtime_ns: int
    inode: int


class Source(Protocol):
    """Where the bytes of images come from, by the paths of the rows. All of it may be called from any thread."""

    @property
    def location(self) -> Path | None:
        """What `open_source` takes to open it again; None for arrays in memory."""
        ...

    def read(self, path: str) -> bytes:
        """Return the bytes of one image. Raises Undecodable (unreadable, too_big), and nothing else."""
        ...

    def stamp(self, path: str) -> Stamp:
        """Return the stamp of one image. Raises Undecodable (unreadable)."""
        ...


class FolderSource:
    """Files under a folder."""

    def __init__(self, root: Path) -> None:
        self.location = root
        self._root = str(root)

    def read(self, path: str) -> bytes:
        """Return the bytes of one file."""
        try:
            with open(os.path.join(self._root, path), "rb", buffering=0, opener=_never_waiting) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise Undecodable("unreadable", "not a regular file")
                require_size(status.st_size)
                return file.readall()
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise Undecodable("unreadable", reason_of(error)) from error
        except MemoryError as error:
            raise Undecodable("too_big", "more bytes than there is memory") from error

    def stamp(self, path: str) -> Stamp:
        """Return the stamp of one file."""
        try:
            return stamp_of(os.stat(f"{self._root}/{path}" if path[:1] != "/" else path))
        except (OSError, ValueError) as error:
            raise Undecodable("unreadable", reason_of(error)) from error


def stamp_of(status: os.stat_result) -> Stamp:
    """Return the stamp of a file from its status."""
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ino)


def require_size(size: int) -> None:
    """Raise Undecodable if a file is larger than any image may be."""
    if size > MAX_FILE_BYTES:
        raise Undecodable("too_big", f"{size} bytes, more than {MAX_FILE_BYTES}")


def reason_of(error: Exception) -> str:
    """Return what went wrong on one line, without the path, which the row has anyway."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _never_waiting(path: str, flags: int) -> int:
    # Opening a pipe would otherwise wait until another process writes to it.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
