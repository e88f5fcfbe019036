"""What a file must be before anything is read from it."""

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.cache import layout, parts
from featcache.cache.reader import Cache
from featcache.errors import CacheVersion, DiskFault, NotACache

from .make_golden import FACTS, ROWS, TOP, write


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "cache.h5").path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write(tmp_path_factory.mktemp("whole") / "cache.h5").path.read_bytes()


def read_all(path):
    cache = Cache.open(path)
    return [cache.features(cache.usable(), tap) for tap in cache.taps]


def replace(path, name, make):
    """Put what `make(group, name)` makes in the place of a dataset or group."""
    with h5py.File(path, "r+") as file:
        group, _, last = name.rpartition("/")
        del file[name]
        make(file[group or "/"], last)


def test_a_missing_cache_is_named_with_the_command_that_makes_one(tmp_path):
    with pytest.raises(NotACache, match=r"No cache at .*none.h5. Make one: featcache extract"):
        Cache.open(tmp_path / "none.h5")


@pytest.mark.parametrize("content", [b"", b"not a cache", b"\x89HDF\r\n\x1a"])
def test_a_file_that_is_not_hdf5_is_refused(tmp_path, content):
    (tmp_path / "photos.h5").write_bytes(content)
    with pytest.raises(NotACache, match=r"photos.h5 is not an HDF5 file"):
        Cache.open(tmp_path / "photos.h5")


@pytest.mark.parametrize("content", [None, "", "[]", '{"settings": {}}'])
def test_a_folder_of_images_is_no_cache_and_is_extracted(content, tmp_path):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(NotACache, match=rf"{tmp_path} is a folder, not a cache\..* extract {tmp_path} -o CACHE"):
        Cache.open(tmp_path)


def test_the_folder_of_a_run_is_no_cache_and_names_the_one_it_was_made_from(tmp_path):
    (tmp_path / "run.json").write_text('{"settings": {"cache": "/data/photos.h5"}}')
    with pytest.raises(NotACache, match=r"is the folder of a run, not a cache .* made from: /data/photos\.h5"):
        Cache.open(tmp_path)


@pytest.mark.parametrize("attributes", [{}, {"format": "keras"}, {"format": 1}, {"format": [1, 2]}])
def test_an_hdf5_file_of_someone_else_is_refused(tmp_path, attributes):
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.attrs.update(attributes)
    with pytest.raises(NotACache, match=r"model.h5 is (an HDF5 file, but not a cache of featcache|damaged)"):
        Cache.open(tmp_path / "model.h5")


@pytest.mark.parametrize(("version", "advice"), [(3, "Upgrade featcache"), (0, r"Extract again into another `out`")])
def test_another_format_version_is_refused_with_what_to_do(path, version, advice):
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = version
    with pytest.raises(CacheVersion, match=rf"has cache format {version}; this featcache reads 1 and 2. {advice}"):
        Cache.open(path)


@pytest.mark.parametrize("version", ["one", [1, 1], b"\xff"])
def test_a_format_version_that_is_no_number_is_damage(path, version):
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = version
    with pytest.raises(NotACache, match=r"cache.h5 is damaged"):
        Cache.open(path)


def test_a_truncated_file_is_refused(path):
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(NotACache, match=r"cache.h5 is damaged: .*truncated.* Move it away and run featcache extract"):
        read_all(path)


@pytest.mark.parametrize("name", ["images", "taps"])
@pytest.mark.parametrize("link", [h5py.ExternalLink("other.h5", "/images"), h5py.SoftLink("/elsewhere")])
def test_a_group_that_leads_elsewhere_is_refused(path, name, link):
    write(path.with_name("other.h5"))
    replace(path, name, lambda group, last: group.__setitem__(last, link))
    with pytest.raises(NotACache, match=rf"cache.h5 has no group '{name}' in the file itself"):
        Cache.open(path)


def test_a_part_is_no_cache(path):
    with h5py.File(path, "r+") as file:
        del file["images"]
    with pytest.raises(NotACache, match=r"cache.h5 has no images: it is a part, or damaged"):
        Cache.open(path)


@pytest.mark.parametrize("name", ["images/path", f"taps/{TOP.name}/features"])
@pytest.mark.parametrize("link", [h5py.ExternalLink("other.h5", "/images/path"), h5py.SoftLink("/images/label")])
def test_a_dataset_that_leads_elsewhere_is_refused(path, name, link):
    write(path.with_name("other.h5"))
    replace(path, name, lambda group, last: group.__setitem__(last, link))
    with pytest.raises(NotACache, match=rf"cache.h5 has no dataset '/{name}' in the file itself"):
        read_all(path)


def in_another_file(group, name):
    group.create_dataset(name, (3, 3), "f4", external=[("/etc/hostname", 0, 36)])


def virtual(group, name):
    sources = h5py.VirtualLayout((3, 3), "f4")
    sources[:] = h5py.VirtualSource("other.h5", "features", (3, 3))
    group.create_virtual_dataset(name, sources)


def of_doubles_in_one_row(group, name):
    group.create_dataset(name, data=np.zeros(9))


def of_integers(group, name):
    group.create_dataset(name, data=np.zeros((3, 3), np.int32))


def of_objects(group, name):
    group.create_dataset(name, (3, 3), h5py.string_dtype())


def a_group(group, name):
    group.create_group(name)


@pytest.mark.parametrize("make", [in_another_file, virtual, of_doubles_in_one_row, of_integers, of_objects])
def test_a_dataset_that_is_no_plain_array_is_refused(path, make):
    replace(path, f"taps/{TOP.name}/features", make)
    with pytest.raises(NotACache, match=r"'/taps/toy/top/features' is not a plain 2-dimensional array"):
        read_all(path)


def test_a_group_in_the_place_of_a_dataset_is_refused(path):
    replace(path, "images/split", a_group)
    with pytest.raises(NotACache, match=r"no dataset '/images/split' in the file itself"):
        Cache.open(path)


def test_a_declared_shape_that_is_not_stored_is_refused_before_it_fills_the_memory(path):
    replace(path, f"taps/{TOP.name}/features", lambda group, last: group.create_dataset(last, (10**7, 10**4), "f4"))
    with pytest.raises(NotACache, match=r"declares 400000000000 bytes that it does not hold"):
        read_all(path)


def compressed(group, name):
    group.create_dataset(name, data=np.zeros((3, 3), np.float32), chunks=(1, 3), compression="gzip")


def in_its_header(group, name):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    h5py.h5d.create(group.id, name.encode(), h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((3, 3)), plist)


@pytest.mark.parametrize("make", [compressed, in_its_header])
def test_a_dataset_that_may_be_larger_than_its_file_is_refused(path, make):
    replace(path, f"taps/{TOP.name}/features", make)
    with pytest.raises(NotACache, match=r"'/taps/toy/top/features' is not a plain 2-dimensional array"):
        read_all(path)


@pytest.mark.parametrize("name", ["images/path", f"taps/{TOP.name}/digest"])
@pytest.mark.parametrize(("shape", "dtype"), [((3,), "S300000000"), ((2**29,), "S1")])
def test_a_text_column_that_is_declared_but_not_stored_is_refused(path, name, shape, dtype):
    replace(path, name, lambda group, last: group.create_dataset(last, shape, dtype))
    with pytest.raises(NotACache, match=rf"'/{name}' declares \d+ bytes that it does not hold"):
        read_all(path)


def test_an_array_that_would_reach_behind_the_end_of_the_file_is_refused(path):
    with h5py.File(path) as file:
        header = file["taps"][TOP.name]["features"].id.get_offset()
    data = path.read_bytes()
    at = data.index(header.to_bytes(8, "little") + (36).to_bytes(8, "little"))
    path.write_bytes(data[:at] + (len(data) - 8).to_bytes(8, "little") + data[at + 8 :])
    with pytest.raises(NotACache, match=r"cache.h5(: dataset '/taps/toy/top/features' declares 36 bytes| is damaged)"):
        read_all(path)


def attribute(path, group, name, value):
    with h5py.File(path, "r+") as file:
        file[group].attrs[name] = value


@pytest.mark.parametrize("name", ["tap", "provenance", "fingerprint", "content_digest"])
@pytest.mark.parametrize("value", [np.bytes_(b"x" * 60_000), "text of variable length", 7, np.zeros(9), [b"a", b"b"]])
def test_an_attribute_that_is_not_what_was_written_is_refused(path, name, value):
    attribute(path, f"taps/{TOP.name}", name, value)
    with pytest.raises(NotACache) as caught:
        read_all(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["", "{}", '"text"', "null", "3", "[[]", "[" * 10_000, '[{"a":NaN}]'])
def test_a_provenance_that_is_no_list_is_refused(path, text):
    attribute(path, f"taps/{TOP.name}", "provenance", np.bytes_(text))
    with pytest.raises(NotACache, match=r"cache.h5(: tap '/taps/toy/top' does not match| is damaged)"):
        read_all(path)


def test_a_maker_that_there_is_not_is_refused(path):
    replace(path, f"taps/{TOP.name}/made_by", lambda group, last: group.create_dataset(last, data=np.uint8([0, 1, 0])))
    with pytest.raises(NotACache, match=r"tap '/taps/toy/top' does not match its own description"):
        read_all(path)


def test_a_tap_that_is_missing_is_noticed(path):
    with h5py.File(path, "r+") as file:
        del file["taps"][TOP.name]
    with pytest.raises(NotACache, match=r"it does not hold the taps and images that were written"):
        Cache.open(path)


def test_a_tap_that_was_put_in_is_noticed(path):
    with h5py.File(path, "r+") as file:
        file["taps"].copy(TOP.name, "other")
    with pytest.raises(NotACache, match=r"it does not hold the taps and images that were written"):
        Cache.open(path)


def test_a_group_that_holds_itself_is_read_in_finite_time(path):
    with h5py.File(path, "r+") as file:
        file["taps"]["round"] = file["taps"]
    assert len(read_all(path)) == 3


def test_a_file_that_may_not_be_read_is_named(path, monkeypatch):
    def refused(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refused)
    with pytest.raises(DiskFault, match=r"Cannot read .*cache.h5: Permission denied. It stays as it is"):
        Cache.open(path)


def test_features_that_are_not_those_described_are_refused(path):
    with h5py.File(path, "r+") as file:
        tap = file["taps"][TOP.name]
        tap.attrs["tap"] = np.bytes_(tap.attrs["tap"].replace(b'"size":32', b'"size":64'))
    with pytest.raises(NotACache, match=r"tap '/taps/toy/top' does not match its own description"):
        read_all(path)


def test_a_row_too_few_is_refused(path):
    replace(path, f"taps/{TOP.name}/digest", lambda group, last: group.create_dataset(last, data=np.array([b"a" * 64])))
    with pytest.raises(NotACache, match=r"does not match its own description"):
        read_all(path)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "null"])
def test_a_tap_without_a_description_is_refused(path, text):
    with h5py.File(path, "r+") as file:
        file["taps"][TOP.name].attrs["tap"] = np.bytes_(text)
    with pytest.raises(NotACache, match=r"cache.h5: '/taps/toy/top' is damaged. Not the description of a tap"):
        Cache.open(path)


ODD = [(b'"name":"toy/top"', b'"name":7'), (b'"seed":1', b'"seed":NaN'), (b'"alpha",0.5', b'"alpha",NaN')]


@pytest.mark.parametrize("change", ODD)
def test_a_tap_of_odd_values_is_refused(path, change):
    with h5py.File(path, "r+") as file:
        attributes = file["taps"][TOP.name].attrs
        assert change[0] in attributes["tap"]
        attributes["tap"] = np.bytes_(bytes(attributes["tap"]).replace(*change))
    with pytest.raises(NotACache, match=r"cache.h5: (tap )?'/taps/toy/top' (does not match|is damaged)"):
        Cache.open(path)


@pytest.mark.parametrize("text", ["", "[]", "{}x", '{"train": 1, "more": 2}'])
def test_a_split_that_cannot_be_read_is_damage(path, text):
    with h5py.File(path, "r+") as file:
        file["images"].attrs["split_spec"] = np.bytes_(text)
    with pytest.raises(NotACache, match=r"cache.h5 is damaged"):
        Cache.open(path)


def test_columns_of_other_lengths_are_damage(path):
    replace(path, "images/label", lambda group, last: group.create_dataset(last, data=np.array([b"a"])))
    with pytest.raises(NotACache, match=r"cache.h5 is damaged"):
        Cache.open(path)


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=50)
def test_a_file_cut_off_anywhere_is_refused(whole, tmp_path_factory, share):
    path = tmp_path_factory.getbasetemp() / "cut.h5"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(NotACache):
        read_all(path)


def test_a_full_disk_keeps_the_old_cache(path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    before, failures = path.read_bytes(), {failure.path: failure for failure in Cache.open(path).failures}
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(DiskFault, match=r"Cannot write .*cache.h5: No space left"):
        parts.merge(path, ROWS, failures, FACTS)
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == ["cache.h5"]
    assert Cache.open(path).rows == ROWS


def test_strings_are_fixed_bytes_that_hold_the_longest():
    assert layout.strings([b"a", b"abc"]).dtype == "S3"
    assert layout.strings([b"", b""]).dtype == "S1"
    assert layout.strings([]).shape == (0,)


def test_what_hdf5_says_of_a_disk_that_failed_is_not_what_is_reported(tmp_path, monkeypatch):
    def fill(file, check):
        def full(handle, data):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.write", full)
        file.create_dataset("x", data=np.zeros(10**6))
        raise RuntimeError("unable to flush: bad object header")

    with pytest.raises(DiskFault, match=r"Cannot write .*c.h5: No space left on device"):
        layout.write_table(tmp_path / "c.h5", None, fill)
    assert list(tmp_path.iterdir()) == []
