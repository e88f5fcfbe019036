"""What `featcache quickstart` claims, on the embedded digits, as a new user runs it."""

import json
import os
import resource
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_transfer_from_letters_helps_at_five_digits_per_class(tmp_path):
    environment = {**os.environ, "KERAS_HOME": str(tmp_path / "keras")}
    command = [sys.executable, "-m", "featcache_cli.app", "quickstart", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
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
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2 * 2**20  # KiB
    assert (tmp_path / "quickstart" / "model.keras").exists()
