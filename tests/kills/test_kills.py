"""After a kill at any operation on files the same command finishes, as if nothing had been, and leaves no litter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .victims import VICTIMS, WITH_KERAS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a fork of a process"),
]
TESTS = Path(__file__).parents[1]
ALL = [victim.name for victim in VICTIMS + WITH_KERAS]
SLOW = {victim.name for victim in WITH_KERAS}


def stopped(root, how, most, *names):
    """Stop commands in a process of their own, at most at so many operations each; return {name: what came of it}."""
    command = [sys.executable, "-m", "kills.kill_points", str(root), how, str(most), *names]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {one["name"]: one for one in found}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ALL)
def test_a_command_that_is_killed_anywhere_can_be_run_again_and_leaves_nothing_behind(name, tmp_path):
    [found] = stopped(tmp_path, "KILL", 4 if name in SLOW else 10, name).values()
    assert found["problems"] == []
    assert -9 in found["exits"]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("how", "name"), [*(("INT", name) for name in ALL), *(("TERM", name) for name in ALL if name not in SLOW)]
)
def test_a_command_that_is_stopped_anywhere_exits_130_leaves_no_litter_and_can_be_run_again(how, name, tmp_path):
    points = 4 if how == "INT" and name not in SLOW else 1  # both signals raise the same exception
    [found] = stopped(tmp_path, how, points, name).values()
    assert found["problems"] == []
    assert 130 in found["exits"]
