"""Download ImageNet weights beforehand, and repair what a broken download left.

Keras downloads, through the constructor of the network, to the name that the file keeps. So a download that was killed
leaves a stump which Keras takes as good: only building the network tells that the weights are whole. A file that is not
Keras' own may be somebody's work: it is renamed and never removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from featcache.backbones.build import build
from featcache.backbones.parse import Request, requests
from featcache.backbones.weights import check_writable, file_of, spelt
from featcache.errors import UsageError, WeightsMismatch, WeightsMissing
from featcache.files import rename
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

    backbones: names with options, as in `extract`. A file that is broken or not Keras' own is renamed to FILE.kept,
    unless the download fails. A download that is broken is made again, once.
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
    if file.exists():
        try:
            build(spec, size, "avg")
            return Fetched(spelt(spec, size), str(file), file.stat().st_size, downloaded=False)
        except WeightsMismatch:
            pass  # it is replaced below
    with _kept(file, progress):
        _download(spec, size, file, progress)
    return Fetched(spelt(spec, size), str(file), file.stat().st_size, downloaded=True)


@contextmanager
def _kept(file: Path, progress: Progress) -> Iterator[None]:
    """Give a file that is in the way another name, and its own again if nothing takes its place meanwhile."""
    if not file.exists():
        yield
        return
    kept = _free_name(file)
    progress(Tick("weights", 0, 0, f"{file} ({file.stat().st_size} bytes) is not Keras' own: renamed to {kept.name}"))
    rename(file, kept)
    try:
        yield
    finally:
        if not file.exists():
            rename(kept, file)
            progress(Tick("weights", 0, 0, f"{kept.name} was renamed to {file.name} again"))


def _free_name(file: Path) -> Path:
    """Return FILE.kept, or FILE.kept2 and so on if there are such files already."""
    for number in count(1):
        kept = file.with_name(f"{file.name}.kept{number if number > 1 else ''}")
        if not kept.exists():
            return kept
    raise AssertionError


def _download(spec: BackboneSpec, size: int, file: Path, progress: Progress) -> None:
    """Have Keras download a file, at most twice; what it leaves of a broken download is removed."""
    for _ in range(2):
        check_writable(file)
        progress(Tick("weights", 0, 0, f"downloading the ImageNet weights of {spec.name}, once"))
        try:
            build(spec, size, "avg")
            return
        except WeightsMismatch:
            progress(Tick("weights", 0, 0, f"{file} ({file.stat().st_size} bytes) is broken and was removed"))
            file.unlink()
    raise WeightsMissing(
        f"What came as the ImageNet weights of '{spec.name}' is broken. Is there a proxy that answers instead? On "
        f"a machine with another network run featcache backbones fetch {spelt(spec, size)}, then put {file.name} into "
        f"{file.parent}"
    )
