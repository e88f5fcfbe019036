import os
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from featcache.errors import DataError, NoImages
from featcache.images.array_source import pnm
from featcache.images.decode import Undecodable, decode
from featcache.images.manifest import scan
from featcache.images.sources import open_source
from featcache.spec import Preprocess

RNG = np.random.default_rng(0)


def stack(count, *shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max, (count, *(shape or (8, 8))), dtype=dtype)


def keras_style(path, save=np.savez, channels=(3,), digits=10):
    parts = {"train": 24, "test": 12}
    data = {f"x_{name}": stack(count, 8, 8, *channels) for name, count in parts.items()}
    data |= {f"y_{name}": (np.arange(count) % digits)[:, None] for name, count in parts.items()}
    save(path, **data)
    return data


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda s: st.sampled_from([s, (*s, 1), (*s, 3)]))


@given(image=shapes.flatmap(lambda shape: arrays.arrays(np.uint8, shape)))
def test_an_image_of_an_array_decodes_to_its_very_pixels(image):
    if image.shape[0] != image.shape[1]:
        image = np.resize(image, (image.shape[0], image.shape[0], *image.shape[2:]))
    shown = decode(pnm(image), Preprocess(len(image)))
    assert np.array_equal(shown, np.broadcast_to(image.reshape(len(image), len(image), -1), shown.shape))


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled(channels, order):
    image = np.full((4, 4, *channels), 200, order)
    image[0] = 100 * 257
    shown = decode(pnm(image), Preprocess(4))
    assert (int(shown[0, 0, 0]), int(shown[1, 0, 0])) == (100, 1)


def test_an_array_is_scanned_like_files():
    pixels = stack(5)
    images = scan(
        pixels, labels=[2, 10, 2, 10, 2], groups=["a", "a", "b", "b", ""], splits=["train", "val", "test", "", ""]
    )
    assert [row.path for row in images.rows] == [f"{number:06d}" for number in range(5)]
    assert [row.label for row in images.rows] == ["02", "10", "02", "10", "02"]
    assert [row.group for row in images.rows] == ["a", "a", "b", "b", ""]
    assert [row.split for row in images.rows][:3] == ["train", "val", "test"]
    assert (str(images.root), images.layout, images.source.location) == ("<arrays>", "splits", None)
    assert np.array_equal(decode(images.source.read("000003"), Preprocess(8))[..., 0], pixels[3])
    with pytest.raises(Undecodable, match="no such image in the arrays"):
        images.source.read("000005")


def test_an_array_without_labels_is_flat_and_with_them_has_classes():
    assert scan(stack(3)).layout == "flat"
    images = scan(stack(30), labels=["a", "b"] * 15)
    assert (images.layout, images.classes, sum(images.splits.values())) == ("classes", {"a": 15, "b": 15}, 30)


def test_equal_images_of_an_array_and_of_files_have_equal_digests(tmp_path):
    pixels = stack(2)
    for number, image in enumerate(pixels):
        (tmp_path / f"{number}.pgm").write_bytes(pnm(image))
    assert [row.digest for row in scan(pixels).rows] == [row.digest for row in scan(tmp_path).rows]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_as_keras_has_them_gives_splits(tmp_path, save):
    data = keras_style(tmp_path / "c.npz", save)
    images = scan(tmp_path / "c.npz", check=True)
    assert (images.layout, len(images.rows), images.sizes) == ("splits", 36, {(8, 8): 36})
    assert images.rows[0].path == "test/000000"
    assert {row.split for row in images.rows if row.path.startswith("test/")} == {"test"}
    assert {row.split for row in images.rows if row.path.startswith("train/")} == {"train", "val"}
    assert list(images.classes) == list("0123456789")
    source = open_source(tmp_path / "c.npz")
    for row in images.rows:
        split, number = row.path.split("/")
        assert np.array_equal(decode(source.read(row.path), Preprocess(8)), data[f"x_{split}"][int(number)])
        assert int(row.label) == data[f"y_{split}"][int(number), 0]


@pytest.mark.parametrize("names", [("x", "y"), ("X", "y"), ("images", "labels")])
def test_an_npz_of_images_and_labels_gives_classes(tmp_path, names):
    np.savez(tmp_path / "a.npz", **{names[0]: stack(4), names[1]: np.array(["b", "a", "b", "a"]), "other": np.zeros(3)})
    assert [row.label for row in scan(tmp_path / "a.npz").rows] == ["b", "a", "b", "a"]


def test_labels_sort_as_numbers_over_all_parts(tmp_path):
    np.savez(
        tmp_path / "a.npz", x_train=stack(2), y_train=[2, 100], x_val=stack(1), y_val=[7], x_test=stack(1), y_test=[30]
    )
    assert list(scan(tmp_path / "a.npz").classes) == ["002", "007", "030", "100"]


def test_an_npy_is_flat_and_read_an_image_at_a_time(tmp_path):
    pixels = stack(20)
    np.save(tmp_path / "a.npy", pixels)
    images = scan(tmp_path / "a.npy")
    assert (images.layout, images.root) == ("flat", tmp_path / "a.npy")
    assert np.array_equal(decode(images.source.read("000013"), Preprocess(8))[..., 0], pixels[13])
    os.truncate(tmp_path / "a.npy", 200)
    with pytest.raises(Undecodable, match="unreadable"):
        images.source.read("000013")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((2, 4, 4), np.float32),
            r"holds float32, images are uint8 or uint16.*\(x \* 255\)\.astype\('uint8'\) if",
        ),
        (np.zeros((2, 4, 4), np.int64), r"holds int64, .* x\.astype\('uint8'\)"),
        (np.zeros((2, 4, 4), bool), r"holds bool, "),
        (np.zeros((2, 3, 8, 8), np.uint8), r"shape \(2, 3, 8, 8\), .*Put the channels last: np\.moveaxis\(x, 1, -1\)"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"shape \(2, 8, 8, 4\), images are \(N, H, W\).*Reshape it"),
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\)"),
        (np.zeros((2, 0, 4), np.uint8), r"shape \(2, 0, 4\)"),
    ],
)
def test_arrays_that_are_no_images_are_refused_saying_what_to_do(tmp_path, array, message):
    with pytest.raises(DataError, match=f"The array .*{message}"):
        scan(array)
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=rf"a\.npy .*{message}"):
        scan(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", x=array)
    with pytest.raises(DataError, match=rf"x in .*a\.npz .*{message}"):
        scan(tmp_path / "a.npz")


def test_no_images_are_refused():
    with pytest.raises(NoImages, match=r"The array has no images: its shape is \(0, 8, 8\)"):
        scan(stack(0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": [1, 2]}, r"labels: 3 images, but values of shape \(2,\)\. Give one for each image\.$"),
        ({"labels": np.eye(3)}, r"labels: 3 images, but values of shape \(3, 3\).*np\.argmax\(y, axis=1\)"),
        ({"labels": [0.5, 1, 2]}, r"labels: values of type float64\. Give whole numbers or strings"),
        ({"labels": [-1, 1, 2]}, r"labels: labels are names or numbers from 0; the least is -1"),
        ({"splits": ["train", "dev", ""]}, r"splits= has 'dev'\. Name them train, val or test"),
        ({"groups": ["a"]}, r"groups: 3 images"),
    ],
)
def test_labels_splits_and_groups_that_do_not_fit_are_refused(given, message):
    with pytest.raises(DataError, match=message):
        scan(stack(3), **given)


def test_python_objects_are_never_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "evil"),))

    objects = np.array([Evil(), Evil()], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=objects)
    np.savez(tmp_path / "b.npz", x=stack(2), y=objects)
    for name in ("a.npy", "a.npz", "b.npz"):
        with pytest.raises(DataError, match=rf"{name} .*Python objects, which could run code"):
            scan(tmp_path / name)
    assert not (tmp_path / "evil").exists()


def test_other_files_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", pictures=stack(2))
    with pytest.raises(
        DataError, match=r"a\.npz has the arrays pictures; featcache reads x_train, y_train, .*images, labels"
    ):
        scan(tmp_path / "a.npz")
    np.save(tmp_path / "f.npy", np.asfortranarray(stack(3, 4, 5)))
    with pytest.raises(DataError, match=r"f\.npy .*Fortran order\); save np\.ascontiguousarray"):
        scan(tmp_path / "f.npy")
    for name in ("g.npy", "g.npz"):
        (tmp_path / name).write_bytes(b"garbage" * 50)
        with pytest.raises(DataError, match=rf"{name} is damaged, or not what its name says"):
            scan(tmp_path / name)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_array_that_declares_more_than_there_is_takes_no_memory(tmp_path, compression):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 1000, 1000), }"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(1000)
    (tmp_path / "a.npy").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
        archive.writestr("x.npy", data)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(DataError, match=r"the file ends before the array of shape \(1000000000, 1000, 1000\) does"):
            scan(tmp_path / name)


def test_an_array_in_memory_has_no_stamp_to_trust(tmp_path):
    pixels = stack(3)
    images = scan(pixels, index=tmp_path / "i")
    with pytest.raises(Undecodable, match="has no stamp"):
        images.source.stamp("000000")
    pixels[0] ^= 255
    assert scan(pixels, index=tmp_path / "i").rows[0].digest != images.rows[0].digest
    assert not (tmp_path / "i").exists()
