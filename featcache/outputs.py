"""The one rule for what a command writes over.

    at the path lies                              it is
    nothing, or an empty file or folder           written
    an earlier output of the very same kind       replaced: scripts run every day under fixed names
    anything else                                 kept, unless the user says --force
    what the command itself reads                 kept, even with --force
    a folder where a file belongs, a device, a pipe: kept, even with --force

Every format tells its own files by something inside them, not by their names: see the `Kind`s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from featcache.errors import UsageError
from featcache.files import check_writable, require_regular


@dataclass(frozen=True)
class Kind:
    """One kind of output: what it is called, and how to recognise it."""

    name: str  # "report of featcache"
    is_ours: Callable[[Path], bool]  # asked about a file, or a folder, that is there; may raise what its reader raises
    is_folder: bool = False
    otherwise: str = ""  # what to say of any other file, if not that it "is no report of featcache"


def check_output(
    path: Path, kind: Kind, *, inputs: Iterable[Path] = (), around: Iterable[Path] = (), force: bool = False
) -> None:
    """Raise UsageError if what lies at `path` is to be kept, DiskFault if nothing can be written there.

    To be called before the long work, and once more before the file takes its name. inputs: what the command reads; a
    folder among them stands for all that it holds. around: folders of which only a part is read; a folder at `path` may
    not hold them. force: replace files of any other origin, too.
    """
    require_regular(path)
    if path.is_dir() and not kind.is_folder:
        raise UsageError(f"{path} is a folder, but a {kind.name} is a file. Give the name of a file")
    if os.path.lexists(path):
        _check_kept(path, kind, list(inputs), force)
    if path.is_dir():
        for place in (Path.cwd(), *around):
            check_unread(path, place)
            if _is_within(place, path):
                raise _is_read(path, place)
    check_writable(path)


def _check_kept(path: Path, kind: Kind, inputs: list[Path], force: bool) -> None:
    """Raise UsageError if what is there is to be kept."""
    may_go = _is_empty(path) or _is_ours(path, kind)
    for read in inputs:
        check_unread(path, read)
        is_inside = not may_go and _is_within(path, read)
        is_around = kind.is_folder and _is_within(read, path)
        if is_inside or is_around:
            raise _is_read(path, read)
    if not may_go and not force:
        what = kind.otherwise or f"is no {kind.name}"
        raise UsageError(
            f"{path} is there already and {what}, so it is kept. Give another name, or --force to replace it"
        )


def check_unread(path: Path, read: Path) -> None:
    """Raise UsageError if a path to write is a file that the command reads, also by another name."""
    with suppress(OSError, ValueError):
        if os.path.samefile(path, read):
            raise _is_read(path, read)


def _is_read(path: Path, read: Path) -> UsageError:
    what = "it" if path == read else str(read)
    return UsageError(
        f"{path} is kept, even with --force, because this command uses {what}. Give another name for the output"
    )


def _is_empty(path: Path) -> bool:
    """Return whether nothing is lost: an empty file, an empty folder, or a link to a place where there is nothing."""
    if path.is_dir():
        return not any(path.iterdir())
    return not path.exists() or path.stat().st_size == 0


def _is_ours(path: Path, kind: Kind) -> bool:
    try:
        return path.is_dir() == kind.is_folder and kind.is_ours(path)
    except Exception:  # readers raise almost anything about files of others
        return False


def _is_within(path: Path, folder: Path) -> bool:
    """Return whether a path lies in a folder, also behind links."""
    return folder.is_dir() and Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents
