import json
import os
import subprocess
import sys

import pytest
from tiny import write_images

FEATCACHE = [sys.executable, "-c", "from featcache_cli.app import main; main()"]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture
def garden(tmp_path):
    """Return a folder of classes, and a table of it in UTF-8, with names that ASCII cannot spell."""
    folder = write_images(tmp_path / "garden")
    for old, new in zip(sorted(folder.iterdir()), ["Gänse", "Klee", "Straußgras"], strict=True):
        old.rename(folder / new)
    images = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
    rows = "".join(f"{image},{image.parent}\n" for image in images)
    (folder / "table.csv").write_text(f"path,label\n{rows}", encoding="utf-8")
    return folder


def in_ascii_locale(*arguments):
    command = [*FEATCACHE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | ASCII)


@pytest.mark.parametrize("place", ["", "table.csv"])
def test_names_are_utf8_in_a_locale_that_is_not(garden, place):
    done = in_ascii_locale("scan", garden / place, "--json")
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["classes"]) == ["Gänse", "Klee", "Straußgras"]
