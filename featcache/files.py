"""Files that are whole or absent: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import io
import json
import math
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from featcache.errors import DataError, DiskFault, FeatcacheError, UsageError

LITTER_S = 86_400  # a temporary file older than a day belongs to nobody
TEMPORARY = re.compile(r"\.tmp-(?P<host>[^+]*)\+(?P<process>\d+)\+(?P<of>[0-9a-f]{8})\+[0-9a-f]{8}")
ATTEMPTS = 20
FIRST_WAIT_S, LAST_WAIT_S = 0.001, 0.5  # in all 5.5 s of waiting
CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF}
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES)
LEAST_FREE_BYTES = 2**20  # where a library has failed and less is free, that is why
CANNOT_RESERVE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
SEAL = "digest"  # the name under which a sealed file has the digest of all its other facts
TIDIED_AWAY = errno.ENOENT  # by another process, which has merged the part that was in the folder
OF_THE_SYSTEM = {  # what a machine may lack or forbid for a while; it says nothing about the bytes of a file
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EINTR, errno.EBUSY),
    *(errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN),
    *(errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT),
}
NUMBER_IN_TEXT = re.compile(r"\berrno (?:= )?(\d+)", re.IGNORECASE)  # so HDF5 and some others tell it
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


class ByteSource:
    """A file as HDF5 reads it, in one piece or through `h5py.File(source)`: what the system refuses is no damage.

    HDF5 and h5py hide a failed read behind errors of their own, or take it for "there is no such thing". So the first
    failure is kept, and DiskFault is raised at the end of the block, whatever came of what was not read.
    """

    def __init__(self, path: Path) -> None:
        """Open the file. Raises FileNotFoundError, DiskFault."""
        self.path = path
        self.failure: OSError | None = None
        self._position = 0
        try:
            self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            self._size = os.fstat(self._handle).st_size
        except FileNotFoundError:
            raise
        except OSError as error:
            raise cannot_read(path, error) from error

    def __enter__(self) -> ByteSource:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            os.close(self._handle)
        if self.failure is not None:
            raise cannot_read(self.path, self.failure) from self.failure

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from the position; with zeros where the file has nothing."""
        room = memoryview(buffer).cast("B")
        size = len(room)
        try:
            while len(room) and (count := os.preadv(self._handle, [room], self._position)):
                room = room[count:]
                self._position += count
        except OSError as error:
            self.failure = self.failure or error
            raise
        room[:] = bytes(len(room))
        return size

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes from the position, or all that follow."""
        found = bytearray(max(self._size - self._position, 0) if size < 0 else size)
        self.readinto(found)
        return bytes(found)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position


@contextmanager
def writing(path: Path, unchanged: Callable[[], bool] = lambda: True) -> Iterator[Sink]:
    """Give a Sink whose content becomes `path` as a whole at the end: afterwards it holds the old or all of the new.

    unchanged: asked right before the new file takes its name; if not, Overtaken is raised and nothing changed. So it is
    if another process has called `overtake` since.
    Raises DiskFault (full disk, no permission); the old file is then untouched and no litter remains. Raises UsageError
    for a device or a pipe.
    """
    require_regular(path)
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
            _rename(temporary, path)
        except BaseException:
            _remove_temporary(temporary)
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


def require_regular(path: Path) -> None:
    """Raise UsageError if a path leads to a device or a pipe, such as /dev/null: a file must not take its place."""
    folder = Path(os.path.realpath(path.parent))
    try:
        mode = os.stat(path).st_mode
    except OSError:
        mode = stat.S_IFREG  # nothing is there yet
    is_regular = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    # /dev/stdout may lead to a file that the shell has open, which a new file would not become
    if not is_regular or folder == Path("/dev") or folder.parts[:2] == ("/", "proc"):
        raise UsageError(f"{path} is a device or a pipe; featcache writes whole files. Give the name of a file")


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
        _remove_temporary(folder)


def place_folder(made: Path, path: Path) -> None:
    """Rename a `temporary_folder` beside `path`, or a folder in it, so that `path` is never there in part.

    What is at `path` already is replaced. Raises DiskFault; the old folder is then where it was. After a kill
    between the two renames it lies beside, as .featcache-old-NAME, until the next call has put another in its place.
    """
    # not the name of litter: after a kill between the renames it is all there is
    old = path.with_name(f".featcache-old-{path.name}")
    try:
        if old.exists() and not path.exists():
            os.rename(old, path)
        _remove_entry(old)
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
        _remove_entry(old)
    except OSError as error:
        raise _fault("write", path, error) from error


def _remove_entry(path: Path) -> None:
    """Remove a file, or a folder with all that it holds, if it is there and can be removed."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _remove_temporary(path: Path) -> None:
    """Remove a temporary file or folder, also if Ctrl-C comes in the middle of it."""
    try:
        _remove_entry(path)
    except KeyboardInterrupt:
        _remove_entry(path)
        raise


def check_writable(path: Path) -> None:
    """Raise DiskFault if a file cannot be written there later. Folders that are missing are left to who writes it."""
    path = _behind_links(path)
    place = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    try:
        handle, temporary = _temporary(place / path.name)
        try:
            os.close(handle)
        finally:
            _remove_temporary(temporary)
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


def overtake(path: Path) -> None:
    """Remove the temporary files that others have for `path`, so that they cannot rename them over it.

    Whoever has written `path` calls it: others who asked `unchanged` before that, and rename after it, look again.
    """
    path = _behind_links(path)
    for litter in matching(path.parent, ".tmp-*"):
        match = TEMPORARY.fullmatch(litter.name)
        if match and match["of"] == _tag(path):
            with suppress(OSError):
                litter.unlink()


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
    """Return the files of a folder that match, sorted; none if the folder is gone, even just now.

    Raises DiskFault if the folder cannot be listed: a file that is not seen is not gone.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise cannot_read(folder, error) from error
    return sorted(folder / name for name in fnmatch.filter(names, pattern))


def remove(path: Path) -> None:
    """Remove a file, if it is there. Raises DiskFault."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _fault("remove", path, error) from error


def rename(path: Path, new: Path) -> None:
    """Give a file another name in its folder. Raises DiskFault."""
    try:
        path.rename(new)
    except OSError as error:
        raise _fault("rename", path, error) from error


def remove_litter(folder: Path) -> None:
    """Remove temporary files and folders of processes that are gone: of this machine at once, of others after a day."""
    entries: list[Path] = []
    with suppress(DiskFault):
        entries = matching(folder, ".tmp-*")
    for litter in entries:
        match = TEMPORARY.fullmatch(litter.name)
        if match is None:
            continue
        with suppress(OSError):
            is_gone = match["host"] == _host() and not _alive(int(match["process"]))
            if not is_gone and time.time() - _last_change(litter) <= LITTER_S:
                continue
            _remove_entry(litter)


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Raise DiskFault where a library fails because `path` cannot be written or a disk is full.

    Libraries raise exceptions of their own, which name the reason in their text, or do not name it.
    """
    try:
        yield
    except FeatcacheError:
        raise
    except Exception as error:
        fault = _fault_behind(error, path)
        if fault is None:
            raise
        raise _fault("write", path, fault) from error


def _fault_behind(error: BaseException, path: Path) -> OSError | None:
    """Return what the system said, as far as one can see: in the exceptions, in their texts, or on the disks."""
    cause: BaseException | None = error
    while cause is not None:
        for number in DISK_ERRORS:
            reason = os.strerror(number)
            if getattr(cause, "errno", None) == number or reason in str(cause):
                return OSError(number, reason)
        cause = cause.__cause__ or cause.__context__
    for folder in (path.parent, Path(tempfile.gettempdir())):
        if shutil.disk_usage(folder).free < LEAST_FREE_BYTES:
            return OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} in {folder}")
    return None


def cannot_read(path: Path, error: BaseException) -> DiskFault:
    """Return the error for a file that the system does not give now, which says nothing about its bytes."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return DiskFault(f"Cannot read {path}: {reason}. It stays as it is; run the command again")


def raise_if_of_the_system(path: Path, error: BaseException) -> None:
    """Raise DiskFault if it was the system that failed, not the content of a file: to ask before it is called damaged.

    Libraries wrap what the system says in errors of their own, so all that led to the error is looked at.
    """
    cause: BaseException | None = error
    while cause is not None:
        number = cause.errno if isinstance(cause, OSError) else None
        if number is None and (match := NUMBER_IN_TEXT.search(str(cause))):
            number = int(match[1])
        if isinstance(cause, MemoryError) or number in OF_THE_SYSTEM:
            raise cannot_read(path, cause) from error
        cause = cause.__cause__ or cause.__context__


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


def _rename(temporary: Path, path: Path) -> None:
    try:
        os.replace(temporary, path)
    except FileNotFoundError as error:
        if path.parent.is_dir():  # so it is the temporary file that is gone
            raise Overtaken(path) from error
        raise


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


def read_arrays(path: Path) -> dict[str, Any]:
    """Return all arrays of an .npz file: each is checked as it is read, so none that is damaged can be missing.

    Raises whatever a damaged file makes of NumPy and zipfile.
    """
    import numpy as np  # not above: see `write_arrays`

    content = path.read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        for member in file.zip.infolist():
            with file.zip.open(member) as stream:
                _check_length(stream, member.file_size)
        return {name: file[name] for name in file.files}


def _check_length(stream: Any, size: int) -> None:
    """Raise ValueError if an .npy file of this size declares more numbers than it holds: memory is asked for first."""
    from numpy.lib import format as npy

    read_header = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    declared = math.prod(shape) * dtype.itemsize
    if declared > size:
        raise ValueError(f"an array of {declared} bytes is declared in {size} bytes")


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=True) + "\n").encode())


def read_json(path: Path, what: type[DataError] = DataError) -> Any:
    """Return the content of a JSON file; raise `what` naming the file if it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise_if_of_the_system(path, error)
        raise what(f"Cannot read {path}: {error}") from error


def write_sealed(path: Path, facts: Mapping[str, Any], unchanged: Callable[[], bool] = lambda: True) -> None:
    """Write facts as JSON with a digest of them, whole or not at all: `check_seal` then notices any change.

    unchanged: see `writing`.
    """
    plain = json.loads(json.dumps(facts))  # the digest is of the facts as they are read again
    plain.pop(SEAL, None)  # of the file that they were read from
    text = json.dumps({**plain, SEAL: _digest_of(plain)}, indent=2, ensure_ascii=True) + "\n"
    with writing(path, unchanged) as sink:
        sink.write(text.encode())


def check_seal(facts: dict[str, Any], path: Path, what: type[DataError], do: str) -> dict[str, Any]:
    """Return the facts of `write_sealed` without their digest. Raises `what`, with what to do, if they are others."""
    plain = {name: value for name, value in facts.items() if name != SEAL}
    if facts.get(SEAL) != _digest_of(plain):
        raise what(f"{path} was changed after it was written, or is damaged: it does not match its digest. {do}")
    return plain


def _digest_of(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def reserve(handle: int, num_bytes: int) -> None:
    """Have the disk keep room for an empty file: what is mapped cannot say later that there is none. Raises OSError."""
    try:
        os.posix_fallocate(handle, 0, num_bytes)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in CANNOT_RESERVE:
            raise
        _fill(handle, num_bytes)


def _fill(handle: int, num_bytes: int) -> None:
    """Write zeros, which takes the room on any file system."""
    zeros = bytes(2**20)
    left = num_bytes
    while left:
        left -= os.write(handle, zeros[:left])


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
