"""A bit of the features flips on the disk: no reader uses them, and no copy of them passes as good."""

import subprocess
import sys

import numpy as np
import pytest
from rot import flip_feature

from featcache.cache import parts
from featcache.cache.check import verify
from featcache.cache.exchange import export, merge_caches
from featcache.cache.layout import part_files, parts_folder
from featcache.cache.reader import Cache
from featcache.errors import DiskFault, NotACache

from .disk import Disk, FailAt, tree
from .scenes import DIGESTS, FACTS, IMAGES, MAPS, TOP, all_of, commit, merge, rows_of, top

ROTTEN = r"is damaged: the rows of tap '/taps/toy/top' do not match their digest. Compute them again: .*`rehash=True`"


@pytest.fixture
def path(tmp_path):
    """Return a cache with a flipped bit in the features of one of its two taps."""
    cache = tmp_path / "c.h5"
    commit(cache, 0, 9)
    merge(cache)
    flip_feature(cache, "top")
    return cache


@pytest.mark.parametrize(
    "read",
    [
        lambda cache: cache.features(cache.usable(), TOP.name),
        lambda cache: cache.features(cache.rows[:1], TOP.name),
        lambda cache: cache.arrays("train", TOP.name),
        lambda cache: cache.check(TOP.name),
        lambda cache: export(cache, cache.path.parent / "out.npz", TOP.name),
        lambda cache: merge_caches([cache.path], cache.path.parent / "out.h5"),
    ],
    ids=["features", "one row", "arrays", "check", "export", "merge"],
)
def test_every_reader_of_features_refuses_damaged_ones(path, read):
    before = tree(path.parent)
    for _ in range(2):
        with pytest.raises(NotACache, match=ROTTEN):
            read(Cache.open(path))
    assert tree(path.parent) == before


def test_the_other_taps_of_the_file_can_be_read(path):
    cache = Cache.open(path)
    assert cache.features(cache.usable(), MAPS.name).shape == (9, 2, 1, 2)


def test_what_was_whole_when_it_was_read_is_compared_again_once_the_file_changed(tmp_path):
    cache = tmp_path / "c.h5"
    commit(cache, 0, 9)
    opened = merge(cache)
    opened.features(opened.usable(), TOP.name)
    flip_feature(cache, "top")
    with pytest.raises(NotACache, match=ROTTEN):
        opened.features(opened.usable(), TOP.name)


def test_a_merge_refuses_damaged_rows_and_changes_nothing(path):
    part = commit(path, 0, 3)
    before = tree(path.parent)
    with pytest.raises(NotACache, match=ROTTEN):
        merge(path)
    kept = {name: content for name, content in tree(path.parent).items() if ".lock" not in name}
    assert kept == before
    assert part.exists()


def test_rows_that_were_computed_again_take_the_place_of_the_damaged_ones(path, tmp_path):
    commit(path, 0, 9)
    parts.merge(path, IMAGES, {}, FACTS, damaged=[TOP.fingerprint])
    (tmp_path / "whole").mkdir()
    commit(tmp_path / "whole/c.h5", 0, 9)
    merge(tmp_path / "whole/c.h5")
    assert path.read_bytes() == (tmp_path / "whole/c.h5").read_bytes()
    assert not parts_folder(path).exists()


def test_a_damaged_tap_that_stays_is_copied_with_its_damage(path):
    part = commit(path, 0, 3)  # some of its rows, but not all
    parts.merge(path, IMAGES[::-1], {}, FACTS, damaged=[TOP.fingerprint])
    [problem] = [one for one in verify(path).problems if "c.h5 is damaged" in one]
    assert "tap '/taps/toy/top' do not match their digest" in problem
    cache = Cache.open(path)
    assert [row.path for row in cache.rows] == [row.path for row in IMAGES[::-1]]
    assert cache.features(cache.usable(), MAPS.name).shape == (9, 2, 1, 2)
    assert part.exists()  # what it has of the damaged tap is in no other file
    commit(path, 3, 9)
    parts.merge(path, IMAGES, {}, FACTS, damaged=[TOP.fingerprint])
    assert verify(path).problems == ()
    assert rows_of(path) == all_of(range(9))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a finished folder of parts whose parts are large: they are read without reading all of their bytes."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for at in (0, 5):
        commit(cache, at, at + 4)
    monkeypatch.setattr(parts, "SMALL_BYTES", 0)
    merge(cache)
    return cache


def test_the_rows_of_a_large_part_are_compared_when_they_are_read(folder):
    flip_feature(part_files(folder)[0], "top")
    cache = Cache.open(folder)
    usable = [row for row in cache.rows if row.digest != DIGESTS[4]]
    with pytest.raises(NotACache, match=r"part-.*\.h5 is damaged: the rows of tap '/taps/toy/top'.*`rehash=True`"):
        cache.features(usable, TOP.name)
    assert len(parts.read_rows(folder)[TOP.fingerprint].at) == 8  # nobody has copied them
    assert len(parts.read_rows(folder, all_bytes=True)[TOP.fingerprint].at) == 4


def test_a_folder_remembers_the_rows_of_a_part_set_aside_until_they_are_back(folder):
    [first, _] = part_files(folder)
    data = first.read_bytes()
    flip_feature(first, "top")
    parts.read_rows(folder, all_bytes=True)
    [aside] = parts.set_aside(folder)
    merge(folder)
    assert "has lost 4 of 8 rows of tap 'toy/" in verify(folder).problems[0]
    assert aside.exists()
    first.write_bytes(data)
    merge(folder)
    assert verify(folder).problems == ()
    assert not aside.exists()


def test_whoever_deletes_a_part_set_aside_does_without_its_rows(folder):
    flip_feature(part_files(folder)[0], "top")
    parts.read_rows(folder, all_bytes=True)
    [aside] = parts.set_aside(folder)
    aside.unlink()
    merge(folder)
    assert verify(folder).problems == ()


def test_small_parts_are_compared_before_they_are_put_together(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    commit(cache, 0, 4)
    part = commit(cache, 4, 9)
    flip_feature(part, "maps")
    before = tree(cache)
    with pytest.raises(NotACache, match=r"part-.*\.h5 is damaged: its bytes do not match its name"):
        merge(cache)
    assert tree(cache) == before


SYSTEM_ERRORS = ["EMFILE", "EIO", "ENOMEM", "EACCES", "ESTALE"]


@pytest.mark.parametrize("error", SYSTEM_ERRORS)
@pytest.mark.parametrize("kind", ["file", "large parts", "small parts"])
def test_what_the_system_does_not_give_is_not_damaged(tmp_path, monkeypatch, kind, error):
    """Every open and every read of a cache fails once: nothing is renamed, removed, or taken for missing."""
    import errno

    cache = tmp_path / "c.h5"
    if kind != "file":
        cache.mkdir()
    if kind == "large parts":
        monkeypatch.setattr(parts, "SMALL_BYTES", 0)
    commit(cache, 0, 4)
    merge(cache)
    commit(cache, 5, 9)
    whole, rows = tree(tmp_path), rows_of(cache)
    disk = Disk(tmp_path)
    with disk.watching():
        rows_of(cache)
    reads = [number for number, call in enumerate(disk.calls, 1) if call in ("open", "preadv")]
    assert len(reads) > 10
    for number in reads[:: 1 if error == "EIO" else 5]:
        disk = Disk(tmp_path)
        disk.hook = FailAt(number, getattr(errno, error))
        with disk.watching(), pytest.raises(DiskFault, match=r"^Cannot read .*: .*\. It stays as it is; run the"):
            rows_of(cache)
        assert tree(tmp_path) == whole
    assert rows_of(cache) == rows


def test_a_folder_that_cannot_be_listed_is_not_empty(tmp_path, monkeypatch):
    cache = tmp_path / "c.h5"
    commit(cache, 0, 4)
    with monkeypatch.context() as patched:

        def refused(folder):
            raise OSError(24, "Too many open files")

        patched.setattr("os.listdir", refused)
        with pytest.raises(DiskFault, match=r"Cannot read .*c.h5.parts: Too many open files"):
            parts.read_rows(cache)
    assert rows_of(cache) == all_of(range(4))


def test_a_lack_of_memory_is_no_damage(tmp_path, monkeypatch):
    cache = tmp_path / "c.h5"
    part = commit(cache, 0, 4)
    with monkeypatch.context() as patched:

        def lacking(*arguments):
            raise MemoryError

        patched.setattr("featcache.cache.rows.Piece.read", lacking)
        with pytest.raises(DiskFault, match=r"Cannot read .*part-.*: MemoryError"):
            parts.read_rows(cache)
    assert part.exists()
    assert np.array_equal(parts.read_rows(cache)[TOP.fingerprint].features(DIGESTS[:4]), top(DIGESTS[:4]))


UNCAUGHT = """
import os, sys
from pathlib import Path
from featcache.cache import layout
from featcache.errors import DiskFault

read, left = os.preadv, [0]

def failing(*arguments):
    left[0] -= 1
    if left[0] == 0:
        raise OSError(5, "Input/output error")
    return read(*arguments)

for number in range(1, 8):  # the signature, and what HDF5 reads before it gives the file
    child = os.fork()
    if not child:
        left[0], os.preadv = number, failing
        try:
            layout.state(Path(sys.argv[1]))
        except DiskFault as error:
            error.kept = [error]  # as loggers and notebooks do: until the end of the process
            raise
        os._exit(9)  # it must not come to this
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_failed_read_that_somebody_remembers_ends_the_process_in_good_order(tmp_path):
    """HDF5 holds what it calls for bytes; if it did so until after the end of the interpreter, it would crash."""
    cache = tmp_path / "c.h5"
    commit(cache, 0, 4)
    merge(cache)
    done = subprocess.run([sys.executable, "-c", UNCAUGHT, cache], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["1"] * 7, done.stderr[-3000:]
    assert "DiskFault: Cannot read" in done.stderr
