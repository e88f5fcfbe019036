"""The user's cache folder: what featcache makes once on a machine, and may lose at any time.

    networks/       backbones and models as OpenVINO converted them, each with a proof that it agrees with Keras
    refused/        models that OpenVINO cannot compute, so that it does not try again
    calibrations/   which images gave which 8-bit network
    weights/        the digest of the weight values that each file of weights gave

The variable FEATCACHE_HOME names the folder. Set to nothing, it turns the folder off: nothing is read or kept.
Files are written whole. Whoever reads one checks that it is what it should be. Trouble with the folder never stops
the work: then nothing is found in it, or nothing is kept, and one line says why.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.errors import DataError, DiskFault, FeatcacheError
from featcache.files import Sink, check_seal, make_folder, matching, read_json, remove, sealed, writing

VARIABLE = "FEATCACHE_HOME"
ELSEWHERE = f"Set {VARIABLE} to a folder that only you can write to"
NOT_KEPT = "Nothing is kept for a faster start next time"
KINDS = ("networks", "refused", "calibrations", "weights")
DAY_S = 86_400


@dataclass(frozen=True)
class KeptFile:
    """A file in the folder."""

    path: Path
    num_bytes: int
    unused_s: float  # since it was last written or read


def home() -> Path | None:
    """Return the folder, which may not exist yet; None if it is turned off or the user has no home folder."""
    text = os.environ.get(VARIABLE)
    if text is not None:
        # Not `Path.expanduser`, which raises an error for an unknown user.
        return Path(os.path.expanduser(text)) if text else None
    from platformdirs import user_cache_path

    folder = user_cache_path("featcache", appauthor=False)
    return folder if folder.is_absolute() else None


def can_keep(say: Callable[[str], None]) -> bool:
    """Return whether a file can be kept. If not, `say` receives the reason, unless the folder is turned off.

    Makes the folder if it is missing.
    """
    folder = home()
    if folder is None:
        return False
    try:
        make_folder(folder)
        reason = _distrust(folder)
    except FeatcacheError as error:
        reason = str(error)
    if reason is None and not os.access(folder, os.W_OK | os.X_OK):
        reason = f"{folder} cannot be written to"
    if reason is not None:
        say(f"{NOT_KEPT}: {reason}. {ELSEWHERE}")
    return reason is None


def find(name: str) -> Path | None:
    """Return a kept file, and note that it was used; None if there is none that can be trusted."""
    folder = home()
    if folder is None or _distrust(folder):
        return None
    path = folder / name
    with suppress(OSError):  # a folder that this user may not read, or a name that is too long
        if path.is_file():
            with suppress(OSError):  # a read-only folder
                os.utime(path)
            return path
    return None


def keep(name: str, write: Callable[[Sink], object], say: Callable[[str], None] = lambda text: None) -> None:
    """Keep a file that `write` writes. If that is impossible, `say` receives one line and the work goes on."""
    folder = home()
    if folder is None or not can_keep(say):
        return
    path = folder / name
    try:
        make_folder(path.parent)
        with writing(path) as sink:
            write(sink)
    except DiskFault as error:
        say(f"{NOT_KEPT}: {error}. {ELSEWHERE}")


def find_facts(name: str) -> dict[str, Any] | None:
    """Return what `keep_facts` kept; None if there is nothing that can be trusted, or if it is damaged."""
    path = find(name)
    if path is None:
        return None
    try:
        return check_seal(read_json(path), path, DataError, "It is made again")
    except (FeatcacheError, AttributeError):  # the latter if the file holds a list or a number
        return None


def keep_facts(name: str, facts: Mapping[str, Any]) -> None:
    """Keep facts as JSON with a digest of them, or nothing where nothing can be kept."""
    keep(name, lambda sink: sink.write(sealed(facts)))


def entries() -> list[KeptFile]:
    """Return the files in the folder, the most recently used first. Raises DiskFault if it cannot be read."""
    folder = home()
    files: list[KeptFile] = []
    if folder is None:
        return files
    now = time.time()
    # Only names of ours: the variable may name a folder that holds other files, too.
    for kind in KINDS:
        pattern = "*.npz" if kind == "networks" else "*.json"
        for path in matching(folder / kind, pattern):
            with suppress(FileNotFoundError):  # another process has removed it
                facts = path.stat()
                files.append(KeptFile(path, facts.st_size, max(0.0, now - facts.st_mtime)))
    return sorted(files, key=lambda entry: (entry.unused_s, entry.path))


def prune(days: float = 0.0) -> list[KeptFile]:
    """Remove the files that were not used for this many days, and return them. Raises DiskFault."""
    pruned = [entry for entry in entries() if entry.unused_s >= days * DAY_S]
    for entry in pruned:
        remove(entry.path)
    return pruned


def _distrust(folder: Path) -> str | None:
    """Return why the files in a folder cannot be trusted: another user may have put them there."""
    try:
        facts = folder.stat()
    except OSError:
        return None  # there is nothing in it
    if not hasattr(os, "getuid"):
        return None  # Windows keeps the folder in the user's profile
    if facts.st_uid not in (os.getuid(), 0):
        return f"{folder} belongs to another user"
    if facts.st_mode & stat.S_IWOTH:
        return f"{folder} can be written to by everybody"
    return None
