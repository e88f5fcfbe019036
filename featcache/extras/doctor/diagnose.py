"""Gather the facts of `machine` and `library_facts`, and derive the findings from them.

`machine` asks the system, in this process. `library_facts` imports the libraries that
may be broken, in a separate process: TensorFlow can end the whole process on a CPU that it does not support.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.extras.doctor.findings import Finding, findings_of
from featcache.extras.doctor.machine import disks, gpus, machine
from featcache.extras.doctor.requirements import extras, installed_version, missing, outdated

SHOWN = ("keras", "tensorflow", "jax", "torch", "numpy", "scipy", "scikit-learn", "h5py", "pillow")
SETTINGS = (
    "CUDA_VISIBLE_DEVICES",
    "HDF5_USE_FILE_LOCKING",
    "KERAS_BACKEND",
    "KERAS_HOME",
    "OMP_NUM_THREADS",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_NUM_INTRAOP_THREADS",
)
# In the order in which `library_facts` gathers them.
SECTION_NAMES = ("packages", "hdf5", "threads", "locking", "weights", "backend", "keras")
PROBING_S = 120


@dataclass(frozen=True)
class Diagnosis:
    """Facts as `doctor --json` prints them, and what they mean."""

    facts: dict[str, Any]
    findings: tuple[Finding, ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        """Return what keeps featcache from working."""
        return tuple(finding for finding in self.findings if finding.kind == "broken")


def diagnose(*, speed: bool = True) -> Diagnosis:
    """Return what this installation and machine can do. Something broken becomes a finding, never an exception.

    speed: also time a network, which takes a few seconds.
    """
    library_facts = _library_facts(speed)
    weights = library_facts.pop("weights", [])

    versions = {"python": platform.python_version(), "featcache": installed_version("featcache")}
    for package in SHOWN:
        versions[package] = installed_version(package)
    versions["hdf5"] = library_facts.pop("hdf5", None)

    offline: list[str] = []
    for file in weights:
        if not file["fault"]:
            offline += file["backbones"]

    folders = {
        "weights": Path(os.path.expanduser(os.environ.get("KERAS_HOME") or "~/.keras")),
        "current folder": Path.cwd(),
        "temporary": Path(tempfile.gettempdir()),
    }
    facts = {
        "versions": versions,
        "missing": missing(),
        "outdated": outdated(),
        "extras": extras(),
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        "machine": machine(),
        "gpus": gpus(),
        "disks": disks(folders),
        "weights": weights,
        "offline": offline,
        **library_facts,
    }
    return Diagnosis(facts, findings_of(facts))


def _library_facts(speed: bool) -> dict[str, Any]:
    """Return {section: its facts}, and under "faults" why a section is missing."""
    sections = [*SECTION_NAMES, "speed"] if speed else list(SECTION_NAMES)
    printed, end = _output_of_sections(sections)

    facts: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for line in printed.splitlines():
        try:
            section = json.loads(line)
        except json.JSONDecodeError:
            continue  # the process ended within this line, or Python printed it before the first section
        if "facts" in section:
            facts[section["section"]] = section["facts"]
        else:
            faults[section["section"]] = section["fault"]

    # Each section prints a line when it is done, so the first one without a line is the one that ended the process.
    # If every section has a line, the process failed while it exited, and nothing is missing.
    unprinted = [name for name in sections if name not in facts and name not in faults]
    if end is not None and unprinted:
        faults[unprinted[0]] = end
    return {**facts, "faults": faults}


def _output_of_sections(sections: Sequence[str]) -> tuple[str, str | None]:
    """Return what the other process printed, and why it ended early; None if it did not."""
    command = [sys.executable, "-P", "-m", "featcache.extras.doctor.library_facts", *sections]
    # It must import what this process would import, even from folders that were added to sys.path.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PROBING_S)
    except subprocess.TimeoutExpired as error:
        # Bytes, even with text=True, if the time is over; None if nothing was printed.
        printed = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else ""
        return printed, f"took longer than {PROBING_S} s"
    if process.returncode < 0:
        return process.stdout, f"the process was ended by {signal.Signals(-process.returncode).name}"
    if process.returncode > 0:
        return process.stdout, f"the process ended with {process.returncode}"
    return process.stdout, None
