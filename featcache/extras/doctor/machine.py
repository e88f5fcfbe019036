"""Facts of the machine, known even where other libraries are broken.

psutil tells memory and file systems, on every system. What it does not know (instructions of the processor, limits of
containers) is in files under /proc and /sys/fs/cgroup on Linux; on other systems it is None.
"""

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
from featcache.provenance import colon_pairs

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "cifs", "smb", "fuse.sshfs", "ceph", "glusterfs", "9p")
VECTORS = ("avx", "avx2", "avx512f", "amx_bf16")  # instructions that TensorFlow and oneDNN use
ASKING_S = 10  # nvidia-smi takes long when a driver hangs


def machine() -> dict[str, Any]:
    """Return processor, cores and memory; None for what this system does not tell."""
    return {"system": f"{platform.system()} {platform.release()} {platform.machine()}", **_cores(), **_memory()}


def _cores() -> dict[str, Any]:
    processor = colon_pairs(PROC / "cpuinfo")
    vectors = None
    if "flags" in processor:
        flags = processor["flags"].split()
        vectors = [name for name in VECTORS if name in flags]

    cores = allowed = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    return {
        "processor": processor.get("model name", platform.processor()),
        "vectors": vectors,
        "cores": cores,
        "cores_allowed": allowed,
        "cores_quota": _quota(),
    }


def _quota() -> float | None:
    """Return how many cores' time the container may use; None if it may use all of them."""
    # Control groups version 2 write "QUOTA PERIOD" into one file, version 1 a number into each of two files.
    limits = " ".join(_lines(CGROUP / "cpu.max")).split()
    if not limits:
        limits = [*_lines(CGROUP / "cpu/cpu.cfs_quota_us"), *_lines(CGROUP / "cpu/cpu.cfs_period_us")]
    if len(limits) != 2 or limits[0] in ("max", "-1"):
        return None
    quota, period = map(int, limits)
    return quota / period


def _memory() -> dict[str, Any]:
    total, free, swap_used = None, None, 0
    with suppress(ImportError):  # a finding names what is not installed
        import psutil

        memory = psutil.virtual_memory()
        total, free, swap_used = memory.total, memory.available, psutil.swap_memory().used

    # Without a limit, version 2 says "max" and version 1 a number that is larger than any memory.
    limit = None
    limits = _lines(CGROUP / "memory.max") or _lines(CGROUP / "memory/memory.limit_in_bytes")
    if limits and limits[0].isdigit():
        limit = int(limits[0])
        if total is not None and limit >= total:
            limit = None

    return {
        "memory_bytes": total,
        "memory_free_bytes": free,
        "memory_limit_bytes": limit,
        "swap_used_bytes": swap_used,
    }


def gpus() -> list[str]:
    """Return the NVIDIA GPUs that nvidia-smi lists, or their device files if it is missing or fails."""
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        with suppress(OSError, subprocess.TimeoutExpired):
            answer = subprocess.run(command, capture_output=True, text=True, timeout=ASKING_S)
            if answer.returncode == 0:
                return [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    return [str(path) for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


def disks(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return the file system and the free bytes of each folder, or of the nearest parent of a missing one.

    folders: {what it is for: folder}.
    """
    facts = []
    for purpose, folder in folders.items():
        absolute = folder.absolute()
        existing = next(path for path in (absolute, *absolute.parents) if path.exists())
        usage = shutil.disk_usage(existing)
        kind = filesystem(existing)
        facts.append(
            {
                "for": purpose,
                "folder": str(folder),
                "exists": existing == absolute,
                "writable": os.access(existing, os.W_OK),
                "free_bytes": usage.free,
                "total_bytes": usage.total,
                "filesystem": kind,
                "network": kind is not None and kind.startswith(NETWORK),
            }
        )
    return facts


def filesystem(folder: Path) -> str | None:
    """Return the kind of file system that a folder is on, as the system calls it: "ext4", "nfs4" or "apfs"."""
    try:
        import psutil
    except ImportError:
        return None
    folder = folder.resolve()
    deepest, kind = Path(), None
    for partition in psutil.disk_partitions(all=True):
        mount = Path(partition.mountpoint)
        # Mounts lie within each other, and a later one hides an earlier one on the same folder.
        if folder.is_relative_to(mount) and len(mount.parts) >= len(deepest.parts):
            deepest, kind = mount, str(partition.fstype)
    return kind


def locking(folder: Path) -> str:
    """Return "works", or why a lock in this folder does not keep other processes out."""
    from filelock import FileLock, Timeout

    from featcache.locks import NO_MARKERS

    try:
        with temporary_folder(folder / "lock") as empty_folder:
            file = empty_folder / "lock"
            with FileLock(file, timeout=0, **NO_MARKERS):
                # Some network file systems give the lock to everybody who tries, so try it twice.
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
