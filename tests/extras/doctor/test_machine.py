"""What Linux tells of a machine, read from files made for the purpose."""

import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import filelock
import psutil
import pytest

from featcache.extras.doctor import machine


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Return a folder that stands for /proc and /sys/fs/cgroup."""
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_control_groups_of_both_versions(files, quota, system):
    (system / "cpu").mkdir()
    for name, text in files.items():
        (system / name).write_text(text)
    assert machine.machine()["cores_quota"] == quota


def test_memory_is_that_of_the_container_if_it_is_less(system, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=1_024_000, available=614_400))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(used=30 * 1024))
    (system / "memory.max").write_text("512000\n")
    facts = machine.machine()
    assert (facts["memory_bytes"], facts["memory_free_bytes"]) == (1_024_000, 614_400)
    assert (facts["memory_limit_bytes"], facts["swap_used_bytes"]) == (512_000, 30 * 1024)
    (system / "memory.max").write_text("9223372036854771712\n")
    assert machine.machine()["memory_limit_bytes"] is None


def test_the_processor_and_its_vector_instructions(system):
    (system / "cpuinfo").write_text("model name\t: Some CPU\nflags\t\t: fpu avx avx2\n")
    facts = machine.machine()
    assert (facts["processor"], facts["vectors"]) == ("Some CPU", ["avx", "avx2"])


def test_a_system_without_proc_is_no_error(system):
    facts = machine.machine()
    assert facts["memory_bytes"] >= facts["memory_free_bytes"] > 0
    assert (facts["vectors"], facts["cores_quota"]) == (None, None)


def test_without_psutil_memory_and_file_systems_are_unknown(system, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    facts = machine.machine()
    assert (facts["memory_bytes"], facts["memory_free_bytes"], facts["swap_used_bytes"]) == (None, None, 0)
    assert machine.filesystem(system) is None


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path, monkeypatch):
    folder = tmp_path / "my photos"
    folder.mkdir()
    mounts = [("/", "ext4"), (str(folder), "tmpfs"), (str(folder), "nfs4"), ("/elsewhere", "xfs")]
    partitions = [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in mounts]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: partitions)
    assert machine.filesystem(folder) == "nfs4"
    assert machine.filesystem(Path("/")) == "ext4"
    [disk] = machine.disks({"current folder": folder / "not" / "there"})
    assert (disk["network"], disk["exists"]) == (True, False)


def test_locks_that_keep_out_work(tmp_path):
    assert machine.locking(tmp_path) == "works"
    assert list(tmp_path.iterdir()) == []


def test_locks_that_keep_nobody_out_are_reported(tmp_path, monkeypatch):
    """As flock on some network file systems: everybody gets it."""
    monkeypatch.setattr(filelock, "FileLock", lambda *arguments, **options: nullcontext())
    assert machine.locking(tmp_path) == "two held one lock at once"


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    assert "No locks available" in machine.locking(tmp_path)
