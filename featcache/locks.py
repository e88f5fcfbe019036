"""A lock between processes that saves work where the file system has locks, and is left out where it has none.

NFS without lockd answers ENOLCK, Lustre without `-o flock` ENOSYS, some FUSE mounts EOPNOTSUPP. So nothing may be wrong
without a lock: every file is written whole, under a name that tells what is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

# Newer versions of filelock put a marker file where there are no locks. A killed process leaves it behind, and on
# another machine nobody can tell that the process is gone: the work would wait for ever.
NO_MARKERS: dict[str, Any] = {"fallback_to_soft": False} if hasattr(FileLock, "fallback_to_soft") else {}


@contextmanager
def locked(file: Path, busy: Callable[[], None]) -> Iterator[bool]:
    """Hold the lock of a file while the block runs; give whether it had to wait for another process.

    busy: called if another process holds the lock; when it returns, the lock is waited for.
    Any other failure means that there are no locks here: the block runs at once, and writing says what is wrong.
    """
    lock = FileLock(file, **NO_MARKERS)
    waited = False
    with suppress(OSError, NotImplementedError):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            waited = True
    if waited:
        busy()
        with suppress(OSError, NotImplementedError):  # the other process may have removed the folder
            lock.acquire()
    try:
        yield waited
    finally:
        lock.release()
