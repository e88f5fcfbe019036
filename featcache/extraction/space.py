"""Refuse an extraction that its disk cannot hold, before the disk is full."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from featcache.cache.layout import table_of
from featcache.errors import DiskFault


class Space:
    """Counts the bytes that an extraction will write to the disk of its cache."""

    def __init__(self, out: Path, in_parts: bool) -> None:
        self._out = out
        self._in_parts = in_parts  # the cache is a folder of parts, which is never merged into one file
        self._num_bytes = 0

    def reserve(self, num_bytes: int) -> None:
        """Count the rows to come of one more network. Raises DiskFault if the disk cannot hold them."""
        self._num_bytes += num_bytes
        needed = self._num_bytes
        if not self._in_parts:
            # Until the merged file replaces the old one, the disk holds both, and the parts.
            table = table_of(self._out)
            old_bytes = table.stat().st_size if table.exists() else 0
            needed += self._num_bytes + old_bytes
        free = free_bytes(self._out)
        if needed > free:
            raise DiskFault(
                f"{self._out} would need {needed / 1e6:.0f} MB until it is merged, and its disk has "
                f"{free / 1e6:.0f} MB free. Free some space or choose another place"
            )


def free_bytes(out: Path) -> int:
    """Return the free bytes on the disk of a cache that need not exist yet."""
    folder = next(folder for folder in Path(os.path.abspath(out)).parents if folder.is_dir())
    return shutil.disk_usage(folder).free
