"""Killing it at any moment loses at most the batch in flight; the same command goes on, to the same bytes."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from tiny import TOY, write_images

from featcache.cache import parts
from featcache.cache.reader import Cache
from featcache.errors import DiskFault, UsageError
from featcache.extraction import extract

from .counting import Killed

PIXELS = "pixels:size=8"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "cache.h5"


@pytest.fixture
def undisturbed(photos, tmp_path):
    """Return the bytes of a run that nobody stopped."""

    def run(backbone):
        return extract(photos, backbone, out=tmp_path / "undisturbed.h5", batch=5).path.read_bytes()

    return run


def kill_after(work, batches, photos, out, backbone=PIXELS):
    work.stop_after = len(work.batches) + batches
    with pytest.raises(Killed):
        extract(photos, backbone, out=out, batch=5)
    work.stop_after = None


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [PIXELS, TOY])
@pytest.mark.parametrize("batches", [0, 1, 3, 7])
def test_a_killed_run_goes_on_where_it_was(photos, out, work, undisturbed, batches, backbone):
    whole = undisturbed(backbone)
    kill_after(work, batches, photos, out, backbone)
    assert not out.exists()
    done = work.images
    cache = extract(photos, backbone, out=out, batch=5)
    assert cache.report.computed == work.images - done == 36 - 5 * batches
    assert (cache.report.hits, cache.report.images) == (5 * batches, 36)
    assert out.read_bytes() == whole
    left = sorted(path.name for path in out.parent.iterdir() if path.suffix != ".index")  # there once photos are old
    assert left == ["cache.h5", "photos", "undisturbed.h5"]


def test_killed_again_and_again_it_still_arrives(photos, out, work, undisturbed):
    whole, done = undisturbed(PIXELS), work.images
    for _ in range(7):
        kill_after(work, 1, photos, out)
    assert extract(photos, PIXELS, out=out, batch=5).report.computed == 1
    assert work.images - done == 36
    assert out.read_bytes() == whole


def test_bad_images_do_not_change_the_bytes_of_a_resumed_run(photos, out, work, undisturbed):
    (photos / "blue" / "000.png").write_text("no image")
    (photos / "green" / "003.png").write_bytes(b"")
    whole = undisturbed(TOY)
    kill_after(work, 3, photos, out, TOY)
    extract(photos, TOY, out=out, batch=5)
    assert out.read_bytes() == whole


def test_a_kill_between_two_backbones_keeps_the_first(photos, out, work):
    kill_after(work, 10, photos, out, [PIXELS, TOY])
    assert extract(photos, [PIXELS, TOY], out=out, batch=5).report.computed == 72 - (36 + 10)


def test_a_kill_before_the_merge_costs_nothing(photos, out, work, undisturbed, monkeypatch):
    def killed(*args):
        raise Killed

    whole, done = undisturbed(PIXELS), work.images
    with monkeypatch.context() as patched:
        patched.setattr(parts, "merge", killed)
        with pytest.raises(Killed):
            extract(photos, PIXELS, out=out, batch=5)
    assert (work.images - done, out.exists()) == (36, False)
    assert extract(photos, PIXELS, out=out, batch=5).report.computed == 0
    assert out.read_bytes() == whole


def test_a_kill_between_the_merge_and_its_clearing_up_costs_nothing(photos, out, work, undisturbed, monkeypatch):
    def killed(*args, **options):
        raise Killed

    whole, done = undisturbed(PIXELS), work.images
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.unlink", killed)
        with pytest.raises(Killed):
            extract(photos, PIXELS, out=out, batch=5)
    assert parts.parts_folder(out).exists()
    assert extract(photos, PIXELS, out=out, batch=5).report.computed == 0
    assert work.images - done == 36
    assert (out.read_bytes(), parts.parts_folder(out).exists()) == (whole, False)


@pytest.mark.parametrize("allowed", range(0, 9, 2))
def test_a_full_disk_at_any_part_is_one_line_and_the_same_command_goes_on(
    photos, out, undisturbed, monkeypatch, allowed
):
    whole, replace = undisturbed(PIXELS), os.replace
    left = [allowed]

    def full(source, target):
        if os.fspath(target).endswith(".index"):
            return replace(source, target)  # written only where the scan takes so long that the photos have settled
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(DiskFault, match=r"Cannot write .*cache.h5.*: No space left on device"):
            extract(photos, PIXELS, out=out, batch=5)
    assert not out.exists()
    assert extract(photos, PIXELS, out=out, batch=5).report.hits == min(36, 5 * allowed)
    assert out.read_bytes() == whole


@pytest.mark.parametrize("damage", [lambda data: data[:-300], lambda data: b"", lambda data: bytes(len(data))])
def test_a_damaged_part_is_computed_again(photos, out, work, undisturbed, damage):
    whole = undisturbed(PIXELS)
    kill_after(work, 3, photos, out)
    part = min(parts.part_files(out))
    part.write_bytes(damage(part.read_bytes()))
    said = []
    assert extract(photos, PIXELS, out=out, batch=5, progress=said.append).report.computed == 36 - 10
    assert out.read_bytes() == whole
    assert [tick.note for tick in said if tick.step == "aside"] == [
        f"Damaged parts of {out}, whose rows are computed again: 1"
    ]
    assert not parts.parts_folder(out).exists()


def test_another_batch_size_goes_on_too(photos, out, work):
    kill_after(work, 3, photos, out)
    assert extract(photos, PIXELS, out=out, batch=32).report.computed == 36 - 15


def test_a_cache_stays_readable_while_it_is_extended(photos, out, work):
    before = extract(photos, PIXELS, out=out).arrays()[0]
    write_images(photos, 4, first=12)
    kill_after(work, 1, photos, out)
    assert (Cache.open(out).arrays()[0] == before).all()


@pytest.mark.slow
@pytest.mark.parametrize("parts_done", [1, 4])
def test_sigkill_loses_at_most_the_batch_in_flight(photos, out, tmp_path, parts_done):
    write_images(photos, 100, first=12)
    command = [sys.executable, "-m", "featcache_cli.app_main", "extract", str(photos), "-b", TOY, "--batch", "8", "-q"]
    command[1:3] = ["-c", "import sys; from featcache_cli.app import main; main()"]
    subprocess.run([*command, "-o", str(tmp_path / "undisturbed.h5")], check=True, capture_output=True)
    running = subprocess.Popen([*command, "-o", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = parts.parts_folder(out)
    while running.poll() is None and len(list(folder.glob("part-*.h5"))) < parts_done:
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    committed = len(list(folder.glob("part-*.h5")))
    assert committed >= parts_done
    done = extract(photos, TOY, out=out, batch=8).report
    assert done.computed == 336 - 8 * committed
    assert out.read_bytes() == (tmp_path / "undisturbed.h5").read_bytes()
    assert not folder.exists()


# The split is decided once


def splits_of(cache):
    return {row.digest: row.split for row in cache.rows}


def test_splits_of_stored_images_do_not_move_when_images_are_added(photos, out):
    for path in sorted((photos / "red").iterdir())[2:]:
        path.unlink()
    before = splits_of(extract(photos, PIXELS, out=out, split="5/45/50"))
    assert "train" in {row.split for row in Cache.open(out).rows if row.label == "red"}
    write_images(photos, 40)
    after = splits_of(extract(photos, PIXELS, out=out))
    assert {digest: after[digest] for digest in before} == before


def test_a_cache_keeps_its_shares_and_its_seed(photos, out):
    before = splits_of(extract(photos, PIXELS, out=out, split="50/25/25", seed=7))
    assert splits_of(extract(photos, PIXELS, out=out)) == before
    assert splits_of(extract(photos, PIXELS, out=out, split="50/25/25", seed=7)) == before


@pytest.mark.parametrize(
    ("asked", "spelt"), [({"split": "80/10/10"}, "80/10/10 seed 0"), ({"seed": 3}, "70/15/15 seed 3")]
)
def test_another_split_of_a_stored_cache_is_refused(photos, out, asked, spelt):
    extract(photos, PIXELS, out=out)
    before = out.read_bytes()
    with pytest.raises(UsageError, match=rf"is split 70/15/15 seed 0, and splits never move; asked for {spelt}"):
        extract(photos, PIXELS, out=out, **asked)
    assert out.read_bytes() == before


def in_groups(folder, **renamed):
    """Write images of two plants per class; some plants under another name."""
    for seed, plant in enumerate("ab"):
        write_images(folder / plant, 3, seed=seed)
    images = folder / "images"
    for path in sorted(folder.glob("[ab]/*/*.png")):
        plant, label = path.parts[-3], path.parts[-2]
        to = images / label / renamed.get(plant, plant) / f"{plant}{path.name}"
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    return images


def test_a_group_keeps_its_split_under_another_name(tmp_path):
    before = extract(in_groups(tmp_path / "x"), PIXELS, out=tmp_path / "c.h5", group_from="parent")
    for number in range(8):  # of so many names some would hash elsewhere
        images = in_groups(tmp_path / str(number), a=f"plant-{number}")
        after = extract(images, PIXELS, out=tmp_path / "c.h5", group_from="parent")
        assert {row.digest: row.split for row in after.rows} == {row.digest: row.split for row in before.rows}


def test_groups_put_together_across_splits_are_refused(tmp_path):
    images = in_groups(tmp_path / "x")
    for seed in range(20):  # until the two plants of a class stand in two splits
        cache = extract(images, PIXELS, out=tmp_path / f"{seed}.h5", group_from="parent", seed=seed)
        if len({row.split for row in cache.rows if row.label == "red"}) == 2:
            break
    together = in_groups(tmp_path / "y", b="a")
    with pytest.raises(UsageError, match=r"and others of group '\w+/a' in .*, and splits never move. Keep the groups"):
        extract(together, PIXELS, out=cache.path, group_from="parent")


def test_a_cache_that_gets_all_other_images_says_so(photos, out, tmp_path):
    extract(photos, PIXELS, out=out)
    said = []
    others = write_images(tmp_path / "others", 2, seed=9)
    extract(others, PIXELS, out=out, progress=said.append)
    extract(others, PIXELS, out=out, progress=said.append)
    assert [tick.note for tick in said if tick.step == "images"] == [
        f"{out}: replacing the table of 36 images of {photos} by 6 others; the features of both are kept"
    ]
    assert extract(photos, PIXELS, out=out).report.computed == 0


def test_another_rule_of_groups_is_refused_because_images_would_move(photos, out):
    extract(photos, PIXELS, out=out, group_from=r"regex:\d\.png$")
    with pytest.raises(UsageError, match=r"blue/000.png in group '0.png', and splits never move; asked for no group"):
        extract(photos, PIXELS, out=out)
    assert extract(photos, PIXELS, out=out, group_from=r"regex:\d\.png$").report.computed == 0
