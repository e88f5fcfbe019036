"""Files that are whole or absent: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import platform
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from featcache.errors import DataError, DiskFault

LITTER_S = 86_400  # a temporary file older than a day belongs to nobody
TEMPORARY = re.compile(r"\.tmp-(?P<host>[^+]*)\+(?P<process>\d+)\+(?P<of>[0-9a-f]{8})\+[0-9a-f]{8}")
ATTEMPTS = 20
FIRST_WAIT_S, LAST_WAIT_S = 0.001, 0.5  # in all 5.5 s of waiting
CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF}
TIDIED_AWAY = errno.ENOENT  # by another process, which has merged the part that was in the folder
T = TypeVar("T")


class Overtaken(DataError):
    """Another process has replaced or removed a file that was being worked on: look again."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} was replaced by another process again and again. Run the command once more")


def again(work: Callable[[], T]) -> T:
    """Return what `work` returns, done anew when other processes replace the files under it. Raises Overtaken.

    It waits longer from one attempt to the next, since another process may be removing thousands of parts one by one.
    """
    for attempt in range(ATTEMPTS - 1):
        with suppress(Overtaken):
            return work()
        time.sleep(min(FIRST_WAIT_S * 2**attempt, LAST_WAIT_S))
    return work()


class Sink:
    """A file under a temporary name, as HDF5 writes to it: a failure is kept for `check`, not raised.

    HDF5 crashes the process when a write fails (h5py#914), so after the first failure everything is swallowed.
    """

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.failure: BaseException | None = None
        self._position = self._size = 0

    def fail(self, error: BaseException) -> None:
        """Touch the file no more; `check` raises the first of these errors."""
        self.failure = self.failure or error

    def check(self) -> None:
        """Raise the first failure, if there was one."""
        if self.failure is not None:
            raise self.failure

    def write(self, data: Any) -> int:
        """Write all of the bytes at the position."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            if self.failure is None:
                os.lseek(self.handle, self._position, os.SEEK_SET)
            while self.failure is None and len(left):
                left = left[os.write(self.handle, left) :]
        except BaseException as error:  # of a signal's handler too
            self.fail(error)
        self._position += size
        self._size = max(self._size, self._position)
        return size

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes from the position, zeros where there are none."""
        size = max(self._size - self._position, 0) if size < 0 else size
        found = b""
        try:
            if self.failure is None:
                os.lseek(self.handle, self._position, os.SEEK_SET)
                found = os.read(self.handle, size)
        except BaseException as error:  # of a signal's handler too
            self.fail(error)
        self._position += size
        return found.ljust(size, b"\0")

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def truncate(self, size: int) -> int:
        """Set the length of the file."""
        try:
            if self.failure is None:
                os.ftruncate(self.handle, size)
        except BaseException as error:  # of a signal's handler too
            self.fail(error)
        self._size = size
        return size

    def flush(self) -> None:
        """Do nothing: there is no buffer."""


@contextmanager
def writing(path: Path, unchanged: Callable[[], bool] = lambda: True) -> Iterator[Sink]:
    """Give a Sink whose content becomes `path` as a whole at the end: afterwards it holds the old or all of the new.

    unchanged: asked right before the new file takes its name; if not, Overtaken is raised and nothing changed.
    Raises DiskFault (full disk, no permission); the old file is then untouched and no litter remains.
    """
    path = _behind_links(path)
    try:
        handle, temporary = _temporary(path)
        try:
            try:
                sink = Sink(handle)
                yield sink
                sink.check()
                os.fsync(handle)
            finally:
                os.close(handle)
            if not unchanged():
                raise Overtaken(path)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        _sync(path.parent)
    except OSError as error:
        raise _fault("write", path, error) from error


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write `data` so that `path` holds either its old content or all of the new, after any crash.

    Raises DiskFault (full disk, no permission); the old file is then untouched and no litter remains.
    """
    with writing(path) as sink:
        sink.write(data)


@contextmanager
def temporary_folder(beside: Path | None = None) -> Iterator[Path]:
    """Give an empty folder that is removed at the end, for writers that cannot write to a Sink.

    beside: what is made there; the folder then lies next to it, so that it can be renamed. Without it, the folder lies
    where the system keeps temporary files. After a kill the next command that writes there removes it.
    Raises DiskFault if it cannot be made.
    """
    place = Path(tempfile.gettempdir()) if beside is None else beside.parent
    if not place.is_dir():
        make_folder(place)
    _remove_litter_once(os.path.abspath(place))
    folder = place / _temporary_name(beside or place)
    try:
        folder.mkdir(0o700 if beside is None else 0o777)
    except OSError as error:
        raise _fault("make the folder", folder, error) from error
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        except KeyboardInterrupt:
            shutil.rmtree(folder, ignore_errors=True)  # Ctrl-C came in the middle of it
            raise


def place_folder(made: Path, path: Path) -> None:
    """Rename a `temporary_folder` beside `path`, or a folder in it, so that `path` is never there in part.

    A folder that is at `path` already is replaced. Raises DiskFault; the old folder is then where it was.
    """
    old = path.with_name(_temporary_name(path))
    try:
        for entry in (*made.rglob("*"), made):
            _sync(entry)
        replaces = path.exists()
        if replaces:
            os.rename(path, old)
        try:
            os.rename(made, path)
        except BaseException:
            if replaces:
                os.rename(old, path)
            raise
        _sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise _fault("write", path, error) from error


def check_writable(path: Path) -> None:
    """Make the folder of a file that is to be written later. Raises DiskFault if it cannot be written there."""
    path = _behind_links(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        handle, temporary = _temporary(path)
        os.close(handle)
        os.unlink(temporary)
    except OSError as error:
        raise _fault("write", path, error) from error


def being_written(path: Path) -> bool:
    """Tell whether anyone has a temporary file that is to become `path`."""
    path = _behind_links(path)
    try:
        matches = (TEMPORARY.fullmatch(name) for name in os.listdir(path.parent))
    except OSError:
        return True  # for all that one can see
    return any(match["of"] == _tag(path) for match in matches if match)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, so that it is there after a power loss too. Raises DiskFault."""
    try:
        missing = [one for one in (folder, *folder.parents) if not one.is_dir()]
        folder.mkdir(parents=True, exist_ok=True)
        for one in missing or [folder]:  # one that is there may be another's, who has not come to this line yet
            _sync(one.parent)
    except OSError as error:
        raise _fault("make the folder", folder, error) from error


def matching(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a folder that match, sorted; none if the folder is gone, even just now."""
    with suppress(FileNotFoundError):
        return sorted(folder.glob(pattern))
    return []


def remove(path: Path) -> None:
    """Remove a file, if it is there. Raises DiskFault."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _fault("remove", path, error) from error


def remove_litter(folder: Path) -> None:
    """Remove temporary files and folders of processes that are gone: of this machine at once, of others after a day."""
    for litter in matching(folder, ".tmp-*"):
        match = TEMPORARY.fullmatch(litter.name)
        if match is None:
            continue
        with suppress(OSError):
            is_gone = match["host"] == _host() and not _alive(int(match["process"]))
            if not is_gone and time.time() - _last_change(litter) <= LITTER_S:
                continue
            if litter.is_dir() and not litter.is_symlink():
                shutil.rmtree(litter, ignore_errors=True)
            else:
                litter.unlink()


@cache
def _remove_litter_once(folder: str) -> None:
    """Remove the litter of a folder when this process first writes there.

    Not at every write: a folder may hold 100,000 images, and a sweep writes thousands of heads into one.
    """
    remove_litter(Path(folder))


def _last_change(litter: Path) -> float:
    """Return the time of the last change of a file, or in a folder and all that it holds."""
    return max(entry.lstat().st_mtime for entry in (litter, *litter.rglob("*")))


def _fault(what: str, path: Path, error: OSError) -> DiskFault:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    do = "Free some space or choose another place" if is_full else "Choose another place"
    return DiskFault(f"Cannot {what} {path}: {error.strerror or error}. {do}")


def _temporary(path: Path) -> tuple[int, Path]:
    """Create a file beside `path`, under a name that tells whose it is and what it is to become."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    for left in reversed(range(ATTEMPTS)):
        if not path.parent.is_dir():
            make_folder(path.parent)
        _remove_litter_once(os.path.abspath(path.parent))
        temporary = path.parent / _temporary_name(path)
        try:
            return os.open(temporary, flags, 0o666), temporary
        except (FileNotFoundError, FileExistsError):  # another process has just tidied the folder away
            if not left:
                raise
    raise AssertionError


def _temporary_name(path: Path) -> str:
    """Return a new name that tells the machine, the process, and what the file or folder is to become."""
    return f".tmp-{_host()}+{os.getpid()}+{_tag(path)}+{secrets.token_hex(4)}"


def _tag(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]


def _behind_links(path: Path) -> Path:
    """Return the file itself, so that a link to it stays a link."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@cache
def _host() -> str:
    """Return the name of this machine, and of this container: elsewhere a process number means another process."""
    space = 0
    with suppress(OSError):
        space = os.stat("/proc/self/ns/pid").st_ino
    return f"{platform.node()}-{space}".replace("/", "_").replace("+", "_")


def _alive(process: int) -> bool:
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> int:
    """Write arrays as an .npz file, whole or not at all, and return its bytes."""
    import numpy as np  # not above: `featcache doctor` uses this module where NumPy is broken

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    content = buffer.getvalue()
    write_whole(path, content)
    return len(content)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=True) + "\n").encode())


def read_json(path: Path, what: type[DataError] = DataError) -> Any:
    """Return the content of a JSON file; raise `what` naming the file if it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise what(f"Cannot read {path}: {error}") from error


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Make a file, or what was renamed or made in a folder, durable, where the file system can do that."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in {*CANNOT_SYNC, TIDIED_AWAY}:
            raise


@contextmanager
def current_folder_first() -> Iterator[None]:
    """Have modules of the current folder found first, as a user's own are."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
