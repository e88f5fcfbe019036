import os
import subprocess
import sys

import numpy as np
import pytest

from featcache.cache.reader import Cache
from featcache.errors import UnknownTap

from .make_golden import DEEP, FEATURES, ROWS, TOP, write


@pytest.fixture
def cache(tmp_path):
    return write(tmp_path / "cache.h5")


def test_features_come_in_the_order_asked_for(cache):
    rows = [ROWS[4], ROWS[0], ROWS[4]]
    assert np.array_equal(cache.features(rows, TOP.name), FEATURES[TOP.name][[2, 0, 2]])


def test_arrays_are_the_labelled_images_of_one_split(cache):
    X, y = cache.arrays("val", tap=TOP.name)
    assert np.array_equal(X, FEATURES[TOP.name][[1, 1]])
    assert (X.dtype, y.dtype, list(y)) == (np.float32, np.int64, [0, 0])
    everything, y = cache.arrays(tap=TOP.name)
    assert (everything.shape, list(y)) == ((3, 3), [1, 0, 0])


def test_images_without_features_are_not_usable(cache):
    assert cache.usable() == [row for row in ROWS if row.path != "odd/html.jpg"]
    assert cache.usable("train") == [ROWS[0]]


def test_a_few_shots_are_the_same_few_and_more_of_them_when_more_are_asked(toy):
    few = {shots: {row.path for row in toy.usable("train", shots)} for shots in (1, 3, 10)}
    assert few[1] < few[3] < few[10]
    assert {shots: len(paths) for shots, paths in few.items()} == {1: 3, 3: 9, 10: 30}
    assert toy.usable("train", 3) == toy.usable("train", 3)


def test_a_tap_is_found_by_its_name_or_its_unambiguous_end(cache):
    assert cache.tap(TOP.name) == cache.tap("top") == TOP
    assert cache.tap("deep:max") == cache.tap(DEEP.name) == DEEP


def test_the_only_tap_needs_no_name(tmp_path):
    cache = write(tmp_path / "cache.h5")
    one = Cache(cache.path, cache.root, cache.rows, (), {TOP.name: TOP}, cache.split_spec, "pillow/1")
    assert one.tap() == TOP


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "toy/tip",
            r"no tap 'toy/tip' \(did you mean toy/top, toy/maps\?\); choose one of: toy/block/deep:max, toy/maps, ",
        ),
        (None, r"several taps; choose one of"),
        ("nonsense", r"no tap 'nonsense'; choose one of"),
    ],
)
def test_an_unknown_tap_is_refused_with_those_there_are(cache, name, message):
    with pytest.raises(UnknownTap, match=message):
        cache.tap(name)


def test_a_tap_without_a_row_for_an_image_says_what_to_do(cache):
    with pytest.raises(UnknownTap, match=r"'toy/top' has no features of 1 of 2 images, such as odd/html.jpg. Bring it"):
        cache.features([ROWS[0], ROWS[3]], TOP.name)


def test_the_class_index_is_the_sorted_order_of_the_names(cache):
    assert cache.classes == ("odd", "Ärzte")
    assert list(cache.labels([ROWS[0], ROWS[1]])) == [1, 0]


def test_names_that_are_not_utf8_come_back_as_the_file_system_spells_them(cache):
    assert os.fsencode(cache.rows[1].path) == b"odd/caf\xe9 \n.png"
    assert os.fsencode(cache.root) == b"/photos/caf\xe9"


def test_a_cache_opens_under_a_name_that_is_not_utf8(tmp_path):
    path = tmp_path / "caf\udce9.h5"
    write(path)
    assert Cache.open(path).rows == ROWS


def test_a_cache_opens_in_a_folder_that_cannot_be_written(cache, monkeypatch):
    before = cache.path.read_bytes()
    cache.path.chmod(0o444)
    Cache.open(cache.path).arrays("train", "top")
    assert cache.path.read_bytes() == before


def test_reading_needs_no_keras(cache):
    code = f"import sys, featcache as fc; fc.Cache.open({str(cache.path)!r}).arrays('val', 'top'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"keras", "tensorflow", "PIL"} & set(done.stdout.split())
