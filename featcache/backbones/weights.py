"""Where a backbone's weights come from, told without importing Keras.

The digest of the weight *values* is part of a tap's fingerprint, but values are only known once the
network is built, which takes seconds. `source` names where the values come from: the digest of the file,
or the seed and version of the random initialiser. A cache remembers which source gave which values, so
that a second extraction needs neither Keras nor the network.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from featcache.backbones import glyphnet
from featcache.backbones.registry import get, weights_file
from featcache.errors import UsageError, WeightsMissing
from featcache.files import file_digest
from featcache.spec import BackboneSpec


def keras_home() -> Path:
    """Return the folder that Keras keeps its weights under."""
    return Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))


def keras_backend() -> str:
    """Return the name of the backend that Keras will run on."""
    if "KERAS_BACKEND" in os.environ:
        return os.environ["KERAS_BACKEND"]
    try:
        return str(json.loads((keras_home() / "keras.json").read_text())["backend"])
    except (OSError, ValueError, KeyError, TypeError):
        return "tensorflow"


def file_of(spec: BackboneSpec, size: int) -> Path | None:
    """Return the file that holds, or will hold, the weights; None for random weights.

    Raises WeightsMissing if a file given by the user does not exist, UsageError if it cannot be used.
    """
    if spec.weights in ("none", "") or spec.origin == "import":
        return None
    if spec.origin == "file":
        return Path(spec.weights)
    if spec.weights == "embedded":
        return glyphnet.WEIGHTS
    if spec.weights == "imagenet":
        name = weights_file(get(spec.name), dict(spec.options), size)
        return keras_home() / "models" / name if name else None
    path = Path(spec.weights)
    if not path.is_file():
        raise WeightsMissing(f"--weights takes imagenet, none or a file; there is no file {path}")
    if get(spec.name).constructor.startswith("EfficientNetB"):
        raise UsageError(
            f"{get(spec.name).constructor} builds another graph for a file than for ImageNet weights (Keras 3). "
            f"Put the file at {file_of(replace(spec, weights='imagenet'), size)} and use --weights imagenet"
        )
    return path


def source(spec: BackboneSpec, size: int) -> str | None:
    """Return a text that determines the weight values, or None where only building tells."""
    if spec.weights in ("none", ""):
        return f"random seed {spec.seed} keras {version('keras')} {keras_backend()}"
    file = file_of(spec, size)
    return f"sha256 {file_digest(file)}" if file is not None and file.exists() else None


def missing(spec: BackboneSpec, file: Path | None) -> str:
    """Return the line for a user without network: which file to put where."""
    where = f"put {file.name} into {file.parent}" if file else f"put its weights file into {keras_home() / 'models'}"
    where += f" (KERAS_HOME is {os.environ.get('KERAS_HOME', 'not set')})"
    return (
        f"No network, and the ImageNet weights of '{spec.name}' are not on this machine. On one with network run "
        f"the same command once, then {where}; or use -b glyphnet (needs no download) or --weights none (random)"
    )
