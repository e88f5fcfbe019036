"""Download ImageNet weights and presets in advance, and repair what a broken download left behind.

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

from featcache.backbones import hub
from featcache.backbones.build import build
from featcache.backbones.hub_download import Convert, Download, by_keras_hub, convert_by_keras_hub, provide
from featcache.backbones.parse import Request, backbones_in, requests
from featcache.backbones.registry import get
from featcache.backbones.weights import check_writable, file_of, spelt
from featcache.errors import NotAModel, UsageError, WeightsMismatch, WeightsMissing
from featcache.files import rename
from featcache.spec import BackboneSpec, Progress, Tick, silent


@dataclass(frozen=True)
class Fetched:
    """The complete weights of one backbone, in a file or, of a preset of keras-hub, in a folder."""

    backbone: str
    file: str
    bytes: int
    downloaded: bool  # False if the file was there already


def fetch(
    backbones: str | Sequence[str],
    progress: Progress = silent,
    download: Download = by_keras_hub,
    convert: Convert = convert_by_keras_hub,
) -> list[Fetched]:
    """Return where the weights of these backbones are. Missing or broken ones are downloaded.

    backbones: names with options, as in `extract`. A file of ImageNet weights that is broken or not Keras' own is
    renamed to FILE.kept, unless the download fails. A broken download is repeated once. What pip installs is only
    checked. download, convert: how presets of keras-hub are brought here.
    Raises UsageError (before anything is downloaded), WeightsMissing without network, DiskFault.
    """
    texts = backbones_in(backbones)
    # Check all names before the first download.
    presets = {text: parsed[0] for text in texts if (parsed := hub.parse(text))}
    others = [text for text in texts if text not in presets]
    files = {request: _file_of(request) for request in requests(others)} if others else {}

    fetched: list[Fetched] = []
    for spec in presets.values():
        fetched.append(_fetch_preset(spec, progress, download, convert))
    for request, file in files.items():
        fetched.append(_fetch(request.spec, request.preprocess.size, file, progress))
    return fetched


def _fetch_preset(spec: BackboneSpec, progress: Progress, download: Download, convert: Convert) -> Fetched:
    """Return the folder of a preset, which was built once to see that it is complete."""

    def say(text: str) -> None:
        progress(Tick("weights", 0, 0, text))

    is_new = provide(spec, say, download, convert)
    folder = hub.folder_of(spec)
    preset = hub.read(spec)
    if preset.size:
        try:
            build(spec, preset.size, "avg")
        except NotAModel as error:
            raise WeightsMismatch(f"{error}. Remove {folder} and fetch it again") from error
    num_bytes = sum(file.stat().st_size for file in hub.weights_of(folder))
    return Fetched(hub.spelt(spec), str(folder), num_bytes, is_new)


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
