"""One golden file per format version: written once, read for ever, by featcache and by plain h5py."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from featcache.cache import layout
from featcache.cache.reader import Cache
from featcache.spec import SplitSpec

from .make_golden import DEEP, DIGESTS, FACTS, FAILURE, FEATURES, LATER, MAPS, PROVENANCE, REVIEW, ROWS, TOP, write

GOLDEN = {version: Path(__file__).with_name(f"golden_v{version}.h5") for version in layout.READ_VERSIONS}
every_version = pytest.mark.parametrize("path", GOLDEN.values(), ids=lambda path: path.stem)


def test_there_is_one_for_todays_version():
    assert GOLDEN[layout.FORMAT_VERSION].exists()


@every_version
def test_featcache_reads_it(path):
    cache = Cache.open(path)
    assert cache.rows == ROWS
    assert cache.failures == (FAILURE,)
    assert dict(cache.taps) == {DEEP.name: DEEP, MAPS.name: MAPS, TOP.name: TOP}
    assert os.fsencode(cache.root) == FACTS["root"]
    assert (cache.split_spec, cache.decode) == (SplitSpec(60, 20, 20, 5), "pillow/1")
    assert cache.classes == ("odd", "Ärzte")
    assert cache.splits == {"train": 1, "val": 2}
    is_first = path == GOLDEN[1]
    assert cache.listing == (None if is_first else {"table": "list.csv"})
    assert cache.changes.reviews == (() if is_first else (REVIEW,))
    for tap, features in FEATURES.items():
        found = cache.features([ROWS[1], ROWS[0], ROWS[2], ROWS[4]], tap)
        assert found.dtype == np.float32
        assert np.array_equal(found, features[[1, 0, 1, 2]])


def as_bytes(fact):
    return fact if isinstance(fact, bytes) else fact.encode()


@every_version
def test_plain_h5py_reads_it(path):
    with h5py.File(path) as file:
        assert file.attrs["format"] == b"featcache"
        assert file.attrs["format_version"] == int(path.stem[-1])
        assert len(file.attrs["content_digest"]) == 64
        images = file["images"]
        assert [os.fsdecode(name) for name in images["path"]] == [row.path for row in ROWS]
        assert [name.decode() for name in images["label"]] == [row.label for row in ROWS]
        assert list(images["group"]) == [b"", b"burst 7", b"", b"", b""]
        assert list(images["split"]) == [b"train", b"val", b"val", b"train", b""]
        assert list(images["digest"]) == [row.digest.encode() for row in ROWS]
        assert list(images["status"]) == [b"ok", b"ok", b"ok", b"unknown_format", b"ok"]
        assert images["reason"][3].decode() == FAILURE.reason
        facts = {key: as_bytes(fact) for key, fact in FACTS.items() if key != layout.LISTING or path != GOLDEN[1]}
        assert {name: images.attrs[name] for name in images.attrs if name != "content_digest"} == facts
        for tap in (TOP, DEEP, MAPS):
            group = file["taps"][tap.name]
            assert group["features"].dtype == tap.dtype
            assert np.array_equal(group["features"][()], FEATURES[tap.name])
            assert list(group["digest"]) == [DIGESTS[at].encode() for at in (1, 0, 3)]
            assert group.attrs["fingerprint"].decode() == tap.fingerprint
            makers = [PROVENANCE, LATER] if tap is MAPS else [PROVENANCE]
            assert json.loads(group.attrs["provenance"]) == [json.loads(maker) for maker in makers]
            assert list(group["made_by"]) == ([0, 1, 0] if tap is MAPS else [0, 0, 0])
            assert json.loads(group.attrs["tap"])["preprocess"]["size"] == 32


def test_the_writer_of_today_writes_the_same_bytes_every_time(tmp_path):
    write(tmp_path / "one.h5")
    write(tmp_path / "two.h5")
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def test_what_is_written_today_is_what_stands_in_the_golden_file(tmp_path):
    written = {}
    for path in (write(tmp_path / "today.h5").path, GOLDEN[layout.FORMAT_VERSION]):
        found = written.setdefault(path, {})
        with h5py.File(path) as file:

            def note(name, node, found=found):
                values = (str(node.dtype), node[()].tobytes()) if isinstance(node, h5py.Dataset) else None
                found[name] = (values, {key: str(node.attrs[key]) for key in node.attrs})

            file.visititems(note)
    today, golden = written.values()
    assert today == golden
