"""`cache gc` says what it drops, keeps what a run may need, and `cache diff` answers with its exit code."""

import json
from contextlib import contextmanager

import pytest
from tiny import write_images

from featcache.cache import parts
from featcache.errors import DataError
from featcache.extraction import extract
from featcache.extras.transformer import FeatureExtractor
from featcache.extras.unused_features import drop_unused_features
from featcache.sweeps import sweep

PIXELS = "pixels:size=8"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return a cache in the current folder, of which six of 36 images are gone by now."""
    monkeypatch.chdir(tmp_path)
    photos = write_images(tmp_path / "photos")
    extract(photos, PIXELS, out="c.h5")
    for number in (1, 2):
        for photo in photos.glob(f"*/00{number}.png"):
            photo.unlink()
    return extract(photos, PIXELS, out="c.h5")


def with_run_of_gone_images(cache, run):
    """Make a run from 36 images, and take three of them away."""
    write_images(cache.root, per_class=12)
    extract("photos", PIXELS, out="c.h5")
    sweep("c.h5", "ridge", out=run)
    for photo in cache.root.glob("*/000.png"):
        photo.unlink()


def test_gc_says_what_it_drops_and_then_drops_it(cache, cli):
    shown = cli("cache", "gc", "c.h5", "--dry-run")
    assert (shown.code, "Would drop 6 rows of images that c.h5 does not list" in shown.out) == (0, True)
    facts = json.loads(cli("cache", "gc", "c.h5", "--dry-run", "--json").out)
    assert facts.keys() == {"cache", "dropped", "rows", "bytes", "taps", "runs"}
    assert (facts["dropped"], facts["rows"], facts["bytes"]) == (False, 6, 6 * 192 * 4)

    done = cli("cache", "gc", "c.h5", "--json")
    assert "Dropping 6 rows of images that c.h5 does not list, 0.0 MB" in done.err
    assert json.loads(done.out) == facts | {"dropped": True}
    assert cli("cache", "gc", "c.h5").out == "Every row belongs to an image of the cache: nothing to drop.\n"
    assert extract("photos", PIXELS, out="c.h5").report.computed == 0


def test_gc_keeps_what_a_run_may_need(cache, cli):
    with_run_of_gone_images(cache, "c.run")
    assert json.loads(cli("cache", "gc", "c.h5", "--json").out)["rows"] == 0
    extract("photos", PIXELS, out="c.h5")
    refused = cli("cache", "gc", "c.h5")
    assert refused.code == 4
    assert "c.h5 lists other images now than when " in refused.err
    assert "c.run was made from it, so 3 rows may be the run's" in refused.err
    assert "Dropping" not in refused.err
    assert "c.run was made from other images than the cache has now" in cli("cache", "gc", "c.h5", "-n").out
    assert cli("cache", "gc", "c.h5", "--force").code == 0


def test_gc_finds_runs_in_other_folders_and_runs_that_moved_with_the_cache(cache, cli, tmp_path):
    with_run_of_gone_images(cache, "runs/a")
    extract("photos", PIXELS, out="c.h5")
    assert "runs/a was made from it, so 3 rows" in cli("cache", "gc", "c.h5").err

    (tmp_path / "moved").mkdir()
    (tmp_path / "c.h5").rename(tmp_path / "moved/c.h5")
    (tmp_path / "runs/a").rename(tmp_path / "moved/a")
    refused = cli("cache", "gc", "moved/c.h5")
    assert (refused.code, "moved/a was made from it, so 3 rows" in refused.err) == (4, True)


def test_gc_looks_for_runs_once_it_has_waited_for_an_extraction(cache, cli, monkeypatch):
    with_run_of_gone_images(cache, "c.run")
    lock = parts.lock

    @contextmanager
    def waiting(*arguments):
        monkeypatch.setattr(parts, "lock", lock)
        extract("photos", PIXELS, out="c.h5")  # what the other process did
        with lock(*arguments):
            yield

    monkeypatch.setattr(parts, "lock", waiting)
    with pytest.raises(DataError, match="was made from it, so 3 rows"):
        drop_unused_features("c.h5")


def test_gc_of_a_folder_goes_on_after_a_kill_and_the_extraction_that_it_asks_for(tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    photos = write_images(tmp_path / "photos")
    extract(photos, PIXELS, out="c", layout="parts")
    for photo in photos.glob("*/001.png"):
        photo.unlink()
    extract(photos, PIXELS, out="c")

    def kill(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(parts, "compact", kill)
        with pytest.raises(KeyboardInterrupt):
            drop_unused_features("c")
    assert "Finish it first: repeat the featcache extract" in cli("cache", "gc", "c").err
    assert extract(photos, PIXELS, out="c").report.computed == 0
    assert json.loads(cli("cache", "gc", "c", "--json").out)["rows"] == 3
    assert cli("cache", "gc", "c").out == "Every row belongs to an image of the cache: nothing to drop.\n"


def test_gc_keeps_a_cache_that_has_only_features(tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    photos = sorted(write_images(tmp_path / "photos").glob("*/*.png"))
    FeatureExtractor(PIXELS, cache="c.h5").fit(photos)
    data = (tmp_path / "c.h5").read_bytes()
    refused = cli("cache", "gc", "c.h5", "--force")
    assert (refused.code, "c.h5 has no table of images yet" in refused.err) == (4, True)
    assert (tmp_path / "c.h5").read_bytes() == data


def test_gc_of_nothing_is_one_line(tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    refused = cli("cache", "gc", "nothing.h5")
    assert (refused.code, refused.err.count("\n")) == (4, 1)


def test_diff_ends_with_3_if_anything_differs(cache, cli):
    write_images(cache.root, per_class=13)
    (cache.root / "red" / "005.png").write_bytes((cache.root / "red" / "006.png").read_bytes())
    extract("photos", [PIXELS, "pixels:size=9"], out="new.h5")
    different = cli("cache", "diff", "c.h5", "new.h5")
    assert different.code == 3
    assert "Images only in new.h5: 9\n" in different.out
    assert "Images with other bytes: 1\n  red/005.png: " in different.out
    assert "Taps only in new.h5: 1\n  pixels:size=9/top" in different.out
    facts = json.loads(cli("cache", "diff", "c.h5", "new.h5", "--json").out)
    assert facts.keys() == {"a", "b", "equal", "images", "labels", "groups", "splits", "taps"}
    assert (facts["equal"], len(facts["images"]["only_in_b"])) == (False, 9)

    same = cli("cache", "diff", "c.h5", "c.h5")
    assert (same.code, same.out) == (0, "Images, labels, groups, splits and taps are equal.\n")
    assert json.loads(cli("cache", "diff", "c.h5", "c.h5", "--json").out)["equal"] is True
    assert cli("cache", "diff", "c.h5", "nothing.h5").code == 4
