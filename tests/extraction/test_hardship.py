"""Kills, other extractions, edits and full disks in any order: one more run, and all is as if nothing had been."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from PIL import Image
from tiny import TOY, write_images

from featcache import files
from featcache.cache import parts
from featcache.cache.check import verify
from featcache.cache.reader import Cache
from featcache.errors import DiskFault
from featcache.extraction import extract
from featcache.extraction.engines import PixelEngine

from .counting import Killed

PIXELS = "pixels:size=8"
COMMAND = [sys.executable, "-c", "from featcache_cli.app import main; main()"]
KEPT = "kept.png"  # nothing happens to it: a folder without any image is refused
NO_LOCKS = "import filelock; filelock.FileLock.acquire = lambda *a, **k: None; "


def everything(cache):
    """Return what a cache says of every image: its row of the manifest, status, and features of every tap."""
    failed = {one.path: one.status for one in cache.failures}
    taps = {name: cache.features(cache.usable(), name).tobytes() for name in cache.taps}
    return [(row, failed.get(row.path)) for row in cache.rows], taps


class Hardship(RuleBasedStateMachine):
    """Whatever is done to the folder and to running extractions, a clean run equals one from scratch."""

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed):
        self.folder = parts.Path(os.environ["HARDSHIP_FOLDER"]) / str(time.monotonic_ns())
        self.photos, self.out = write_images(self.folder / "photos", 3), self.folder / "c.h5"
        self.random, self.made, self.backbone = random.Random(seed), 0, PIXELS
        Image.new("RGB", (9, 9), (1, 2, 3)).save(self.photos / "red" / KEPT)

    def teardown(self):
        if hasattr(self, "folder"):
            self.settle()
            shutil.rmtree(self.folder)

    def paths(self):
        return sorted(path for path in self.photos.rglob("*.png") if path.name != KEPT)

    @rule(batch=st.integers(1, 5))
    def run(self, batch):
        extract(self.photos, self.backbone, out=self.out, batch=batch)

    @rule(backbone=st.sampled_from([PIXELS, "pixels:size=6", "pixels:size=8:resize=pad"[:13]]))
    def ask_for_another_backbone(self, backbone):
        self.backbone = backbone

    @rule()
    def add(self):
        self.made += 1
        Image.new("RGB", (9, 9), (self.made % 256, 7, self.made // 256)).save(self.photos / "red" / f"n{self.made}.png")

    @rule()
    def edit(self):
        self.made += 1
        Image.new("RGB", (5, 5), (1, self.made % 256, 2)).save(self.random.choice(self.paths()), "PNG")

    @rule()
    def damage(self):
        self.random.choice(self.paths()).write_bytes(b"no image")

    @rule()
    def copy(self):
        path = self.random.choice(self.paths())
        shutil.copy(path, path.with_name(f"copy-{path.name}"))

    @rule()
    def remove(self):
        if len(self.paths()) > 4:
            self.random.choice(self.paths()).unlink()

    @rule(at=st.integers(0, 60), what=st.sampled_from([OSError(28, "No space left on device"), Killed()]))
    def fail_at_a_system_call(self, at, what):
        left = [at]

        def failing(function):
            def call(*args, **options):
                left[0] -= 1
                if left[0] == 0:
                    raise what
                return function(*args, **options)

            return call

        with pytest.MonkeyPatch.context() as patched:
            for name in ("write", "fsync", "replace", "chmod"):
                patched.setattr(files.os, name, failing(getattr(os, name)))
            with contextlib.suppress(DiskFault, Killed):
                extract(self.photos, self.backbone, out=self.out, batch=2)

    @rule(at=st.integers(0, 6))
    def kill_while_computing(self, at):
        forward, left = PixelEngine.forward, [at]

        def dying(engine, batch):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return forward(engine, batch)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(PixelEngine, "forward", dying)
            with contextlib.suppress(Killed):
                extract(self.photos, self.backbone, out=self.out, batch=2)

    @invariant()
    def nothing_wrong_is_ever_read(self):
        if hasattr(self, "out") and self.out.exists():
            assert verify(self.out).problems == ()

    def settle(self):
        known = {(fp, digest) for fp, rows in parts.read_rows(self.out).items() for digest in rows.at}
        cache = extract(self.photos, self.backbone, out=self.out)
        fresh = extract(self.photos, self.backbone, out=self.folder / "fresh.h5", split=None)
        tap = cache.tap(next(iter(fresh.taps)))
        wanted = {row.digest for row in cache.usable()}
        assert cache.report.computed == len({one for one in wanted if (tap.fingerprint, one) not in known})
        assert [row._replace(split="") for row in cache.rows] == [row._replace(split="") for row in fresh.rows]
        assert [one.path for one in cache.failures] == [one.path for one in fresh.failures]
        assert np.array_equal(cache.features(cache.usable(), tap.name), fresh.features(fresh.usable()))
        assert not parts.parts_folder(self.out).exists()
        assert not list(self.folder.glob(".tmp-*"))


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HARDSHIP_FOLDER", str(tmp_path))


@settings(max_examples=15, stateful_step_count=8)
class _Short(Hardship):
    pass


@settings(max_examples=60, stateful_step_count=20)
class _Long(Hardship):
    pass


TestHardship = _Short.TestCase
TestMoreHardship = pytest.mark.slow(_Long.TestCase)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "kills"), [(PIXELS, 10), (TOY, 3)])
def test_kills_of_the_command_cost_no_committed_row(tmp_path, backbone, kills):
    photos, out = write_images(tmp_path / "photos", 120), tmp_path / "c.h5"
    options = ["-b", backbone, "--batch", "8", "-q", "--json"]
    subprocess.run(
        [*COMMAND, "extract", photos, *options, "-o", tmp_path / "whole.h5"], check=True, capture_output=True
    )
    chance = random.Random(0)
    began = time.perf_counter()
    subprocess.run(
        [*COMMAND, "extract", photos, *options, "-o", tmp_path / "timed.h5"], check=True, capture_output=True
    )
    whole_s = time.perf_counter() - began
    for _ in range(kills):
        running = subprocess.Popen(
            [*COMMAND, "extract", photos, *options, "-o", out], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        time.sleep(chance.uniform(0.5, 1.1) * whole_s)
        running.send_signal(signal.SIGKILL)
        running.communicate()
    committed = {digest for rows in parts.read_rows(out).values() for digest in rows.at}
    done = subprocess.run([*COMMAND, "extract", photos, *options, "-o", out], check=True, capture_output=True)
    report = json.loads(done.stdout)
    assert (report["images"], report["computed"]) == (360, 360 - len(committed))
    assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert sorted(one.name for one in tmp_path.iterdir() if one.name.startswith((".", "c.h5"))) == [
        "c.h5",
        "c.h5.index",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("locks", ["", NO_LOCKS])
def test_two_extractions_at_once_lose_nothing(tmp_path, locks):
    photos = write_images(tmp_path / "photos", 80)
    whole = extract(photos, [PIXELS, "pixels:size=6"], out=tmp_path / "whole.h5")
    command = [sys.executable, "-c", f"{locks}from featcache_cli.app import main; main()", "extract", photos, "-q"]
    for attempt in range(4):
        out = tmp_path / f"{attempt}.h5"
        running = [
            subprocess.Popen([*command, "-o", out, "-b", backbone, "--batch", batch], stderr=subprocess.PIPE)
            for backbone, batch in [(f"{PIXELS},pixels:size=6", "4"), (f"pixels:size=6,{PIXELS}", "7")]
        ]
        assert [(one.communicate()[1], one.returncode) for one in running] == [(b"", 0)] * 2
        cache = Cache.open(out)
        assert everything(cache) == everything(whole)
        assert verify(out).problems == ()
        assert not parts.parts_folder(out).exists()
