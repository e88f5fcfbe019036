"""Rows of images that are gone are dropped, whole or not at all, and nothing else is."""

import errno

import numpy as np
import pytest
from rot import flip_feature

from featcache import files
from featcache.cache import parts
from featcache.cache.check import verify
from featcache.cache.reader import Cache
from featcache.cache.unused_rows import drop_unused, unused_rows
from featcache.errors import DataError, DiskFault, NotACache
from featcache.spec import Failure

from .make_golden import write
from .scenes import DIGESTS, FACTS, IMAGES, MAPS, TOP, commit, merge, rows_of, top


def listed(low, high):
    """Return the images with these digests."""
    return [row for row in IMAGES if row.digest in DIGESTS[low:high]]


def content(cache):
    """Return all of a cache but its features, and {tap: digests with a row}."""
    opened = Cache.open(cache)
    return opened, rows_of(cache)


def with_unused(path):
    """Return a cache of eight images, of which its table lists the last five, and one that cannot be read."""
    commit(path, 0, 4)
    commit(path, 4, 8, maker=1)
    merge(path)
    bad = Failure(listed(8, 9)[0].path, DIGESTS[8], "truncated", "cut off")
    parts.merge(path, listed(3, 9), {bad.path: bad}, FACTS)
    return path


@pytest.fixture
def folder(tmp_path):
    """Return such a cache as a folder of parts."""
    (tmp_path / "parts.h5").mkdir()
    return with_unused(tmp_path / "parts.h5")


@pytest.fixture(params=["file", "folder"])
def cache(request, tmp_path, folder):
    """Return such a cache, as a file or as a folder."""
    return folder if request.param == "folder" else with_unused(tmp_path / "c.h5")


def test_rows_of_images_that_are_gone_are_counted_and_dropped(cache):
    before, _ = content(cache)
    expected = [("toy/maps", 3, 3 * 8, 5), ("toy/top", 3, 3 * 12, 5)]
    assert sorted(map(tuple, unused_rows(cache))) == expected
    assert sorted(map(tuple, drop_unused(cache))) == expected
    after, rows = content(cache)
    assert after == before
    assert rows == {tap.fingerprint: sorted(DIGESTS[3:8]) for tap in (TOP, MAPS)}
    assert verify(cache).problems == ()
    assert verify(cache).rows == 10
    assert np.array_equal(after.features(listed(3, 8), "toy/top"), top([row.digest for row in listed(3, 8)]))
    assert (unused_rows(cache), drop_unused(cache)) == ([], [])


def test_looking_changes_nothing(cache):
    before = parts.state(cache)
    unused_rows(cache)
    assert parts.state(cache) == before


def test_nothing_is_written_where_nothing_is_unused(tmp_path):
    opened = write(tmp_path / "golden.h5")
    data = opened.path.read_bytes()
    assert drop_unused(opened.path) == []
    assert opened.path.read_bytes() == data


def test_a_tap_of_gone_images_only_goes_as_a_whole(cache):
    parts.merge(cache, listed(8, 9), {}, FACTS)
    assert {unused.kept for unused in drop_unused(cache)} == {0}
    assert dict(Cache.open(cache).taps) == {}
    assert verify(cache).problems == ()


def test_what_a_stopped_extraction_has_computed_stays(cache):
    commit(cache, 8, 9)
    before = parts.state(cache)
    for use in (unused_rows, drop_unused):
        with pytest.raises(DataError, match="has rows of an extraction that was stopped"):
            use(cache)
    assert parts.state(cache) == before


def test_damaged_rows_are_refused_and_nothing_is_dropped(cache):
    damaged = cache if cache.is_file() else sorted(cache.glob("part-*.h5"))[0]
    flip_feature(damaged)
    data = damaged.read_bytes()
    with pytest.raises(NotACache):
        drop_unused(cache)
    assert damaged.read_bytes() == data


def test_a_full_disk_leaves_the_cache_as_it_was(tmp_path, monkeypatch):
    path = with_unused(tmp_path / "c.h5")
    data = path.read_bytes()

    def full(handle, num_bytes):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", lambda handle: full(handle, 0))
    with pytest.raises(DiskFault):
        drop_unused(path)
    monkeypatch.undo()
    assert path.read_bytes() == data
    assert len(unused_rows(path)) == 2


def test_what_another_process_merges_meanwhile_is_kept(cache, monkeypatch):
    write_cache = parts.write_cache

    def overtaken(*arguments, **options):
        monkeypatch.setattr(parts, "write_cache", write_cache)
        commit(cache, 0, 1)
        parts.merge(cache, [*listed(0, 1), *listed(3, 9)], {}, FACTS)
        return write_cache(*arguments, **options)

    monkeypatch.setattr(parts, "write_cache", overtaken)
    drop_unused(cache)
    assert rows_of(cache)[TOP.fingerprint] == sorted([DIGESTS[0], *DIGESTS[3:8]])
    assert len(Cache.open(cache).rows) == 7


@pytest.mark.parametrize("stopped", ["write_cache", "compact", "remove"])
def test_a_folder_that_is_stopped_on_the_way_misses_nothing(stopped, folder, monkeypatch):
    def kill(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(files if stopped == "remove" else parts, stopped, kill)
    with pytest.raises(KeyboardInterrupt):
        drop_unused(folder)
    monkeypatch.undo()
    assert verify(folder).problems == ()
    assert set(DIGESTS[3:8]) <= set(rows_of(folder)[TOP.fingerprint])
    parts.merge(folder, listed(3, 9), {}, FACTS)  # the next extraction counts the rows again
    drop_unused(folder)
    assert rows_of(folder)[TOP.fingerprint] == sorted(DIGESTS[3:8])
