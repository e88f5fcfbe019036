"""Gather the facts of `machine` and `probe`, and judge them."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from featcache.diagnosis.findings import Finding, findings_of
from featcache.diagnosis.machine import disks, gpus, machine

SHOWN = ("keras", "tensorflow", "jax", "torch", "numpy", "scipy", "scikit-learn", "h5py", "pillow")
OURS = ("test", "dev", "docs", "train")  # extras for who works on featcache
SETTINGS = (
    "CUDA_VISIBLE_DEVICES",
    "HDF5_USE_FILE_LOCKING",
    "KERAS_BACKEND",
    "KERAS_HOME",
    "OMP_NUM_THREADS",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_NUM_INTRAOP_THREADS",
)
PROBING_S = 120


@dataclass(frozen=True)
class Diagnosis:
    """Facts as they stand in JSON, and what they mean."""

    facts: dict[str, Any]
    findings: tuple[Finding, ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        """Return what keeps featcache from working."""
        return tuple(one for one in self.findings if one.kind == "broken")


def diagnose(*, speed: bool = True) -> Diagnosis:
    """Return what this installation and machine can do; never raises for what is broken.

    speed: also time a network, which takes a few seconds.
    """
    probed = _probed(speed)
    home = Path(os.path.expanduser(os.environ.get("KERAS_HOME") or "~/.keras"))
    weights = probed.pop("weights", [])
    facts = {
        "versions": {"python": platform.python_version(), "featcache": _version("featcache")}
        | {name: _version(name) for name in SHOWN}
        | {"hdf5": probed.pop("hdf5", None)},
        "missing": _missing(),
        "extras": _extras(),
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        "machine": machine(),
        "gpus": gpus(),
        "disks": disks({"weights": home, "current folder": Path.cwd(), "temporary": Path(tempfile.gettempdir())}),
        "weights": weights,
        "offline": [name for one in weights if not one["fault"] for name in one["backbones"]],
        **probed,
    }
    return Diagnosis(facts, findings_of(facts))


def _probed(speed: bool) -> dict[str, Any]:
    """Return what the probe found, and under "faults" why a section of it is missing."""
    names = ["packages", "hdf5", "threads", "locking", "weights", "backend", "keras", *(["speed"] if speed else [])]
    command = [sys.executable, "-P", "-m", "featcache.diagnosis.probe", *names]
    path = os.pathsep.join(one for one in sys.path if one)
    ended = None
    try:
        done = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=PROBING_S
        )
        printed, ended = done.stdout, _ended(done.returncode)
    except subprocess.TimeoutExpired as error:
        printed = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else ""
        ended = f"took longer than {PROBING_S} s"
    found: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for one in map(json.loads, filter(str.strip, printed.splitlines())):
        if "facts" in one:
            found[one["section"]] = one["facts"]
        else:
            faults[one["section"]] = one["fault"]
    if ended is not None:
        faults[names[len(found) + len(faults)]] = ended
    return {**found, "faults": faults}


def _ended(code: int) -> str | None:
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended with {code}" if code else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _requirements() -> list[tuple[str, str, str | None]]:
    """Return (package, the requirement as it stands, the extra it belongs to) of what featcache declares."""
    try:
        declared = requires("featcache") or []
    except PackageNotFoundError:
        return []
    found = []
    for line in declared:
        requirement, _, marker = line.partition(";")
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if name and name[0] != "featcache":
            found.append((name[0], requirement.strip(), extra[1] if extra else None))
    return found


def _missing() -> list[str]:
    """Return the requirements that are not installed."""
    return [text for name, text, extra in _requirements() if extra is None and _version(name) is None]


def _extras() -> dict[str, dict[str, Any]]:
    """Return of each extra the versions of its packages, and the command that installs it."""
    found: dict[str, dict[str, Any]] = {}
    for name, _, extra in _requirements():
        if extra is not None and extra not in OURS:
            one = found.setdefault(extra, {"packages": {}, "install": f"pip install 'featcache[{extra}]'"})
            one["packages"][name] = _version(name)
    return {name: {"installed": None not in one["packages"].values(), **one} for name, one in found.items()}
