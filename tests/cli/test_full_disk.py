"""Every command that writes says in one line, with exit code 5, that a disk is full or cannot be written."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tiny import TOY, write_images

from featcache.extraction import extract
from featcache.models import handoff
from featcache.sweeps import sweep

GOLDEN = Path(__file__).parents[1] / "backbones" / "golden"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("mount") is None,
        reason="mounting a small disk takes root",
    ),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Return the folder of a small project, in which commands run. They change nothing in it but records."""
    home = tmp_path_factory.mktemp("project")
    cache = extract(write_images(home / "photos", 40), TOY, out=home / "c.h5")
    run = sweep(cache, "ridge", grid={"ridge": {"alpha": [1.0]}})
    handoff(run.best, home / "m.keras")
    return home


@pytest.fixture
def disk(tmp_path):
    """Return a function that gives a disk of some kibibytes, which may be read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def small(kib, mode="rw"):
        options = ["-t", "tmpfs", "-o", f"size={kib}k,{mode}", "tmpfs", str(folder)]
        done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        return folder

    yield small
    if os.path.ismount(folder):
        # a library may still have a file open there (MLflow its database), so leave the rest to the kernel
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=True)


COMMANDS = {
    "predict csv": (4, "predict m.keras photos --top 3 --csv {}/p.csv"),
    "predict jsonl": (4, "predict m.keras photos -o {}/p.jsonl"),
    "predict parquet": (4, "predict m.keras photos --top 3 -o {}/p.parquet"),
    "handoff": (100, "handoff c.run@best -o {}/m.keras"),
    "finetune": (100, "finetune c.run@best -o {}/t.keras --epochs 1"),
    "export keras": (100, "export m.keras --to keras -o {}/e.keras"),
    "export savedmodel": (200, "export m.keras --to savedmodel -o {}/s"),
    "export litert": (100, "export m.keras --to litert -o {}/s.tflite"),
    "export onnx": (100, "export m.keras --to onnx -o {}/s.onnx"),
    "export openvino": (100, "export m.keras --to openvino -o {}/s.xml"),
    "extract": (20, "extract photos -b pixels:size=8 -o {}/y.h5"),
    "cache merge": (20, "cache merge c.h5 -o {}/y.h5"),
    "cache export npz": (20, "cache export c.h5 -o {}/f.npz"),
    "cache export parquet": (20, "cache export c.h5 -o {}/f.parquet"),
    "leaks --fix-to": (4, "leaks c.h5 --fix-to {}/t.csv"),
    "report --html": (20, "report c.run --html {}/r.html"),
    "report --tensorboard": (20, "report c.run --tensorboard {}/logs"),
    "report --mlflow": (40, "report c.run --mlflow sqlite:///{}/m.db"),
    "backbones import": (20, f"backbones import {GOLDEN / 'sequential.h5'} -o {{}}/i.keras"),
    "quickstart": (500, "quickstart -o {}/q"),
    "recipe": (500, "recipe flowers photos -o {}/r --small"),
}


def failed(cli, command):
    done = cli(*command.split(), "-q")
    message = [line for line in done.err.splitlines() if line.startswith("featcache: ")]
    assert (done.code, len(message)) == (5, 1), done
    return message[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_exit_code_5_and_one_line(name, cli, project, disk, monkeypatch):
    monkeypatch.chdir(project)
    kib, command = COMMANDS[name]
    folder = disk(kib)
    (folder / "other").write_bytes(bytes(3 * 1024))
    message = failed(cli, command.format(folder))
    assert "No space left on device" in message or "is full" in message or "MB free" in message
    assert not [path for path in folder.rglob("*") if path.name.startswith((".tmp-", ".featcache-"))]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_cannot_be_written_is_exit_code_5_and_one_line(name, cli, project, disk, monkeypatch):
    if "mlflow" in name:  # which would try to open its database 15 times, in 100 seconds
        monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)
    monkeypatch.chdir(project)
    kib, command = COMMANDS[name]
    message = failed(cli, command.format(disk(kib, "ro")))
    assert "Read-only" in message or "unable to open database" in message or "readonly database" in message
