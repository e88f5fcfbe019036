"""Download ImageNet weights beforehand, and repair what a broken download left.

Keras downloads, through the constructor of the network, to the name that the file keeps. So a download that was killed
leaves a stump which Keras takes as good: only building the network tells that the weights are whole.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache.backbones.build import build
from featcache.backbones.parse import Request, requests
from featcache.backbones.weights import file_of, keras_home, spelt
from featcache.errors import DiskFault, UsageError, WeightsMismatch, WeightsMissing
from featcache.spec import BackboneSpec, Progress, Tick, silent


@dataclass(frozen=True)
class Fetched:
    """The weights of one backbone, which are whole."""

    backbone: str
    file: str
    bytes: int
    downloaded: bool  # False: it was there already


def fetch(backbones: str | Sequence[str], progress: Progress = silent) -> list[Fetched]:
    """Return where the ImageNet weights of these backbones are, downloading those that are missing or broken.

    backbones: names with options, as in `extract`. A file that does not load is removed and downloaded again, once.
    Raises UsageError (before anything is downloaded), WeightsMissing without network, DiskFault.
    """
    wanted = [(one, _file_of(one)) for one in requests(backbones)]
    return [_fetched(one.spec, one.preprocess.size, file, progress) for one, file in wanted]


def _file_of(request: Request) -> Path:
    """Return the file of the ImageNet weights. Raises UsageError where there are none."""
    spec, size = request.spec, request.preprocess.size
    if spec.origin != "registry" or spec.weights != "imagenet":
        raise UsageError(f"'{spec.name}' as asked takes no ImageNet weights, so there is nothing to fetch")
    file = file_of(spec, size)
    if file is None:
        raise UsageError(f"There are no ImageNet weights of {spelt(spec, size)}: Keras has them for some alphas only")
    return file


def _fetched(spec: BackboneSpec, size: int, file: Path, progress: Progress) -> Fetched:
    before = _stamp(file)
    for _ in range(2):
        if not file.exists():
            _check_writable(keras_home())
            progress(Tick("weights", 0, 0, f"downloading the ImageNet weights of {spec.name}, once"))
        try:
            build(spec, size, "avg")
            return Fetched(spelt(spec, size), str(file), file.stat().st_size, _stamp(file) != before)
        except WeightsMismatch:
            progress(Tick("weights", 0, 0, f"{file} ({file.stat().st_size} bytes) is broken and was removed"))
            file.unlink()
    raise WeightsMissing(
        f"What came as the ImageNet weights of '{spec.name}' is broken. Is there a proxy that answers instead? On "
        f"a machine with another network run featcache backbones fetch {spelt(spec, size)}, then put {file.name} into "
        f"{file.parent}"
    )


def _check_writable(folder: Path) -> None:
    """Raise DiskFault if Keras would silently download to another folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise DiskFault(f"{folder} cannot be written to. Set KERAS_HOME to a folder that can")


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is written anew; None if there is none."""
    if not file.exists():
        return None
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
