"""Files that are whole or absent: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from featcache.errors import DataError, DiskFault

LITTER_S = 86_400  # a temporary file older than a day belongs to nobody
Identity = tuple[int, int, int]


class Overtaken(Exception):
    """Another process has replaced or removed a file that was being worked on: look again."""


class Sink:
    """A file under a temporary name, as HDF5 writes to it: a failure is kept for `check`, not raised.

    HDF5 crashes the process when a write fails (h5py#914), so after the first failure everything is swallowed.
    """

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.failure: OSError | None = None

    def check(self) -> None:
        """Raise the first failure, if there was one."""
        if self.failure is not None:
            raise self.failure

    def write(self, data: Any) -> int:
        """Write all of the bytes at the position."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while self.failure is None and len(left):
                left = left[os.write(self.handle, left) :]
        except OSError as error:
            self.failure = error
        return size

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes from the position."""
        return os.read(self.handle, size if size >= 0 else os.fstat(self.handle).st_size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        return os.lseek(self.handle, offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return os.lseek(self.handle, 0, os.SEEK_CUR)

    def truncate(self, size: int) -> int:
        """Set the length of the file."""
        try:
            if self.failure is None:
                os.ftruncate(self.handle, size)
        except OSError as error:
            self.failure = error
        return size

    def flush(self) -> None:
        """Do nothing: there is no buffer."""


@contextmanager
def writing(path: Path, before: Identity | Literal["any"] | None = "any") -> Iterator[Sink]:
    """Give a Sink whose content becomes `path` as a whole at the end: afterwards it holds the old or all of the new.

    before: what `identity(path)` must still be at the end, or Overtaken is raised and nothing changed.
    Raises DiskFault (full disk, no permission); the old file is then untouched and no litter remains.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".tmp-{_host()}+{os.getpid()}+", dir=path.parent)
        try:
            try:
                sink = Sink(handle)
                yield sink
                sink.check()
                os.fsync(handle)
            finally:
                os.close(handle)
            os.chmod(temporary, 0o666 & ~_umask())
            if before not in ("any", identity(path)):
                raise Overtaken(path)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise DiskFault(
            f"Cannot write {path}: {error.strerror or error}. Free some space or choose another place"
        ) from error


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write `data` so that `path` holds either its old content or all of the new, after any crash.

    Raises DiskFault (full disk, no permission); the old file is then untouched and no litter remains.
    """
    with writing(path) as sink:
        sink.write(data)


def identity(path: Path) -> Identity | None:
    """Return what tells one file from another of the same name (inode, size, mtime); None where there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def remove_litter(folder: Path) -> None:
    """Remove temporary files of processes that are gone: of this machine's at once, of others' after a day."""
    for litter in folder.glob(".tmp-*"):
        host, process = [*litter.name.removeprefix(".tmp-").split("+"), "", ""][:2]
        with suppress(OSError):
            gone = host == _host() and process.isdecimal() and not _alive(int(process))
            if gone or time.time() - litter.stat().st_mtime > LITTER_S:
                litter.unlink()


def _host() -> str:
    return platform.node().replace("/", "_").replace("+", "_")


def _alive(process: int) -> bool:
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=True) + "\n").encode())


def read_json(path: Path, what: type[DataError] = DataError) -> Any:
    """Return the content of a JSON file; raise `what` naming the file if it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise what(f"Cannot read {path}: {error}") from error


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
