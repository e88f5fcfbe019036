"""The one rule for what a command may overwrite.

    at the path there is                          the command
    nothing, or an empty file or folder           writes its output
    an earlier output of the same kind            replaces it: scripts run every day under fixed names
    anything else                                 keeps it, unless the user says --force
    a file that the command itself reads          keeps it, even with --force
    a folder in place of a file, a device, a pipe keeps it, even with --force

Each `Kind` recognises its files by their content, not by their names.
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
    is_ours: Callable[[Path], bool]  # of an existing file or folder; may raise what its reader raises
    is_folder: bool = False
    otherwise: str = ""  # says what any other file is, in place of "is no report of featcache"


def check_output(
    path: Path, kind: Kind, *, inputs: Iterable[Path] = (), around: Iterable[Path] = (), force: bool = False
) -> None:
    """Raise UsageError if the file or folder at `path` must be kept, DiskFault if nothing can be written there.

    Call it before the long work, and again before the file takes its name. inputs: what the command reads; a folder
    stands for everything in it. around: folders of which the command reads only a part; a folder at `path` must not
    contain them. force: also replace files that are not of this kind.
    """
    require_regular(path)
    if path.is_dir() and not kind.is_folder:
        raise UsageError(f"{path} is a folder, but a {kind.name} is a file. Give the name of a file")
    if os.path.lexists(path):
        _check_kept(path, kind, list(inputs), force)
    if path.is_dir():
        # A folder that is replaced takes everything in it along, the current folder as well.
        for place in (Path.cwd(), *around):
            check_unread(path, place)
            if _is_within(place, path):
                raise _is_read(path, place)
    check_writable(path)


def _check_kept(path: Path, kind: Kind, inputs: list[Path], force: bool) -> None:
    """Raise UsageError if the existing file or folder at `path` must be kept."""
    may_go = _is_empty(path) or _is_ours(path, kind)
    for read in inputs:
        check_unread(path, read)
        is_inside = not may_go and _is_within(path, read)
        is_around = kind.is_folder and _is_within(read, path)
        if is_inside or is_around:
            raise _is_read(path, read)
    if not may_go and not force:
        description = kind.otherwise or f"is no {kind.name}"
        raise UsageError(
            f"{path} is there already and {description}, so it is kept. Name another, or replace it with `force=True`"
        )


def check_unread(path: Path, read: Path) -> None:
    """Raise UsageError if the output is a file that the command reads, even under another name."""
    with suppress(OSError, ValueError):
        if os.path.samefile(path, read):
            raise _is_read(path, read)


def _is_read(path: Path, read: Path) -> UsageError:
    """Return the error for an output that would replace what the command reads."""
    used = "it" if path == read else str(read)
    return UsageError(
        f"{path} is kept, even with `force=True`, because this command uses {used}. Give another name for the output"
    )


def _is_empty(path: Path) -> bool:
    """Return whether nothing would be lost: an empty file or folder, or a link to a path that does not exist."""
    if path.is_dir():
        return not any(path.iterdir())
    return not path.exists() or path.stat().st_size == 0


def _is_ours(path: Path, kind: Kind) -> bool:
    try:
        return path.is_dir() == kind.is_folder and kind.is_ours(path)
    except Exception:  # readers raise almost anything on files of other programs
        return False


def _is_within(path: Path, folder: Path) -> bool:
    """Return whether a path lies in a folder, even behind links."""
    if not folder.is_dir():
        return False
    real_path = Path(os.path.realpath(path))
    return Path(os.path.realpath(folder)) in real_path.parents
