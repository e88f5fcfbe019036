"""What a result was made with: the versions of featcache and its libraries, and the machine.

The version alone does not say which code ran where somebody works on featcache, so its own source is part of it.
"""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

LIBRARIES = ("featcache", "keras", "keras-hub", "tensorflow", "jax", "torch", "numpy", "scipy", "scikit-learn", "h5py")
GPUS = Path("/proc/driver/nvidia/gpus")


@cache
def made_with() -> dict[str, Any]:
    """Return versions, a digest of the code and the hardware, as JSON has them. No library is imported for it."""
    cpu = colon_pairs(Path("/proc/cpuinfo"))
    gpus = [colon_pairs(file) for file in sorted(GPUS.glob("*/information"))]
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "code": _code_digest(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": cpu.get("model name", platform.processor()),
        "cores": os.cpu_count() or 1,
        "gpus": [gpu.get("Model", "GPU") for gpu in gpus],
    }


def colon_pairs(file: Path) -> dict[str, str]:
    """Return {key: value} of the lines "key: value" of a file in /proc; nothing if the system has no such file."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        pairs[name.strip()] = value.strip()
    return pairs


def _versions() -> dict[str, str]:
    """Return the versions of the libraries that are installed."""
    versions = {}
    for name in LIBRARIES:
        if installed := installed_version(name):
            versions[name] = installed
    return versions


def installed_version(name: str) -> str | None:
    """Return the version of a library; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _code_digest() -> str:
    """Return 12 digits that differ wherever the source of featcache does."""
    package = Path(str(files("featcache")))
    hashed = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        name = file.relative_to(package).as_posix()
        hashed.update(f"{name}\0".encode())
        hashed.update(file.read_bytes())
    return hashed.hexdigest()[:12]
