"""Files that are whole or absent: written under a temporary name in the same folder, then renamed.

The name of a temporary file tells the machine, the process, and the file that it will become. So the next command
removes what a killed process left, and one process can see that another is writing the same file.
"""

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
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from featcache.errors import DataError, DiskFault, FeatcacheError, UsageError

LITTER_S = 86_400  # after a day, a temporary file of another machine is litter
TEMPORARY = re.compile(r"\.tmp-(?P<host>[^+]*)\+(?P<process>\d+)\+(?P<of>[0-9a-f]{8})\+[0-9a-f]{8}")
ATTEMPTS = 20
FIRST_WAIT_S, LAST_WAIT_S = 0.001, 0.5  # all attempts together wait 5.5 s
CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF}
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES)
LEAST_FREE_BYTES = 2**20  # with less free space, a full disk is taken as the cause of a library's failure
CANNOT_RESERVE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
SEAL = "digest"  # the key of a sealed file that holds the digest of all its other facts
TIDIED_AWAY = errno.ENOENT  # another process has merged the part and removed its folder
OF_THE_SYSTEM = {  # what a machine may lack or forbid for a while, which says nothing about the bytes of a file
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EINTR, errno.EBUSY),
    *(errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN),
    *(errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT),
}
NUMBER_IN_TEXT = re.compile(r"\berrno (?:= )?(\d+)", re.IGNORECASE)  # as HDF5 and some other libraries write it
_is_repeated = ContextVar("is_repeated", default=False)  # whether an `again` is at work in this thread
T = TypeVar("T")


class Overtaken(DataError):
    """Another process has replaced or removed a file in use: read it again."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} was replaced by another process again and again. Run the command once more")


def again(work: Callable[[], T]) -> T:
    """Return what `work` returns. Repeat it while it raises Overtaken; raise Overtaken after ATTEMPTS.

    Each wait is longer than the last, since another process may be removing thousands of parts one by one. Within the
    work of another `again` it tries only once: the outer one repeats it, and 20 x 20 tries would last for minutes.
    """
    if _is_repeated.get():
        return work()
    token = _is_repeated.set(True)
    try:
        for attempt in range(ATTEMPTS - 1):
            with suppress(Overtaken):
                return work()
            time.sleep(min(FIRST_WAIT_S * 2**attempt, LAST_WAIT_S))
        return work()
    finally:
        _is_repeated.reset(token)


class Sink:
    """A temporary file that HDF5 writes to. It keeps a failure for `check` and does not raise it.

    HDF5 crashes the process when a write fails (h5py#914), so after the first failure the Sink ignores all writes.
    """

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.failure: BaseException | None = None
        self._position = self._size = 0

    def fail(self, error: BaseException) -> None:
        """Stop writing to the file; `check` raises the first error that was given here."""
        self.failure = self.failure or error

    def check(self) -> None:
        """Raise the first failure, if there was one."""
        if self.failure is not None:
            raise self.failure

    def write(self, data: Any) -> int:
        """Write all bytes at the position."""
        remaining = memoryview(data).cast("B")
        size = len(remaining)
        try:
            if self.failure is None:
                os.lseek(self.handle, self._position, os.SEEK_SET)
            while self.failure is None and len(remaining):
                num_written = os.write(self.handle, remaining)
                remaining = remaining[num_written:]
        except BaseException as error:  # a signal handler may raise here, too
            self.fail(error)
        self._position += size
        self._size = max(self._size, self._position)
        return size

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes from the position, filled up with zeros."""
        if size < 0:
            size = max(self._size - self._position, 0)
        data = b""
        try:
            if self.failure is None:
                os.lseek(self.handle, self._position, os.SEEK_SET)
                data = os.read(self.handle, size)
        except BaseException as error:  # a signal handler may raise here, too
            self.fail(error)
        self._position += size
        return data.ljust(size, b"\0")

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
        except BaseException as error:  # a signal handler may raise here, too
            self.fail(error)
        self._size = size
        return size

    def flush(self) -> None:
        """Do nothing: there is no buffer."""


class ByteSource:
    """A file to read at once or through `h5py.File(source)`. It tells errors of the system from damaged files.

    HDF5 and h5py hide a failed read behind other errors, or treat it as a missing object. So the ByteSource keeps the
    first failure and raises DiskFault at the end of its block, whatever HDF5 made of that failure.
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
        """Fill the buffer from the position, and with zeros behind the end of the file."""
        remaining = memoryview(buffer).cast("B")
        size = len(remaining)
        try:
            while len(remaining) and (count := os.preadv(self._handle, [remaining], self._position)):
                remaining = remaining[count:]
                self._position += count
        except OSError as error:
            self.failure = self.failure or error
            raise
        remaining[:] = bytes(len(remaining))
        return size

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes from the position, or all bytes that follow it."""
        if size < 0:
            size = max(self._size - self._position, 0)
        buffer = bytearray(size)
        self.readinto(buffer)
        return bytes(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position


@contextmanager
def writing(path: Path, unchanged: Callable[[], bool] = lambda: True) -> Iterator[Sink]:
    """Give a Sink whose content replaces `path` at the end, so that `path` holds all of the old or all of the new.

    unchanged: called right before the new file takes its name. If it returns False, or if another process has called
    `overtake` meanwhile, Overtaken is raised and `path` stays as it is.
    Raises DiskFault (full disk, no permission); the old file then stays untouched and no temporary file remains. Raises
    UsageError for a device or a pipe.
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
                # The bytes must be on the disk before the name: after a power loss the file would be empty otherwise.
                os.fsync(handle)
            finally:
                os.close(handle)
            if not unchanged():
                raise Overtaken(path)
            _rename(temporary, path)
        except BaseException:
            _remove_temporary(temporary)
            raise
        # The name, too, must survive a power loss: it is an entry of the folder.
        _sync(path.parent)
    except OSError as error:
        raise _fault("write", path, error) from error


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write `data` so that `path` holds all of its old or all of its new content, even after a crash.

    Raises DiskFault (full disk, no permission); the old file then stays untouched and no temporary file remains.
    """
    with writing(path) as sink:
        sink.write(data)


def require_regular(path: Path) -> None:
    """Raise UsageError if a path leads to a device or a pipe, such as /dev/null, which a file must not replace."""
    folder = Path(os.path.realpath(path.parent))
    try:
        mode = os.stat(path).st_mode
    except OSError:
        mode = stat.S_IFREG  # the file does not exist yet
    is_regular = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    # /dev/stdout may lead to a regular file that the shell has open; the shell would never see a file that replaces it.
    if not is_regular or folder == Path("/dev") or folder.parts[:2] == ("/", "proc"):
        raise UsageError(f"{path} is a device or a pipe; featcache writes whole files. Give the name of a file")


@contextmanager
def temporary_folder(beside: Path | None = None) -> Iterator[Path]:
    """Give an empty folder that is removed at the end, for writers that cannot write to a Sink.

    beside: a path that the content will be renamed to; the folder is made next to it. By default it is made where the
    system keeps temporary files. After a kill, the next command that writes in the same place removes the folder.
    Raises DiskFault if it cannot be made.
    """
    place = Path(tempfile.gettempdir()) if beside is None else beside.parent
    if not place.is_dir():
        make_folder(place)
    _remove_litter_once(os.path.abspath(place))
    folder = place / _temporary_name(beside or place)
    try:
        # Where all users keep temporary files, no other user may look into it.
        folder.mkdir(0o700 if beside is None else 0o777)
    except OSError as error:
        raise _fault("make the folder", folder, error) from error
    try:
        yield folder
    finally:
        _remove_temporary(folder)


def place_folder(made: Path, path: Path) -> None:
    """Rename a `temporary_folder` beside `path`, or a folder in it, to `path`, so that `path` is never incomplete.

    Replaces a file or folder at `path`. Raises DiskFault; the old folder is then back in its place. After a kill
    between the two renames the old folder remains as .featcache-old-NAME until the next call has replaced it.
    """
    # This is not the name of a temporary file: after a kill between the renames, no other copy exists.
    old = path.with_name(f".featcache-old-{path.name}")
    try:
        # A kill between the renames of an earlier call: take that folder back first.
        if old.exists() and not path.exists():
            os.rename(old, path)
        _remove_entry(old)
        for entry in (*made.rglob("*"), made):
            _sync(entry)
        # No system renames a folder over a folder with files in it, so the old one makes room first.
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
    """Remove a file, or a folder with its content, if it exists and can be removed."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _remove_temporary(path: Path) -> None:
    """Remove a temporary file or folder, even if Ctrl-C comes in between."""
    try:
        _remove_entry(path)
    except KeyboardInterrupt:
        _remove_entry(path)
        raise


def check_writable(path: Path) -> None:
    """Raise DiskFault if a file cannot be written at `path` later. Does not make missing folders."""
    path = _behind_links(path)
    place = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    try:
        # Try it: permissions do not tell about read-only disks.
        handle, temporary = _temporary(place / path.name)
        try:
            os.close(handle)
        finally:
            _remove_temporary(temporary)
    except OSError as error:
        raise _fault("write", path, error) from error


def being_written(path: Path) -> bool:
    """Return whether any process has a temporary file that will become `path`."""
    path = _behind_links(path)
    try:
        names = os.listdir(path.parent)
    except OSError:
        return True  # the folder cannot be read, so there may be such a file
    return any(_is_temporary_of(name, path) for name in names)


def overtake(path: Path) -> None:
    """Remove the temporary files that other processes have for `path`, so that they cannot rename them to `path`.

    A process calls it after it has written `path`. Another process that called `unchanged` before, and renames after,
    then fails with Overtaken and reads `path` again.
    """
    path = _behind_links(path)
    for temporary in matching(path.parent, ".tmp-*"):
        if _is_temporary_of(temporary.name, path):
            with suppress(OSError):
                temporary.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, so that they survive a power loss. Raises DiskFault."""
    try:
        missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
        folder.mkdir(parents=True, exist_ok=True)
        # If the folder exists, another process may have made it and not have reached this line yet.
        for path in missing or [folder]:
            _sync(path.parent)
    except OSError as error:
        raise _fault("make the folder", folder, error) from error


def matching(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a folder that match a pattern, sorted; none if the folder does not exist.

    Raises DiskFault if the folder cannot be listed: that does not mean that its files are gone.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise cannot_read(folder, error) from error
    return sorted(folder / name for name in fnmatch.filter(names, pattern))


def remove(path: Path) -> None:
    """Remove a file if it exists. Raises DiskFault."""
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
    """Remove temporary files and folders of ended processes: at once on this machine, after a day if from another."""
    entries: list[Path] = []
    with suppress(DiskFault):
        entries = matching(folder, ".tmp-*")
    for entry in entries:
        match = TEMPORARY.fullmatch(entry.name)
        if match is None:
            continue
        with suppress(OSError):
            # A process number says something only on the machine that it is from.
            has_ended = match["host"] == _host() and not _alive(int(match["process"]))
            if has_ended or time.time() - _last_change(entry) > LITTER_S:
                _remove_entry(entry)


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Raise DiskFault if a library fails because `path` cannot be written or a disk is full.

    Libraries raise their own exceptions, which may or may not contain the reason.
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
    """Return the error of the system that caused `error`: from the chain of exceptions, their texts, or the disks."""
    cause: BaseException | None = error
    while cause is not None:
        for number in DISK_ERRORS:
            reason = os.strerror(number)
            if getattr(cause, "errno", None) == number or reason in str(cause):
                return OSError(number, reason)
        cause = cause.__cause__ or cause.__context__
    # Some libraries hide the reason altogether, so look whether a disk is full.
    for folder in (path.parent, Path(tempfile.gettempdir())):
        if shutil.disk_usage(folder).free < LEAST_FREE_BYTES:
            return OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} in {folder}")
    return None


def cannot_read(path: Path, error: BaseException) -> DiskFault:
    """Return the error for a file that the system cannot read now, which says nothing about its bytes."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return DiskFault(f"Cannot read {path}: {reason}. It stays as it is; run the command again")


def raise_if_of_the_system(path: Path, error: BaseException) -> None:
    """Raise DiskFault if the system failed, and not the content of the file. Call it before you call a file damaged.

    Libraries wrap errors of the system in their own, so the whole chain of exceptions counts.
    """
    cause: BaseException | None = error
    while cause is not None:
        number = cause.errno if isinstance(cause, OSError) else None
        match = NUMBER_IN_TEXT.search(str(cause))
        if number is None and match is not None:
            number = int(match[1])
        if isinstance(cause, MemoryError) or number in OF_THE_SYSTEM:
            raise cannot_read(path, cause) from error
        cause = cause.__cause__ or cause.__context__


@cache
def _remove_litter_once(folder: str) -> None:
    """Remove the litter of a folder when this process first writes there.

    It does not repeat this at every write: a folder may hold 100,000 images, and a sweep writes thousands of heads.
    """
    remove_litter(Path(folder))


def _last_change(litter: Path) -> float:
    """Return the time of the last change of a file, or of a folder and everything in it."""
    return max(entry.lstat().st_mtime for entry in (litter, *litter.rglob("*")))


def _fault(action: str, path: Path, error: OSError) -> DiskFault:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = "Free some space or choose another place" if is_full else "Choose another place"
    return DiskFault(f"Cannot {action} {path}: {error.strerror or error}. {advice}")


def _temporary(path: Path) -> tuple[int, Path]:
    """Create a temporary file beside `path`; return its handle and its path."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    for attempts_left in reversed(range(ATTEMPTS)):
        if not path.parent.is_dir():
            make_folder(path.parent)
        _remove_litter_once(os.path.abspath(path.parent))
        # With O_EXCL, two processes never share a temporary file.
        temporary = path.parent / _temporary_name(path)
        try:
            return os.open(temporary, flags, 0o666), temporary
        except (FileNotFoundError, FileExistsError):  # another process has just removed the empty folder
            if not attempts_left:
                raise
    raise AssertionError


def _rename(temporary: Path, path: Path) -> None:
    try:
        os.replace(temporary, path)
    except FileNotFoundError as error:
        if path.parent.is_dir():  # then the temporary file is missing: another process has called `overtake`
            raise Overtaken(path) from error
        raise


def _temporary_name(path: Path) -> str:
    """Return a new name that tells the machine, the process, and the file or folder that it will become."""
    return f".tmp-{_host()}+{os.getpid()}+{_tag(path)}+{secrets.token_hex(4)}"


def _is_temporary_of(name: str, path: Path) -> bool:
    match = TEMPORARY.fullmatch(name)
    return match is not None and match["of"] == _tag(path)


def _tag(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]


def _behind_links(path: Path) -> Path:
    """Return the file behind a link, so that the link stays a link when the file is replaced."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@cache
def _host() -> str:
    """Return a name of this machine and container. In another one, the same process number is another process."""
    namespace = 0
    with suppress(OSError):
        namespace = os.stat("/proc/self/ns/pid").st_ino
    return f"{platform.node()}-{namespace}".replace("/", "_").replace("+", "_")


def _alive(process: int) -> bool:
    """Return whether a process of this machine is running; True if nobody can tell."""
    if os.name != "posix":
        return True
    try:
        # Signal 0 does nothing to the process, and fails if there is none.
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> int:
    """Write arrays as an .npz file, whole or not at all, and return its size in bytes."""
    import numpy as np  # not above: `featcache doctor` uses this module where NumPy is broken

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    content = buffer.getvalue()
    write_whole(path, content)
    return len(content)


def read_arrays(path: Path) -> dict[str, Any]:
    """Return all arrays of an .npz file. It reads each of them at once, so that damage shows here.

    Raises whatever NumPy and zipfile raise on a damaged file.
    """
    import numpy as np  # not above: see `write_arrays`

    content = path.read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        for member in file.zip.infolist():
            with file.zip.open(member) as stream:
                _check_length(stream, member.file_size)
        return {name: file[name] for name in file.files}


def _check_length(stream: Any, size: int) -> None:
    """Raise ValueError if an .npy file of this size declares more numbers than it holds.

    NumPy would allocate memory for all of them before it reads the first.
    """
    from numpy.lib import format as npy

    if npy.read_magic(stream) == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(stream)
    else:
        shape, _, dtype = npy.read_array_header_2_0(stream)
    declared = math.prod(shape) * dtype.itemsize
    if declared > size:
        raise ValueError(f"an array of {declared} bytes is declared in {size} bytes")


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_whole(path, _indented(value))


def _indented(value: object) -> bytes:
    text = json.dumps(value, indent=2, ensure_ascii=True)
    return f"{text}\n".encode()


def read_json(path: Path, error_class: type[DataError] = DataError) -> Any:
    """Return the content of a JSON file. Raises `error_class`, with the path, if the file is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise_if_of_the_system(path, error)
        raise error_class(f"Cannot read {path}: {error}") from error


def write_sealed(path: Path, facts: Mapping[str, Any], unchanged: Callable[[], bool] = lambda: True) -> None:
    """Write facts as JSON with a digest of them, whole or not at all, so that `check_seal` notices any change.

    unchanged: see `writing`.
    """
    with writing(path, unchanged) as sink:
        sink.write(sealed(facts))


def sealed(facts: Mapping[str, Any]) -> bytes:
    """Return facts as JSON with a digest of them."""
    plain = json.loads(json.dumps(facts))  # the digest covers the facts as a reader will see them
    plain.pop(SEAL, None)  # the seal of the file that the facts were read from
    return _indented({**plain, SEAL: _digest_of(plain)})


def check_seal(facts: dict[str, Any], path: Path, error_class: type[DataError], do: str) -> dict[str, Any]:
    """Return the facts of `write_sealed` without their digest. Raises `error_class` if they do not match it.

    do: what the user should do then.
    """
    plain = {name: value for name, value in facts.items() if name != SEAL}
    if facts.get(SEAL) != _digest_of(plain):
        raise error_class(f"{path} was changed after it was written, or is damaged: it does not match its digest. {do}")
    return plain


def _digest_of(facts: Mapping[str, Any]) -> str:
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def reserve(handle: int, num_bytes: int) -> None:
    """Reserve the space of an empty file on the disk. Raises OSError if there is not enough.

    A process that writes to a mapped file without that space is killed (SIGBUS), with no error to report.
    """
    try:
        os.posix_fallocate(handle, 0, num_bytes)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in CANNOT_RESERVE:
            raise
        _fill(handle, num_bytes)


def _fill(handle: int, num_bytes: int) -> None:
    """Write zeros, which takes the space on any file system."""
    zeros = bytes(2**20)
    remaining = num_bytes
    while remaining:
        remaining -= os.write(handle, zeros[:remaining])  # which may write less than it was given


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power loss, if the file system can do that."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in {*CANNOT_SYNC, TIDIED_AWAY}:
            raise
