"""Committed rows survive a kill and a power loss at any point: every one is rebuilt, read, and gone on from."""

import os
import random
import shutil

import pytest

from featcache.cache.check import verify
from featcache.cache.layout import table_of

from .disk import FOLDER, Disk, grow, tree
from .scenes import SCENES, all_of, commit, rows_of

pytestmark = pytest.mark.slow  # every power loss at every step

LOSSES = 25  # random power losses at each point
every_scene = pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def played(scene, root):
    """Return the log of the scene, and the tree after it."""
    cache = scene.prepare(root)
    disk = Disk(root)
    with disk.watching():
        scene.run(cache)
    return disk, tree(root)


def check(scene, files, whole, committed, root):
    """Assert that every committed row is read from these files, nothing wrong is, and the scene ends well from here."""
    shutil.rmtree(root, ignore_errors=True)
    grow(root, files)
    cache = root / "c.h5"
    if scene.folder and not cache.is_dir():
        cache.mkdir()
    found = rows_of(cache)
    for tap, digests in all_of(committed).items():
        assert set(digests) <= set(found.get(tap, []))
    if table_of(cache).exists():
        assert verify(cache).problems == ()
    scene.run(cache)
    now = tree(root)
    if "commit" in scene.name:  # a commit does not look for litter: the extraction around it does
        now = {name: content for name, content in now.items() if ".tmp-" not in name}
    assert now == whole


def different(states):
    """Return those that differ in more than the content of temporary files, which nobody reads."""
    return {
        repr({name: "" if ".tmp-" in name else content for name, content in files.items()} | {"": committed}): (
            files,
            committed,
        )
        for files, committed in states
    }.values()


def committed_at(scene, disk, at):
    return scene.after if at == len(disk.log) else scene.before


@every_scene
def test_every_kill_leaves_the_committed_rows_and_can_be_gone_on_from(scene, tmp_path):
    disk, whole = played(scene, tmp_path / "whole")
    points = [(at, share) for at in range(len(disk.log) + 1) for share in (0.0, 0.3, 0.999)]
    states = [(disk.after_kill(at, share), committed_at(scene, disk, at)) for at, share in points]
    for files, committed in different(states):
        check(scene, files, whole, committed, tmp_path / "crashed")


@every_scene
def test_every_power_loss_leaves_the_committed_rows_and_can_be_gone_on_from(scene, tmp_path):
    disk, whole = played(scene, tmp_path / "whole")
    chosen = random.Random(0)
    points = [(at, number) for at in range(len(disk.log) + 1) for number in range(LOSSES + 1)]
    states = [
        (disk.after_power_loss(at, chosen if number else None), committed_at(scene, disk, at)) for at, number in points
    ]
    for files, committed in different(states):
        check(scene, files, whole, committed, tmp_path / "crashed")


@every_scene
def test_a_cache_is_the_old_or_the_new_at_every_point(scene, tmp_path):
    disk, whole = played(scene, tmp_path / "whole")
    table = "c.h5/cache.h5" if scene.folder else "c.h5"
    allowed = {disk.start.get(table), whole.get(table)} - {FOLDER}
    chosen = random.Random(1)
    for at in range(len(disk.log) + 1):
        for files in (disk.after_kill(at), disk.after_power_loss(at), disk.after_power_loss(at, chosen)):
            assert files.get(table) in allowed


@pytest.mark.parametrize("scene", [one for one in SCENES if "commit" not in one.name], ids=lambda scene: scene.name)
def test_parts_are_removed_only_after_what_replaces_them_is_durable(scene, tmp_path):
    disk, _ = played(scene, tmp_path / "whole")
    removed = [at for at, (kind, *rest) in enumerate(disk.log) if kind == "entry" and rest[1] is None]
    removed = [at for at in removed if "part-" in disk.log[at][1]]
    renamed = [at for at, (kind, *rest) in enumerate(disk.log) if kind == "rename" and "part-" in rest[1]]
    if not scene.folder:
        renamed = [at for at, (kind, *_) in enumerate(disk.log) if kind == "rename"]
    synced = [at for at, (kind, *_) in enumerate(disk.log) if kind == "sync folder" and at > renamed[-1]]
    assert removed
    assert min(removed) > synced[0] > renamed[-1]
    assert disk.log[renamed[-1] - 1] == ("sync", disk.log[renamed[-1]][3])


def test_a_folder_that_another_process_made_and_did_not_sync_is_synced(tmp_path):
    (tmp_path / "c.h5.parts").mkdir()
    disk = Disk(tmp_path)
    with disk.watching():
        commit(tmp_path / "c.h5", 0, 3)
    kinds = [effect[:2] for effect in disk.log]
    assert ("sync folder", ".") in kinds
    assert kinds[-1] == ("sync folder", "c.h5.parts")
