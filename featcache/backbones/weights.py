"""Where a backbone's weights come from, told without importing Keras.

The digest of the weight *values* is part of a tap's fingerprint, but values are only known once the
network is built, which takes seconds. `source` names where the values come from: the digest of the file,
or the seed and version of the random initialiser. A cache remembers which source gave which values, so
that a second extraction needs neither Keras nor the network.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from http.client import HTTPException
from importlib.metadata import version
from pathlib import Path
from typing import Any

from featcache import home
from featcache.backbones import efficientnet_lite, glyphnet, hub, saved
from featcache.backbones.registry import Entry, get, weights_file
from featcache.backend import keras_backend, keras_home
from featcache.errors import DiskFault, FeatcacheError, NotDownloaded, UsageError, WeightsMismatch, WeightsMissing
from featcache.files import DISK_ERRORS, file_digest, raise_if_of_the_system
from featcache.provenance import installed_version
from featcache.spec import BackboneSpec, digest_of

_HDF5 = b"\x89HDF\r\n\x1a\n"
_HEAD = 52  # bytes that hold its superblock, and less than any HDF5 file with something in it
_END_AT = {0: 40, 1: 44, 2: 28, 3: 28}  # where it says how long the file is, by its version
_NO_DOWNLOAD, _NO_HASH, _DOWNLOADING = "URL fetch failure", "Incomplete or corrupted file", "Downloading data"  # Keras


def file_of(spec: BackboneSpec, size: int) -> Path | None:
    """Return the file that holds, or will hold, the weights; None for random weights.

    Raises WeightsMissing if a file given by the user does not exist, UsageError if it cannot be used.
    """
    if spec.weights in ("none", "") or spec.origin == "import":
        return None
    if spec.origin == "file":
        return Path(spec.weights)
    if spec.origin == "hub":
        return hub.folder_of(spec)
    if spec.weights == "embedded":
        return glyphnet.WEIGHTS
    if spec.weights == "imagenet":
        return imagenet_file(get(spec.name), dict(spec.options), size)
    path = Path(spec.weights)
    if not path.is_file():
        raise WeightsMissing(f"`weights` takes imagenet, none or a file; there is no file {path}")
    if get(spec.name).constructor.startswith("EfficientNetB"):
        raise UsageError(
            f"{get(spec.name).constructor} builds another graph for a file than for ImageNet weights (Keras 3). "
            f"Put the file at {file_of(replace(spec, weights='imagenet'), size)} and use `weights='imagenet'`, if it "
            "is Keras' own; otherwise save the whole network (model.save) and use `backbone='MODEL.keras'`"
        )
    return path


def imagenet_file(entry: Entry, options: Mapping[str, Any], size: int, top: bool = False) -> Path | None:
    """Return the file that holds, or will hold, the ImageNet weights without top or with it; None if there are none."""
    if entry.package:
        return efficientnet_lite.weights_path(entry.name)
    name = weights_file(entry, options, size, top)
    return keras_home() / "models" / name if name else None


def source(spec: BackboneSpec, size: int) -> str | None:
    """Return a text that determines the weight values, or None where only building tells.

    Raises WeightsMissing if a package with the weights is not installed: building cannot download it.
    """
    if spec.weights in ("none", ""):
        # Random values depend on the seed, and on how this version of Keras draws them.
        return f"random seed {spec.seed} keras {version('keras')} {keras_backend()}"
    if spec.origin == "hub":
        return hub.source(spec)
    if spec.weights == "imagenet":
        efficientnet_lite.require_installed(spec.name)
    file = file_of(spec, size)
    if file is not None and spec.origin == "file" and saved.is_saved(file):
        return f"sha256 {' '.join(saved.digests(file))}"
    return f"sha256 {file_digest(file)}" if file is not None and file.is_file() else None


def known_digests(spec: BackboneSpec, size: int, source: str | None) -> tuple[str, str] | None:
    """Return the digests of weight values and architecture that an earlier process found; None if it is not known.

    source: `source` of the weights. It holds the digest of their file, so another file is another source.
    """
    facts = None if source is None else home.find_facts(_record(spec, size, source))
    return None if facts is None else (str(facts["weights"]), str(facts["architecture"]))


def remember_digests(spec: BackboneSpec, size: int, source: str | None, digests: tuple[str, str]) -> None:
    """Have later processes know the digests of weight values and architecture without building the network."""
    if source is None:
        return
    weights, architecture = digests
    facts = {"weights": weights, "architecture": architecture, "source": source}
    home.keep_facts(_record(spec, size, source), facts)


def _record(spec: BackboneSpec, size: int, source: str) -> str:
    libraries = ("featcache", "keras", "keras-hub") if spec.origin == "hub" else ("featcache", "keras")
    versions = {name: installed_version(name) for name in libraries}
    return f"weights/{digest_of({'backbone': asdict(spec), 'size': size, 'source': source, **versions})}.json"


def damage(file: Path) -> str | None:
    """Return what is wrong with an HDF5 file as a file; None if it is as long as its own beginning says.

    Keras downloads to the final name, so what a broken download leaves is taken as good from then on.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(_HEAD)
    if size == 0:
        return "is empty"
    if len(head) < _HEAD or not head.startswith(_HDF5):
        return f"has {size} bytes, which are no HDF5"
    # Byte 8 is the version of the superblock; of an unknown one nothing can be told.
    at = _END_AT.get(head[8])
    end = int.from_bytes(head[at : at + 8], "little") if at else size
    return f"has {size} of {end} bytes" if size < end else None


def check_download(file: Path) -> None:
    """Raise DiskFault or WeightsMissing if Keras would download the weights to another place than this file."""
    check_writable(file)
    from keras.src.backend import config

    home = keras_home()
    used = os.path.expanduser(config.keras_home())  # Keras reads the variable once, when it is imported
    if os.path.realpath(used) != os.path.realpath(home):
        raise WeightsMissing(
            f"{file} is missing, and Keras would download it to {used}: Keras was imported before KERAS_HOME was "
            f"{home}. Set KERAS_HOME before anything imports Keras, or put {file.name} into {file.parent}"
        )


def check_writable(file: Path) -> None:
    """Make KERAS_HOME, for a file that is missing in it.

    Raises DiskFault if KERAS_HOME cannot be written to: Keras would download to /tmp/.keras without a word.
    """
    home = keras_home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        is_writable = os.access(home, os.W_OK)
    except OSError:
        is_writable = False
    if not is_writable:
        raise DiskFault(
            f"{file} is missing, and {home} cannot be written to. Set KERAS_HOME to a folder that can, or have the "
            "file put there"
        )


def fault(spec: BackboneSpec, size: int, error: Exception) -> FeatcacheError:
    """Return what to raise where Keras could not build the backbone: it raises all sorts, plain Exception too."""
    file = file_of(spec, size)
    reason = " ".join(str(error).split())
    if spec.weights == "imagenet" and file is not None:
        # From the surest cause to the vaguest: the disk, the network, another fault of the system, a broken file.
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return DiskFault(f"The ImageNet weights of '{spec.name}' cannot be written to {file}: {error.strerror}")
        if not file.exists() and (isinstance(error, (OSError, HTTPException)) or _NO_DOWNLOAD in reason):
            cause = reason.partition(": ")[2].removeprefix("None -- ")  # Keras has no HTTP status there
            return NotDownloaded(_missing(spec, file, cause or type(error).__name__))
        raise_if_of_the_system(file, error)
        broken = damage(file) if file.exists() else None
        if broken or isinstance(error, OSError) or _NO_HASH in reason:
            return WeightsMismatch(
                f"The weights {file} are damaged (a broken download?): the file {broken or f'gives: {reason[:200]}'}. "
                f"Delete it or run featcache backbones fetch {spelt(spec, size)}"
            )
    if file is not None and file.exists():
        return WeightsMismatch(f"The weights {file} do not fit backbone '{spec.name}': {reason[:200]}")
    return UsageError(f"Backbone '{spec.name}' cannot be built as asked: {reason[:200]}")


def spelt(spec: BackboneSpec, size: int) -> str:
    """Return a backbone of the registry as a user writes it.

    >>> spelt(BackboneSpec("mobilenet_v2", (("alpha", 0.35),)), size=160)
    'mobilenet_v2:alpha=0.35:size=160'
    """
    parts = [spec.name, *(f"{key}={value}" for key, value in spec.options)]
    if size != get(spec.name).size:
        parts.append(f"size={size}")
    return ":".join(parts)


class Chatter(io.TextIOBase):
    """Standard output for Keras: what it says goes to stderr, and that it downloads only once something comes."""

    def __init__(self) -> None:
        self._held = ""

    def write(self, text: str) -> int:
        """Pass a text on; hold the first line of a download back."""
        if text.startswith(_DOWNLOADING):
            self._held = text
        else:
            sys.stderr.write(self._held + text)
            self._held = ""
        return len(text)

    def flush(self) -> None:
        """Let what was written be seen."""
        sys.stderr.flush()

    def isatty(self) -> bool:
        """Tell whether a bar can be drawn."""
        return sys.stderr.isatty()


def _missing(spec: BackboneSpec, file: Path, reason: str) -> str:
    """Return the line for a user without network: which file to put where."""
    return (
        f"No network, and the ImageNet weights of '{spec.name}' are not on this machine ({reason[:120]}). On one with "
        f"network run the same command once, then put {file.name} into {file.parent} (KERAS_HOME is "
        f"{os.environ.get('KERAS_HOME', 'not set')}); {efficientnet_lite.alternative()}"
    )
