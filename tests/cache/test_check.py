"""What `verify` and `why` say of a cache."""

import os

import h5py
import numpy as np
import pytest

from featcache.cache import parts
from featcache.cache.check import Verified, verify, why
from featcache.cache.layout import part_files, parts_folder
from featcache.cache.reader import Cache
from featcache.errors import CacheVersion, DataError, NotACache
from featcache.files import file_digest
from featcache.spec import Failure, ImageRow

from .make_golden import DEEP, DIGESTS, FACTS, FEATURES, MAPS, PROVENANCE, ROWS, TOP, write


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "cache.h5").path


def change(path, name, make):
    """Change a dataset in its place, as a bad disk does."""
    with h5py.File(path, "r+") as file:
        file[name][...] = make(file[name][()])


def test_a_whole_cache_has_no_problems(path):
    assert verify(path) == Verified(1, 9, ())
    parts.commit(path, [TOP], [DIGESTS[2]], [FEATURES[TOP.name][:1]], PROVENANCE)
    assert verify(str(path)) == Verified(2, 10, ())


def test_a_folder_is_verified_with_its_parts(tmp_path):
    (tmp_path / "cache").mkdir()
    write(tmp_path / "cache")
    assert verify(tmp_path / "cache") == Verified(4, 9, ())
    part = part_files(tmp_path / "cache")[0]
    part.write_bytes(part.read_bytes()[:-1])
    found = verify(tmp_path / "cache")
    assert (found.files, len(found.problems)) == (4, 1)
    assert f"{part} is damaged: its bytes do not match its name" in found.problems[0]


@pytest.mark.parametrize("kept", [0, 1])
def test_a_part_that_is_gone_from_a_folder_is_noticed(tmp_path, kept):
    cache = tmp_path / "cache"
    cache.mkdir()
    write(cache)
    parts_before = part_files(cache)
    lost = verify(cache).rows
    for part in parts_before[kept:]:
        part.unlink()
    found = verify(cache)
    assert found.rows < lost
    assert all(f"{cache} has lost " in one and "featcache extract again" in one for one in found.problems)
    assert len(found.problems) == len(parts_before) - kept


@pytest.mark.parametrize("tap", [TOP, DEEP, MAPS], ids=lambda tap: tap.name)
def test_other_features_are_noticed(path, tap):
    change(path, f"taps/{tap.name}/features", lambda values: values + values.dtype.type(64))
    assert "the rows of tap '/taps/" in verify(path).problems[0]
    assert tap.name in verify(path).problems[0]


def test_features_in_another_order_are_noticed(path):
    change(path, f"taps/{TOP.name}/features", lambda values: values[::-1])
    assert verify(path).problems


def test_rows_of_other_images_are_noticed(path):
    change(path, f"taps/{TOP.name}/digest", lambda values: values[::-1])
    assert "rows of tap '/taps/toy/top' do not match their digest" in verify(path).problems[0]


def test_rows_of_other_makers_are_noticed(path):
    change(path, f"taps/{MAPS.name}/made_by", lambda values: values[::-1] * 0)
    assert "rows of tap '/taps/toy/maps' do not match their digest" in verify(path).problems[0]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("tap", b"toy/top", b"toy/tip"), ("provenance", b"golden 1", b"golden 3"), ("fingerprint", b"", b"0")],
)
def test_another_description_is_noticed(path, name, old, new):
    with h5py.File(path, "r+") as file:
        attributes = file["taps"][TOP.name].attrs
        text = bytes(attributes[name])
        attributes[name] = np.bytes_(text.replace(old, new, 1)[: len(text)])
    assert len(verify(path).problems) == 1


@pytest.mark.parametrize("column", ["path", "label", "group", "split", "digest", "status", "reason"])
def test_other_images_are_noticed(path, column):
    change(path, f"images/{column}", lambda values: values[::-1])
    assert "its images are not those that were written" in verify(path).problems[0]


@pytest.mark.parametrize("fact", ["root", "layout", "split_spec", "decode"])
def test_other_facts_are_noticed(path, fact):
    with h5py.File(path, "r+") as file:
        file["images"].attrs[fact] = np.bytes_(b" " + bytes(file["images"].attrs[fact]))
    assert "its images are not those that were written" in verify(path).problems[0]


def test_another_listing_is_noticed(tmp_path):
    write(tmp_path / "c.h5")
    parts.merge(tmp_path / "c.h5", ROWS, {}, FACTS | {"listing": '{"table":"a.csv"}'})
    assert Cache.open(tmp_path / "c.h5").images_from.name == "a.csv"
    with h5py.File(tmp_path / "c.h5", "r+") as file:
        file["images"].attrs["listing"] = np.bytes_(b'{"table":"b.csv"}')
    assert "its images are not those that were written" in verify(tmp_path / "c.h5").problems[0]


def test_where_there_is_no_cache_there_is_nothing_to_verify(tmp_path):
    with pytest.raises(NotACache, match=r"No cache at .*none.h5. Make one: featcache extract IMAGES -o .*none.h5"):
        verify(tmp_path / "none.h5")
    parts.commit(tmp_path / "begun.h5", [TOP], [DIGESTS[0]], [FEATURES[TOP.name][:1]], PROVENANCE)
    with pytest.raises(NotACache, match=r"An extraction was begun; finish it: featcache extract IMAGES"):
        verify(tmp_path / "begun.h5")


def test_another_version_is_no_problem_but_an_error(path):
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 9
    with pytest.raises(CacheVersion, match=r"has cache format 9"):
        verify(path)


def test_a_file_that_is_no_cache_is_a_problem(tmp_path):
    (tmp_path / "photo.h5").write_bytes(b"\x89PNG")
    assert "photo.h5 is not an HDF5 file" in verify(tmp_path / "photo.h5").problems[0]


@pytest.fixture
def known(tmp_path):
    """Return a cache with the rows of one.png, of which two.png is a copy; bad.png was skipped, late.png came later."""
    contents = {"one.png": b"one", "two.png": b"one", "bad.png": b"bad", "late.png": b"late"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    digests = {name: file_digest(tmp_path / name) for name in contents}
    cache = tmp_path / "c.h5"
    parts.commit(cache, [TOP], [digests["one.png"]], [FEATURES[TOP.name][:1]], PROVENANCE)
    rows = [ImageRow(name, "", "", "", digests[name]) for name in sorted(contents)]
    failure = Failure("bad.png", digests["bad.png"], "truncated", "cut off")
    return parts.merge(cache, rows, {"bad.png": failure}, FACTS | {"root": os.fsencode(tmp_path)})


@pytest.mark.parametrize(
    ("name", "hit", "reason", "same"),
    [
        ("one.png", True, "its bytes are those that a row was computed from", ("one.png", "two.png")),
        ("bad.png", False, "it was skipped: truncated, cut off", ("bad.png",)),
        ("late.png", False, "this tap was last brought up to date before the image came", ("late.png",)),
    ],
)
def test_why_tells_what_the_cache_has_of_a_file(known, name, hit, reason, same):
    for file in (name, known.root / name):
        found = why(known, file)
        assert (found.same, found.digest) == (same, file_digest(known.root / name))
        assert [(one.tap, one.hit, one.reason) for one in found.taps] == [(TOP.name, hit, reason)]


def test_why_tells_an_edited_file_from_an_unknown_one(known):
    before = file_digest(known.root / "one.png")[:12]
    (known.root / "one.png").write_bytes(b"edited")
    (known.root / "new.png").write_bytes(b"new")
    assert why(known, "one.png").taps[0].reason == (
        f"it has other bytes than when it was extracted: edited since (then {before})"
    )
    assert why(known, known.root / "new.png").taps[0].reason == "no image with its bytes was extracted"


def test_why_reads_images_that_are_no_files(known):
    data = (known.root / "one.png").read_bytes()
    (known.root / "one.png").unlink()
    found = why(known, "one.png", {"one.png": data}.__getitem__)
    assert (found.same, found.taps[0].hit) == (("one.png", "two.png"), True)


def test_why_names_a_file_that_is_not_there(known):
    with pytest.raises(DataError, match=r"There is no file none.png, neither here nor in "):
        why(known, "none.png")


def test_why_names_a_file_that_cannot_be_read(known, monkeypatch):
    def broken(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("featcache.cache.check.file_digest", broken)
    with pytest.raises(DataError, match=r"Cannot read .*one.png: Input/output error"):
        why(known, "one.png")


def test_a_part_that_the_disk_does_not_give_is_not_set_aside(path, monkeypatch):
    from featcache.errors import DiskFault

    part = parts.commit(path, [TOP], [DIGESTS[2]], [FEATURES[TOP.name][:1]], PROVENANCE)

    def broken(*arguments):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("os.preadv", broken)
        with pytest.raises(DiskFault, match=r"Cannot read .*cache.h5: Input/output error. It stays as it is; run the"):
            parts.read_rows(path)
    assert part.exists()
    assert list(parts_folder(path).iterdir()) == [part]


def test_a_cache_that_was_verified_opens(path):
    assert Cache.open(path).rows == ROWS
