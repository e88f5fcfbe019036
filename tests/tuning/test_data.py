import threading

import numpy as np
import pytest

from featcache.errors import ImagesChanged
from featcache.images.augment import augmentation_of
from featcache.images.folder import FolderSource
from featcache.images.manifest import scan
from featcache.spec import Preprocess
from featcache.tuning import data
from featcache.tuning.data import ImageSet, in_order, view_numbers


@pytest.fixture
def images(photos):
    found = scan(photos)
    labels = np.array([["blue", "green", "red"].index(row.label) for row in found.rows])
    return ImageSet(found.source, found.rows, labels, Preprocess(16))


def all_of(images, order, size):
    pixels, labels = zip(*images.batches(order, size), strict=True)
    return np.concatenate(pixels), np.concatenate(labels)


@pytest.mark.parametrize("size", [1, 7, 36, 100])
def test_batches_are_the_images_in_the_order_asked_for_kept_or_not(images, size, monkeypatch):
    order = np.random.default_rng(0).permutation(36)
    kept, labels = all_of(images, order, size)
    monkeypatch.setattr(data, "KEEP_BYTES", 0)
    again = ImageSet(images.source, images.rows, images.labels, images.preprocess)
    decoded, _ = all_of(again, order, size)
    assert np.array_equal(kept, decoded)
    assert np.array_equal(labels, images.labels[order])
    assert np.array_equal(all_of(images, in_order(images), size)[0][order], kept)


def test_kept_images_are_read_once(images, monkeypatch):
    read, reads = FolderSource.read, []
    monkeypatch.setattr(FolderSource, "read", lambda source, path: reads.append(path) or read(source, path))
    for _ in range(3):
        all_of(images, in_order(images), 10)
    assert len(reads) == 36


def test_several_threads_decode(images, monkeypatch):
    read, meeting = FolderSource.read, threading.Barrier(2, timeout=60)
    monkeypatch.setattr(data, "num_threads", lambda: 2)
    first = {"left": 2}

    def together(source, path):
        if first["left"] > 0:
            first["left"] -= 1
            meeting.wait()  # breaks where one thread alone would have to come twice
        return read(source, path)

    monkeypatch.setattr(FolderSource, "read", together)
    assert len(all_of(images, in_order(images), 36)[0]) == 36


def test_an_image_that_is_gone_is_named(images, photos):
    (photos / "red" / "003.png").unlink()
    with pytest.raises(ImagesChanged, match=r"red/003\.png cannot be read"):
        all_of(images, in_order(images), 36)


@pytest.mark.parametrize("seed", [0, 9_999, 12_345, 2**31])
def test_every_seed_sees_views_that_are_some(seed):
    numbers = [int(view_numbers(3, None, seed, epoch)[0]) for epoch in range(1, 50)]
    assert len(set(numbers)) == 49
    assert all(augmentation_of(f"light-{number}") for number in numbers)
    assert view_numbers(3, 4, seed, 0).tolist() == [0, 0, 0]
    of_four = np.concatenate([view_numbers(100, 4, seed, epoch) for epoch in (1, 2)])
    assert set(of_four.tolist()) == {1, 2, 3, 4}
