"""Where the files of a run lie, and which folder is free for a new one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path


def head_file(run: Path, name: int | str) -> Path:
    """Return where the arrays of a trial's head lie, by its number, or those of "refit"."""
    return run / "heads" / f"{name}.npz"


def predictions_file(run: Path, trial: int | str) -> Path:
    """Return where the predictions of a trial lie, on the images that chose."""
    return run / "predictions" / f"{trial}.npz"


def free_folder(wanted: Path) -> Path:
    """Return `wanted`, or the first of wanted-2, wanted-3 .. that does not exist: photos.run, photos-2.run .."""
    return next(path for path in numbered(wanted) if not path.exists())


def numbered(path: Path) -> Iterator[Path]:
    """Yield photos.run, photos-2.run, photos-3.run .. without end."""
    yield path
    suffix = ".run" if path.suffix == ".run" else ""
    for number in count(2):
        yield path.with_name(f"{path.name.removesuffix(suffix)}-{number}{suffix}")
