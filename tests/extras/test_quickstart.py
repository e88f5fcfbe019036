"""What `featcache quickstart` claims, on the embedded digits, as a new user runs it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# the peak memory of this process alone: getrusage would count what the test had when it forked
RUN = """
import pathlib, sys
from featcache_cli.app import main
sys.argv = ["featcache", "quickstart", "--json"]
try:
    main()
finally:
    pathlib.Path("status").write_text(pathlib.Path("/proc/self/status").read_text())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux' /proc")
def test_transfer_from_letters_helps_at_five_digits_per_class(tmp_path):
    environment = {**os.environ, "KERAS_HOME": str(tmp_path / "keras")}
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    few = {line["name"]: line for line in found["table"][5:]}
    assert {line["train_images"] for line in few.values()} == {50}
    frozen = few["frozen features + best head"]
    for control in ("raw pixels + logistic regression", "random weights + best head"):
        assert frozen["interval"][0] > few[control]["interval"][1]
    assert found["judged_on"] == "test"
    assert max(found["handoff"]["parity"].values()) <= 1e-3
    assert found["finetune"]["best"]["val"] >= found["finetune"]["start"]["val"]
    peak_kib = int(re.search(r"VmHWM:\s+(\d+) kB", (tmp_path / "status").read_text()).group(1))
    assert peak_kib < 2 * 2**20
    assert (tmp_path / "quickstart" / "model.keras").exists()
    assert "fine-tuned from the best head" in (tmp_path / found["report"]).read_text()
