"""Rows appear whole or not at all, and the merged file does not tell how often the work was interrupted."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from itertools import pairwise

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.cache import parts
from featcache.cache.check import verify
from featcache.cache.layout import part_files, part_name, parts_folder
from featcache.cache.reader import Cache
from featcache.errors import DiskFault, NotACache, UnknownTap
from featcache.spec import BackboneSpec, Failure, ImageRow, Preprocess, Tap, canonical_json

TOP = Tap("toy/top", BackboneSpec("toy"), "w", "top", "avg", Preprocess(32))
DEEP = replace(TOP, name="toy/deep", layer="deep")
FACTS = {"root": b"/photos", "layout": "classes", "decode": "pillow/1"} | {
    "split_spec": canonical_json({"train": 70, "val": 15, "test": 15, "seed": 0})
}
DIGESTS = [f"{number:064x}" for number in range(12)]
ROWS = [ImageRow(f"a/{digest[-3:]}.png", "a", "", "train", digest) for digest in DIGESTS]


def features_of(digests, width=3):
    return np.array([[int(digest, 16) + at / 10 for at in range(width)] for digest in digests], np.float32)


def commit(path, digests, taps=(TOP,)):
    arrays = [features_of(digests, 3 + at) for at in range(len(taps))]
    return parts.commit(path, taps, digests, arrays, '{"engine":"toy"}')


def merge(path, images=ROWS, failures=None):
    return parts.merge(path, images, failures or {}, FACTS)


def test_committed_rows_come_back(tmp_path):
    path = tmp_path / "c.h5"
    commit(path, DIGESTS[:5], (TOP, DEEP))
    commit(path, DIGESTS[5:7], (TOP, DEEP))
    rows = parts.read_rows(path)
    assert set(rows) == {TOP.fingerprint, DEEP.fingerprint}
    assert np.array_equal(rows[TOP.fingerprint].features(DIGESTS[:7]), features_of(DIGESTS[:7]))
    assert sorted(rows[DEEP.fingerprint].digests) == DIGESTS[:7]
    assert rows[DEEP.fingerprint].shape == (4,)
    assert not path.exists()


@given(cuts=st.lists(st.integers(0, 12), max_size=5), order=st.permutations(range(12)))
@settings(max_examples=15)  # every part waits for the disk
def test_the_merged_bytes_do_not_depend_on_how_the_work_was_cut(tmp_path_factory, cuts, order):
    folder = tmp_path_factory.mktemp("cut")
    at_once, in_pieces = folder / "once" / "c.h5", folder / "pieces" / "c.h5"
    commit(at_once, DIGESTS)
    edges = [0, *sorted(cuts), 12]
    for low, high in pairwise(edges):
        if low < high:
            commit(in_pieces, [DIGESTS[at] for at in order[low:high]])
    merge(at_once)
    merge(in_pieces)
    assert in_pieces.read_bytes() == at_once.read_bytes()


def test_the_same_rows_twice_are_one_part(tmp_path):
    path = tmp_path / "c.h5"
    assert commit(path, DIGESTS[:3]) == commit(path, DIGESTS[:3])
    assert len(list(parts_folder(path).iterdir())) == 1


def test_of_an_image_computed_twice_one_row_stays(tmp_path):
    path = tmp_path / "c.h5"
    commit(path, DIGESTS[:8])
    commit(path, DIGESTS[4:])
    cache = merge(path)
    assert np.array_equal(cache.features(cache.rows), features_of(DIGESTS))
    with h5py.File(path) as file:
        assert len(file["taps/toy/top/digest"]) == 12


def test_merging_removes_the_parts_and_adds_to_what_is_there(tmp_path):
    path = tmp_path / "c.h5"
    commit(path, DIGESTS[:6])
    merge(path, ROWS[:6])
    commit(path, DIGESTS[6:])
    cache = merge(path)
    assert not parts_folder(path).exists()
    assert np.array_equal(cache.features(ROWS), features_of(DIGESTS))


def test_rows_of_images_that_are_gone_are_kept(tmp_path):
    path = tmp_path / "c.h5"
    commit(path, DIGESTS)
    merge(path, ROWS[6:])
    assert set(parts.read_rows(path)[TOP.fingerprint].digests) == set(DIGESTS)


@pytest.mark.parametrize("damage", [lambda data: data[:-200], lambda data: b"", lambda data: b"junk" + data])
def test_a_damaged_part_is_set_aside_and_the_others_are_read(tmp_path, damage):
    path = tmp_path / "c.h5"
    part = commit(path, DIGESTS[:3])
    commit(path, DIGESTS[3:])
    part.write_bytes(damage(part.read_bytes()))
    assert sorted(parts.read_rows(path)[TOP.fingerprint].digests) == DIGESTS[3:]
    assert part.with_suffix(".damaged").exists()
    assert not part.exists()


@pytest.mark.parametrize("small", [0, parts.SMALL_BYTES])
def test_large_parts_of_a_folder_are_not_read_whole_but_verified(tmp_path, monkeypatch, small):
    """As of CACHE.h5, only `verify` reads all features; parts beside a CACHE.h5 are read whole, for they get merged."""
    monkeypatch.setattr(parts, "SMALL_BYTES", small)
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "c.h5"):
        part = commit(path, DIGESTS)
        data = part.read_bytes()
        part.write_bytes(data.replace(np.float32(3.1).tobytes(), np.float32(7).tobytes()))
        assert part.read_bytes() != data
        whole = small > 0 or path.name == "c.h5"
        assert parts.read_rows(path).keys() == (set() if whole else {TOP.fingerprint})
        assert part.exists() != whole
    if not small:
        merge(tmp_path / "folder")
        [problem] = verify(tmp_path / "folder").problems
        assert "its bytes do not match its name" in problem


def test_a_part_with_a_damaged_description_is_set_aside(tmp_path):
    path = tmp_path / "c.h5"
    part = commit(path, DIGESTS[:3])
    with h5py.File(part, "r+") as file:
        file["taps/toy/top"].attrs["tap"] = np.bytes_("not JSON")
    renamed = part.rename(part.with_name(part_name(part.read_bytes())))
    assert parts.read_rows(path) == {}
    assert renamed.with_suffix(".damaged").exists()


def test_a_damaged_cache_is_never_set_aside(tmp_path):
    path = tmp_path / "c.h5"
    commit(path, DIGESTS)
    merge(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(NotACache, match=r"c.h5 is damaged"):
        parts.read_rows(path)
    assert path.exists()


def test_a_half_written_part_is_not_read(tmp_path):
    path = tmp_path / "c.h5"
    part = commit(path, DIGESTS[:3])
    part.rename(part.with_name(".tmp-abc"))
    assert parts.read_rows(path) == {}


def test_of_two_taps_of_one_name_the_stored_one_keeps_it_and_nothing_is_lost(tmp_path):
    path = tmp_path / "c.h5"
    other = replace(TOP, weights_digest="others")
    commit(path, DIGESTS)
    merge(path)
    parts.commit(path, [other], DIGESTS, [-features_of(DIGESTS)], "{}")
    cache = merge(path)
    names = {tap.fingerprint: tap.name for tap in cache.taps.values()}
    assert names == {TOP.fingerprint: "toy/top", other.fingerprint: f"toy/top#{other.fingerprint[:6]}"}
    assert np.array_equal(cache.features(ROWS, names[TOP.fingerprint]), features_of(DIGESTS))
    assert np.array_equal(cache.features(ROWS, names[other.fingerprint]), -features_of(DIGESTS))


def test_a_full_disk_while_merging_loses_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    path = tmp_path / "c.h5"
    commit(path, DIGESTS)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(DiskFault, match=r"Cannot write .*c.h5: No space left on device"):
            merge(path)
    assert [one.name for one in tmp_path.iterdir()] == ["c.h5.parts"]
    assert np.array_equal(merge(path).features(ROWS), features_of(DIGESTS))


def test_failures_stand_beside_their_image(tmp_path):
    path = tmp_path / "c.h5"
    commit(path, DIGESTS[1:])
    failure = Failure(ROWS[0].path, DIGESTS[0], "truncated", "image file is truncated")
    cache = merge(path, failures={failure.path: failure})
    assert cache.failures == (failure,)
    assert cache.usable() == ROWS[1:]


names = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), max_size=12)
surrogates = st.binary(max_size=12).filter(lambda data: 0 not in data).map(os.fsdecode)


@pytest.mark.slow
@given(path=names | surrogates, label=names | surrogates, group=names | surrogates)
@settings(max_examples=40)
def test_odd_names_and_labels_survive(tmp_path_factory, path, label, group):
    file = tmp_path_factory.mktemp("odd") / "c.h5"
    row = ImageRow(f"a/{path}.png", label, group, "train", DIGESTS[0])
    commit(file, DIGESTS[:1])
    merge(file, [row], {row.path: Failure(row.path, row.digest, "unreadable", f"{label}: no")})
    found = Cache.open(file)
    assert found.rows == (row,)
    assert found.failures[0].reason == f"{label}: no"


def test_parts_of_another_extraction_that_come_while_merging_stay(tmp_path, monkeypatch):
    path = tmp_path / "c.h5"
    commit(path, DIGESTS[:3])
    keep = parts.layout.write_table

    def meanwhile(*args):
        state = keep(*args)
        monkeypatch.setattr(parts.layout, "write_table", keep)
        commit(path, DIGESTS[3:])
        return state

    monkeypatch.setattr(parts.layout, "write_table", meanwhile)
    merge(path)
    assert len(part_files(path)) == 1
    assert sorted(parts.read_rows(path)[TOP.fingerprint].digests) == sorted(DIGESTS)
    merge(path)
    assert not parts_folder(path).exists()


def test_every_row_tells_what_computed_it(tmp_path):
    path = tmp_path / "c.h5"
    makers = [canonical_json({"engine": name}) for name in ("b", "a", "unused")]
    for maker, low, high in ((0, 0, 4), (1, 4, 9), (2, 0, 2)):
        parts.commit(path, [TOP], DIGESTS[low:high], [features_of(DIGESTS[low:high])], makers[maker])
        merge(path)
    rows = parts.read_rows(path)[TOP.fingerprint]
    used, made_by = rows.made_by(DIGESTS[:9])
    assert used == (makers[1], makers[0])
    assert made_by.dtype == np.uint8
    assert made_by.tolist() == [1] * 4 + [0] * 5
    assert rows.makers == (makers[1], makers[0])
    with h5py.File(path) as file:
        assert json.loads(file["taps/toy/top"].attrs["provenance"]) == [{"engine": "a"}, {"engine": "b"}]


def test_rows_of_too_many_makers_are_refused_in_one_line(tmp_path):
    path, digests = tmp_path / "c.h5", [f"{number:064x}" for number in range(101)]
    for number, digest in enumerate(digests):
        parts.commit(path, [TOP], [digest], [features_of([digest])], canonical_json({"engine": number}))
    with pytest.raises(NotACache, match=r"Tap 'toy/top' was computed by 101 kinds of software. Extract it again"):
        merge(path)


def test_rows_of_other_widths_under_one_fingerprint_are_refused(tmp_path):
    path = tmp_path / "c.h5"
    for width, low in ((3, 0), (4, 5)):
        parts.commit(path, [TOP], DIGESTS[low : low + 5], [features_of(DIGESTS[low : low + 5], width)], "{}")
    with pytest.raises(NotACache, match=r"tap 'toy/top' has rows of different widths. Extract it again"):
        parts.read_rows(path)


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_half_precision_maps_come_back_as_they_were(tmp_path, folder):
    path = tmp_path / "c"
    if folder:
        path.mkdir()
    tap = replace(TOP, name="toy/maps", pooling="none", dtype="float16")
    maps = np.random.default_rng(0).normal(0, 9e3, (12, 3, 2, 5)).astype(np.float16)
    parts.commit(path, [tap], DIGESTS[:7], [maps[:7]], "{}")
    parts.commit(path, [tap], DIGESTS[7:], [maps[7:]], "{}")
    cache = merge(path, ROWS[::-1])
    for order in (ROWS, ROWS[::-1], ROWS[3:9:2], [ROWS[5], ROWS[1], ROWS[5]], []):
        found = cache.features(order)
        assert found.dtype == np.float32
        assert found.shape[1:] == (3, 2, 5)
        assert np.array_equal(found, maps[[ROWS.index(row) for row in order]].astype(np.float32))
    assert cache.vectors == ()


@pytest.mark.parametrize("block", [1, 30, 64, 10**6])
def test_rows_are_the_same_in_blocks_of_any_size(tmp_path, monkeypatch, block):
    monkeypatch.setattr("featcache.cache.rows.BLOCK_BYTES", block)
    path = tmp_path / "c.h5"
    commit(path, DIGESTS[6:])
    commit(path, DIGESTS[:6])
    cache = merge(path, ROWS[::-1])
    for order in (ROWS, ROWS[::-1], [ROWS[0], ROWS[11], ROWS[4], ROWS[4]]):
        assert np.array_equal(cache.features(order), features_of([row.digest for row in order]))
    assert verify(path).problems == ()


def test_small_parts_of_a_folder_are_put_together(tmp_path, monkeypatch):
    path = tmp_path / "c"
    path.mkdir()
    monkeypatch.setattr(parts, "PART_BYTES", 5 * 12)
    for at in range(12):
        commit(path, DIGESTS[at : at + 1])
    cache = merge(path)
    assert len(part_files(path)) == 3
    assert np.array_equal(cache.features(ROWS), features_of(DIGESTS))
    before = [part.name for part in part_files(path)]
    merge(path)
    assert [part.name for part in part_files(path)] == before


def test_a_large_part_of_a_folder_stays_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / "c"
    path.mkdir()
    large = commit(path, DIGESTS[:11])
    monkeypatch.setattr(parts, "SMALL_BYTES", large.stat().st_size)
    commit(path, DIGESTS[11:])
    merge(path)
    assert large in part_files(path)
    assert len(part_files(path)) == 2


def test_ctrl_c_while_merging_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "c.h5"
    commit(path, DIGESTS)
    real = parts.write_rows

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)  # as a terminal does: to the process, so to its main thread
        time.sleep(0.2)
        real(*args)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background lacks
    try:
        with monkeypatch.context() as patched:
            patched.setattr(parts, "write_rows", interrupted)
            with pytest.raises(KeyboardInterrupt):
                merge(path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [one.name for one in tmp_path.iterdir()] == ["c.h5.parts"]
    assert np.array_equal(merge(path).features(ROWS), features_of(DIGESTS))


def test_the_lock_keeps_others_waiting_and_says_so(tmp_path):
    path, said = tmp_path / "c.h5", []
    with parts.lock(path, lambda: said.append("first")) as waited:
        assert not waited
        second = threading.Thread(target=lambda: wait_for(path, said))
        second.start()
        while not said:
            time.sleep(0.01)
        assert said == ["waits"]
    second.join(10)
    assert said == ["waits", True]
    assert list(tmp_path.iterdir()) == []


def wait_for(path, said):
    with parts.lock(path, lambda: said.append("waits")) as waited:
        said.append(waited)


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError()])
def test_where_nothing_can_be_locked_the_work_goes_on(tmp_path, monkeypatch, error):
    def refused(*args, **options):
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    with parts.lock(tmp_path / "c.h5", lambda: None) as waited:
        assert not waited


def test_leaving_the_lock_removes_what_killed_processes_left_and_nothing_else(tmp_path):
    path = tmp_path / "c.h5"
    commit(path, DIGESTS[:3])
    with parts.lock(path, lambda: None):
        (tmp_path / ".tmp-mine").write_bytes(b"of another program")
        os.utime(tmp_path / ".tmp-mine", (0, 0))
    assert (tmp_path / ".tmp-mine").exists()
    assert len(part_files(path)) == 1


def test_a_listing_that_missed_a_part_is_made_again(tmp_path, monkeypatch):
    path = tmp_path / "c.h5"
    new = commit(path, DIGESTS)
    listings = iter([[], [], [new], [new], [new]][1:])
    monkeypatch.setattr("os.listdir", lambda folder: [part.name for part in next(listings)])
    assert part_files(path) == [new]


def test_a_cache_that_is_removed_while_it_is_merged_into_is_made_anew(tmp_path, monkeypatch):
    path = tmp_path / "c.h5"
    commit(path, DIGESTS[:3])
    merge(path)
    commit(path, DIGESTS[3:])
    real = parts.write_rows

    def removed(*args):
        monkeypatch.setattr(parts, "write_rows", real)
        path.unlink()
        real(*args)

    monkeypatch.setattr(parts, "write_rows", removed)
    cache = merge(path)
    assert np.array_equal(cache.features(ROWS[3:]), features_of(DIGESTS[3:]))
    assert [one.name for one in tmp_path.iterdir()] == ["c.h5"]


def test_digests_that_only_read_the_same_in_a_row_are_not_taken_for_those_of_the_rows(tmp_path):
    path = tmp_path / "c.h5"
    commit(path, DIGESTS)
    cache = merge(path)
    shifted = [DIGESTS[0] + DIGESTS[1][0], DIGESTS[1][1:], *DIGESTS[2:]]
    with pytest.raises(UnknownTap, match=r"has no features of 2 of 12 images"):
        cache.features([row._replace(digest=digest) for row, digest in zip(ROWS, shifted, strict=True)])
