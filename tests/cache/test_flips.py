"""A flipped bit is noticed or does not matter; no damaged file crashes, hangs or fills the memory of the process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def flip(kind, folder, number):
    """Flip so many bits, each alone; return the outcomes. The process must live and find nothing wrong."""
    command = [sys.executable, "-m", "cache.flips", kind, str(folder / "flips"), "0", str(number)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=3000)
    last = done.stdout.splitlines()[-1]
    assert done.returncode == 0, f"exit {done.returncode} at {last}\n{done.stderr[-3000:]}"
    return last


@pytest.mark.slow
def test_a_part_with_a_flipped_bit_is_set_aside(tmp_path):
    assert flip("part", tmp_path, 150) == "done {'aside': 150}"


@pytest.mark.slow
def test_a_flipped_bit_of_a_cache_is_noticed_or_does_not_matter(tmp_path):
    assert "refused" in flip("cache", tmp_path, 150)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "flips"), [("part", 3_000), ("cache", 500)])
def test_thousands_of_flipped_bits_are_noticed_or_do_not_matter(kind, flips, tmp_path):
    assert "done" in flip(kind, tmp_path, flips)
