"""A disk that fails is one line, and costs no row: never a crash of the process, never litter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .scenes import SCENES as ALL_SCENES

pytestmark = pytest.mark.slow  # every failing call

TESTS = Path(__file__).parents[1]
SAME_CALLS = ("merge", "finish a folder")  # as the second time
SCENES = [scene for scene in ALL_SCENES if scene.name not in SAME_CALLS]
QUICK = [scene for scene in SCENES if not scene.name.endswith("again")]


def with_slow_folders(scenes):
    """Return the scenes as parameters; those of a folder, which do the same to more files, are slow."""
    marks = {True: pytest.mark.slow, False: ()}
    return [pytest.param(scene, id=scene.name, marks=marks[scene.folder]) for scene in scenes if scene.before]


def run(module, *arguments):
    """Run a module of the tests in a process of its own, which must end well; return what it printed."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    )
    printed = done.stdout.splitlines()
    assert done.returncode == 0, f"exit {done.returncode} after: {printed[-1:]}\n{done.stderr[-3000:]}"
    return printed


@pytest.mark.parametrize("scene", QUICK, ids=lambda scene: scene.name)
def test_any_call_may_fail_and_the_same_command_goes_on(scene, tmp_path):
    last = run("cache.failing_calls", scene.name, tmp_path, 1)[-1]
    assert {"open", "fsync", "close", "replace"} <= set(last.split())


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_any_call_may_fail_in_any_way(scene, tmp_path):
    run("cache.failing_calls", scene.name, tmp_path, 5)


@pytest.mark.parametrize("scene", with_slow_folders(ALL_SCENES))
def test_a_limit_on_the_size_of_files_is_an_error_and_no_signal(scene, tmp_path):
    assert run("cache.full_disk", scene.name, tmp_path, "limit")[-1] == "went on"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may mount a small disk")
@pytest.mark.parametrize("scene", with_slow_folders(ALL_SCENES))
def test_a_disk_that_is_full_is_an_error_and_no_signal(scene, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        assert run("cache.full_disk", scene.name, disk, "disk")[-1] == "went on"
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
