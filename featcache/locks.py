"""A lock between processes. It saves work where the file system has locks; elsewhere the work runs without it.

NFS without lockd answers ENOLCK, Lustre without `-o flock` ENOSYS, some FUSE mounts EOPNOTSUPP. So everything must be
correct without a lock, too: files are written whole, and a process notices if another one has replaced what it read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

# Newer versions of filelock write a marker file where there are no locks. A killed process leaves it behind, another
# machine cannot tell that the process has ended, and the work would wait forever.
NO_MARKERS: dict[str, Any] = {"fallback_to_soft": False} if hasattr(FileLock, "fallback_to_soft") else {}


@contextmanager
def locked(file: Path, busy: Callable[[], None]) -> Iterator[bool]:
    """Hold the lock of a file while the block runs. Gives whether another process held it first.

    busy: called if another process holds the lock, before waiting for it. If locking fails for any other reason, there
    are no locks here: the block runs at once, and if the disk is at fault, the first write reports it.
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
        # The other process may have removed the folder; the block then runs without the lock.
        with suppress(OSError, NotImplementedError):
            lock.acquire()
    try:
        yield waited
    finally:
        lock.release()
