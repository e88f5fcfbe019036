"""Caches that become one, and files for others to read."""

import errno
import os
from dataclasses import replace

import numpy as np
import pytest
from rot import flip_feature

from featcache.cache import parts
from featcache.cache.check import verify
from featcache.cache.exchange import export, merge_caches
from featcache.cache.reader import Cache
from featcache.errors import DataError, DiskFault, EnvironmentFault, NotACache, UnknownTap, UsageError
from featcache.spec import Failure, canonical_json

from .make_golden import DEEP, FEATURES, MAPS, TOP, write
from .scenes import DIGESTS, FACTS, IMAGES, MAKE, MAKERS, all_of, maps, rows_of, top
from .scenes import TOP as SCENE_TOP

ROWS = {row.digest: row for row in IMAGES}


def make(out, low, high, failures=(), maker=0, **changes):
    """Return a cache of some of the images."""
    digests = DIGESTS[low:high]
    bad = {one.path: one for one in failures}
    good = [one for one in digests if ROWS[one].path not in bad]
    parts.commit(out, [SCENE_TOP], good, [top(good)], MAKERS[maker])
    return parts.merge(out, [ROWS[digest]._replace(**changes) for digest in digests], bad, FACTS)


def test_two_caches_become_one_with_each_image_once(tmp_path):
    make(tmp_path / "a.h5", 0, 5)
    make(tmp_path / "b.h5", 3, 9, maker=1)
    cache = merge_caches([tmp_path / "a.h5", str(tmp_path / "b.h5")], tmp_path / "all.h5")
    assert cache.path == tmp_path / "all.h5"
    assert sorted(cache.rows) == sorted(IMAGES)
    assert os.fsencode(cache.root) == FACTS["root"]
    assert np.array_equal(cache.features(IMAGES), top([row.digest for row in IMAGES]))
    assert rows_of(cache.path)[SCENE_TOP.fingerprint] == all_of(range(9))[SCENE_TOP.fingerprint]
    assert verify(cache.path).problems == ()
    assert verify(cache.path).rows == 9


def test_a_cache_merged_alone_is_the_same_cache(tmp_path):
    before = write(tmp_path / "one.h5")
    after = merge_caches([tmp_path / "one.h5"], tmp_path / "two.h5")
    assert sorted(after.rows) == sorted(before.rows)
    assert replace(after, path=before.path, rows=before.rows) == before
    merge_caches([tmp_path / "two.h5"], tmp_path / "three.h5")
    assert (tmp_path / "two.h5").read_bytes() == (tmp_path / "three.h5").read_bytes()


def test_folders_and_files_can_be_merged(tmp_path):
    (tmp_path / "a").mkdir()
    make(tmp_path / "a", 0, 5)
    make(tmp_path / "b.h5", 5, 9)
    cache = merge_caches([tmp_path / "a", tmp_path / "b.h5"], tmp_path / "all.h5")
    assert np.array_equal(cache.features(IMAGES), top([row.digest for row in IMAGES]))


def test_an_image_that_one_cache_could_use_is_no_failure(tmp_path):
    failures = [Failure(ROWS[DIGESTS[at]].path, DIGESTS[at], "unreadable", "no") for at in (0, 3)]
    make(tmp_path / "a.h5", 0, 5, failures)
    make(tmp_path / "b.h5", 3, 9)
    cache = merge_caches([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "all.h5")
    assert cache.failures == (failures[0],)
    assert np.array_equal(cache.features(cache.usable()), top([row.digest for row in cache.usable()]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "b"}, r"is labelled, grouped or split otherwise in .*b.h5 than in .*a.h5. Bring one of them"),
        ({"split": "test"}, r"is labelled, grouped or split otherwise in"),
        ({"path": "a/000.png"}, r"a/000.png is another image in .*b.h5 than in .*a.h5"),
    ],
)
def test_caches_that_disagree_about_an_image_are_refused(tmp_path, changes, message):
    make(tmp_path / "a.h5", 0, 2)
    make(tmp_path / "b.h5", 1, 2, **changes)
    with pytest.raises(DataError, match=message):
        merge_caches([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "all.h5")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.h5", "b.h5"]


@pytest.mark.parametrize(
    "fact", [{"layout": "flat"}, {"split_spec": canonical_json({"train": 80, "val": 10, "test": 10, "seed": 0})}]
)
def test_caches_by_other_rules_are_refused(tmp_path, fact):
    make(tmp_path / "a.h5", 0, 2)
    parts.merge(tmp_path / "b.h5", IMAGES, {}, FACTS | fact)
    with pytest.raises(DataError, match=r"b.h5 is split or arranged by another rule than .*a.h5. Extract one of them"):
        merge_caches([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "all.h5")


@pytest.mark.parametrize("changes", [{"path": "b/copy.png"}, {"path": "b/mate.png", "digest": f"{77:064x}"}])
def test_copies_and_group_mates_in_another_split_are_refused(tmp_path, changes):
    make(tmp_path / "a.h5", 0, 2, group="one")
    row = ROWS[DIGESTS[0]]._replace(group="one", split="test", **changes)
    parts.commit(tmp_path / "b.h5", [SCENE_TOP], [row.digest], [top([row.digest])], MAKERS[0])
    parts.merge(tmp_path / "b.h5", [row], {}, FACTS)
    with pytest.raises(DataError, match=rf"{row.path} is test in .*b.h5, and its copy or group mate a/.* is train"):
        merge_caches([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "all.h5")


def test_failures_that_two_decoders_found_are_not_taken_for_known(tmp_path):
    make(tmp_path / "a.h5", 0, 2)
    make(tmp_path / "b.h5", 2, 4)
    parts.merge(tmp_path / "b.h5", [ROWS[one] for one in DIGESTS[2:4]], {}, FACTS | {"decode": "other/2"})
    assert merge_caches([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "all.h5").decode == ""
    assert merge_caches([tmp_path / "a.h5", tmp_path / "a.h5"], tmp_path / "same.h5").decode == FACTS["decode"]


def test_a_split_that_cannot_be_is_not_exported(tmp_path):
    with pytest.raises(UsageError, match=r"`split` takes train, val, test; got 'tset' \(did you mean test"):
        export(make(tmp_path / "a.h5", 0, 2), tmp_path / "out.npz", split="tset")
    assert not (tmp_path / "out.npz").exists()


def test_nothing_is_overwritten_and_nothing_merged_from_nothing(tmp_path):
    make(tmp_path / "a.h5", 0, 2)
    with pytest.raises(UsageError, match=r"a.h5 is kept, even with `force=True`, because this command uses it"):
        merge_caches([tmp_path / "a.h5"], tmp_path / "a.h5", force=True)
    with pytest.raises(UsageError, match=r"There are no caches to merge"):
        merge_caches([], tmp_path / "all.h5")
    with pytest.raises(NotACache, match=r"No cache at .*none.h5"):
        merge_caches([tmp_path / "a.h5", tmp_path / "none.h5"], tmp_path / "all.h5")


def test_a_source_that_is_replaced_meanwhile_is_read_anew(tmp_path, monkeypatch):
    from featcache.cache import exchange

    make(tmp_path / "a.h5", 0, 5)
    real = exchange.write_cache

    def meanwhile(*args):
        monkeypatch.setattr(exchange, "write_cache", real)
        parts.commit(tmp_path / "a.h5", [SCENE_TOP], DIGESTS[5:], [top(DIGESTS[5:])], MAKERS[0])
        parts.merge(tmp_path / "a.h5", IMAGES, {}, FACTS)
        real(*args)

    monkeypatch.setattr(exchange, "write_cache", meanwhile)
    cache = merge_caches([tmp_path / "a.h5"], tmp_path / "all.h5")
    assert np.array_equal(cache.features(IMAGES), top([row.digest for row in IMAGES]))


def test_npz_holds_everything_without_pickle(tmp_path):
    cache = write(tmp_path / "cache.h5")
    assert export(cache, tmp_path / "out.npz", TOP.name) == 4
    rows = cache.usable()
    with np.load(tmp_path / "out.npz") as found:
        assert set(found) == {"X", "y", "classes", "path", "label", "group", "split", "digest"}
        assert found["X"].dtype == np.float32
        assert np.array_equal(found["X"], FEATURES[TOP.name][[0, 1, 1, 2]])
        assert found["y"].tolist() == [1, 0, 0, -1]
        assert found["classes"].tolist() == list(cache.classes)
        assert found["digest"].tolist() == [row.digest for row in rows]
        assert found["path"].tolist() == ["Ärzte/1.png", "odd/caf\\xe9 \n.png", "odd/copy.png", "unlabelled.png"]


def test_npz_of_one_split_and_of_maps(tmp_path):
    cache = write(tmp_path / "cache.h5")
    assert export(cache, str(tmp_path / "out.npz"), MAPS.name, "val") == 2
    with np.load(tmp_path / "out.npz") as found:
        assert np.array_equal(found["X"], FEATURES[MAPS.name][[1, 1]].astype(np.float32))
        assert set(found["split"]) == {"val"}


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_an_empty_split_is_an_empty_file(tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    assert export(write(tmp_path / "cache.h5"), tmp_path / f"out.{suffix}", DEEP.name, "test") == 0
    assert (tmp_path / f"out.{suffix}").stat().st_size > 0


def test_parquet_comes_back(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    cache = write(tmp_path / "cache.h5")
    assert export(cache, tmp_path / "out.parquet", MAPS.name) == 4
    found = parquet.read_table(tmp_path / "out.parquet").to_pydict()
    assert list(found) == ["path", "label", "group", "split", "digest", "class_index", "features"]
    expected = FEATURES[MAPS.name][[0, 1, 1, 2]].reshape(4, -1).astype(np.float32)
    assert np.array_equal(np.array(found["features"], np.float32), expected)
    assert found["class_index"] == [1, 0, 0, -1]
    assert found["digest"] == [row.digest for row in cache.usable()]


def test_parquet_without_pyarrow_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(EnvironmentFault, match=r"Parquet needs pyarrow: pip install .*; or export to .npz"):
        export(write(tmp_path / "cache.h5"), tmp_path / "out.parquet", TOP.name)


@pytest.mark.parametrize("name", ["out.csv", "out", "npz", "out.npz.gz"])
def test_other_formats_are_refused_with_those_there_are(tmp_path, name):
    with pytest.raises(UsageError, match=rf"ends in .npz or .parquet; got {name}"):
        export(write(tmp_path / "cache.h5"), tmp_path / name)


def test_an_export_without_rows_for_an_image_is_refused(tmp_path):
    cache = write(tmp_path / "cache.h5")
    with pytest.raises(UnknownTap, match=r"several taps; choose one of"):
        export(cache, tmp_path / "out.npz")
    parts.merge(cache.path, IMAGES, {}, FACTS)
    with pytest.raises(UnknownTap, match=r"'toy/top' has no features of 9 of 9 images, such as a/008.png. Bring it"):
        export(Cache.open(cache.path), tmp_path / "out.npz", TOP.name)


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_a_full_disk_while_exporting_keeps_the_old_file(tmp_path, monkeypatch, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    cache = write(tmp_path / "cache.h5")
    (tmp_path / f"out.{suffix}").write_bytes(b"old")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFault, match=rf"Cannot write .*out.{suffix}: No space left on device"):
        export(cache, tmp_path / f"out.{suffix}", TOP.name, force=True)
    assert (tmp_path / f"out.{suffix}").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


def test_what_scenes_make_is_known():
    assert MAKE[SCENE_TOP.fingerprint] is top
    assert maps(DIGESTS[:1]).shape == (1, 2, 1, 2)


def test_force_keeps_the_old_file_where_a_merge_fails(tmp_path):
    make(tmp_path / "a.h5", 0, 5)
    (tmp_path / "merged.h5").write_bytes(b"mine")
    whole = (tmp_path / "a.h5").read_bytes()
    flip_feature(tmp_path / "a.h5")
    with pytest.raises(NotACache):
        merge_caches([tmp_path / "a.h5"], tmp_path / "merged.h5", force=True)
    assert (tmp_path / "merged.h5").read_bytes() == b"mine"
    (tmp_path / "a.h5").write_bytes(whole)
    merged = merge_caches([tmp_path / "a.h5"], tmp_path / "merged.h5", force=True)
    assert len(merged.rows) == 5
