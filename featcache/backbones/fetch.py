"""Download ImageNet weights in advance, and repair what a broken download left behind.

The constructor of a network makes Keras download straight to the final name. So a killed download leaves a part of the
file, which Keras later takes for the complete file. Only building the network shows that the weights are complete. A
file that is not Keras' own may be somebody's work, so it is renamed and never removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from featcache.backbones.build import build
from featcache.backbones.parse import Request, requests
from featcache.backbones.registry import get
from featcache.backbones.weights import check_writable, file_of, spelt
from featcache.errors import UsageError, WeightsMismatch, WeightsMissing
from featcache.files import rename
from featcache.spec import BackboneSpec, Progress, Tick, silent


@dataclass(frozen=True)
class Fetched:
    """The complete weights of one backbone."""

    backbone: str
    file: str
    bytes: int
    downloaded: bool  # False if the file was there already


def fetch(backbones: str | Sequence[str], progress: Progress = silent) -> list[Fetched]:
    """Return the files of the ImageNet weights of these backbones. Missing or broken ones are downloaded.

    backbones: names with options, as in `extract`. A file that is broken or not Keras' own is renamed to FILE.kept,
    unless the download fails. A broken download is repeated once. What pip installs is only checked.
    Raises UsageError (before anything is downloaded), WeightsMissing without network, DiskFault.
    """
    parsed = requests(backbones)
    files = [_file_of(request) for request in parsed]  # check all names before the first download
    fetched: list[Fetched] = []
    for request, file in zip(parsed, files, strict=True):
        fetched.append(_fetch(request.spec, request.preprocess.size, file, progress))
    return fetched


def _file_of(request: Request) -> Path:
    """Return the path for the ImageNet weights. Raises UsageError if the backbone has none."""
    spec = request.spec
    size = request.preprocess.size
    if spec.origin != "registry" or spec.weights != "imagenet":
        raise UsageError(f"'{spec.name}' does not use ImageNet weights, so there is nothing to fetch")
    file = file_of(spec, size)
    if file is None:
        raise UsageError(f"There are no ImageNet weights of {spelt(spec, size)}: Keras has them for some alphas only")
    return file


def _fetch(spec: BackboneSpec, size: int, file: Path, progress: Progress) -> Fetched:
    if get(spec.name).package:  # pip put the file there, so it is not for us to replace
        build(spec, size, "avg")
        return Fetched(spelt(spec, size), str(file), file.stat().st_size, downloaded=False)
    if file.exists():
        try:
            # Only building the network shows that its weights are complete.
            build(spec, size, "avg")
            return Fetched(spelt(spec, size), str(file), file.stat().st_size, downloaded=False)
        except WeightsMismatch:
            pass  # it is renamed and replaced below
    with _set_aside(file, progress):
        _download(spec, size, file, progress)
    return Fetched(spelt(spec, size), str(file), file.stat().st_size, downloaded=True)


@contextmanager
def _set_aside(file: Path, progress: Progress) -> Iterator[None]:
    """Rename a file that is in the way, and rename it back if no new file has come by the end."""
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
    """Let Keras download a file, at most twice. A broken download is removed."""
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
        f"The download of the ImageNet weights of '{spec.name}' is broken. Does a proxy answer instead? On "
        f"a machine with another network run featcache backbones fetch {spelt(spec, size)}, then put {file.name} into "
        f"{file.parent}"
    )
