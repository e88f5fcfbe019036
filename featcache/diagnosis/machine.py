"""Facts of the machine, from the standard library alone: nothing here needs what may be broken."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from featcache.errors import DiskFault
from featcache.files import temporary_folder
from featcache.provenance import cpuinfo

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "cifs", "smb", "fuse.sshfs", "ceph", "glusterfs", "9p")
VECTORS = ("avx", "avx2", "avx512f", "amx_bf16")  # that TensorFlow and oneDNN make use of
ASKING_S = 10  # nvidia-smi takes long where a driver hangs


def machine() -> dict[str, Any]:
    """Return processor, cores and memory; None for what this system does not tell."""
    return {"system": f"{platform.system()} {platform.release()} {platform.machine()}", **_cores(), **_memory()}


def _cores() -> dict[str, Any]:
    model, flags = _processor()
    return {
        "processor": model,
        "vectors": None if flags is None else [name for name in VECTORS if name in flags],
        "cores": os.cpu_count() or 1,
        "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "cores_quota": _quota(),
    }


def _processor() -> tuple[str, set[str] | None]:
    """Return the name of the processor and what it can, as Linux tells them."""
    facts = cpuinfo(PROC / "cpuinfo")
    flags = facts.get("flags")
    return facts.get("model name", platform.processor()), None if flags is None else set(flags.split())


def _quota() -> float | None:
    """Return how many cores' time the container may use, of control groups version 2 or 1; None: all there are."""
    limits = " ".join(_lines(CGROUP / "cpu.max")).split()
    if not limits:
        limits = [*_lines(CGROUP / "cpu/cpu.cfs_quota_us"), *_lines(CGROUP / "cpu/cpu.cfs_period_us")]
    if len(limits) != 2 or limits[0] in ("max", "-1"):
        return None
    return int(limits[0]) / int(limits[1])


def _memory() -> dict[str, Any]:
    facts = {key: int(rest.split()[0]) * 1024 for key, _, rest in _pairs(PROC / "meminfo") if rest.split()}
    limit = next(iter(_lines(CGROUP / "memory.max") or _lines(CGROUP / "memory/memory.limit_in_bytes")), "max")
    total = facts.get("MemTotal")
    return {
        "memory_bytes": total,
        "memory_free_bytes": facts.get("MemAvailable"),
        "memory_limit_bytes": int(limit) if limit.isdigit() and (total is None or int(limit) < total) else None,
        "swap_used_bytes": facts.get("SwapTotal", 0) - facts.get("SwapFree", 0),
    }


def gpus() -> list[str]:
    """Return the NVIDIA GPUs that the driver knows, or the device files where it has no nvidia-smi."""
    if shutil.which("nvidia-smi"):
        with suppress(OSError, subprocess.TimeoutExpired):
            asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
            done = subprocess.run(asked, capture_output=True, text=True, timeout=ASKING_S)
            if done.returncode == 0:
                return [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return [str(path) for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


def disks(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return for each folder what its file system is, and how many bytes are free; of one that is missing its parent's.

    folders: {what it is for: folder}.
    """
    found = []
    for purpose, folder in folders.items():
        there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
        usage = shutil.disk_usage(there)
        kind = filesystem(there)
        found.append(
            {
                "for": purpose,
                "folder": str(folder),
                "exists": there == folder.absolute(),
                "writable": os.access(there, os.W_OK),
                "free_bytes": usage.free,
                "total_bytes": usage.total,
                "filesystem": kind,
                "network": kind is not None and kind.startswith(NETWORK),
            }
        )
    return found


def filesystem(folder: Path) -> str | None:
    """Return the kind of file system that a folder is on, "ext4" or "nfs4", as Linux tells it."""
    place, best, kind = folder.resolve(), Path(), None
    for line in _lines(PROC / "self/mounts"):
        _, mounted, name, *_ = line.split(" ")
        at = Path(mounted.replace("\\040", " "))
        if place.is_relative_to(at) and len(at.parts) >= len(best.parts):
            best, kind = at, name
    return kind


def locking(folder: Path) -> str:
    """Return "works", or why a lock in this folder does not keep others out."""
    from filelock import FileLock, Timeout

    from featcache.locks import NO_MARKERS

    try:
        with temporary_folder(folder / "lock") as inside:
            file = inside / "lock"
            with FileLock(file, timeout=0, **NO_MARKERS):
                try:
                    with FileLock(file, timeout=0, **NO_MARKERS):
                        return "two held one lock at once"
                except Timeout:
                    return "works"
    except (OSError, NotImplementedError, DiskFault) as error:
        return str(error)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _pairs(path: Path) -> list[tuple[str, str, str]]:
    return [line.partition(":") for line in _lines(path)]
