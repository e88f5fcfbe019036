"""A tap as a dataset: the rows of `arrays`, read by batches, under a library that must be there."""

import pickle
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
from tiny import write_images

import featcache as fc
from featcache.errors import EnvironmentFault, UnknownTap, UsageError

TAP = "pixels:size=8/top"


@pytest.fixture
def with_torch(monkeypatch):
    """Have PyTorch look installed: its datasets are a protocol, so nothing of it is used."""
    torch = ModuleType("torch")
    torch.__spec__ = ModuleSpec("torch", None)
    monkeypatch.setitem(sys.modules, "torch", torch)


def epoch_of(dataset):
    """Return the features and classes of one epoch, and the sizes of its batches."""
    batches = [(features.numpy(), classes.numpy()) for features, classes in dataset]
    features, classes = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return features, classes, [len(batch) for _, batch in batches]


def in_any_order(features):
    return sorted(map(tuple, features.tolist()))


def test_tf_batches_have_every_row_once(toy):
    X, y = toy.arrays("val", TAP)
    dataset = toy.dataset("val", TAP, batch_size=5)
    features, classes, sizes = epoch_of(dataset)
    assert np.array_equal(features, X)
    assert np.array_equal(classes, y)
    assert sizes == [5] * (len(y) // 5) + [len(y) % 5] * (len(y) % 5 > 0)
    assert len(dataset) == len(sizes)
    assert dataset.class_names == ["blue", "green", "red"]
    assert (features.dtype, classes.dtype) == (np.float32, np.int64)


def test_tf_shuffles_train_by_the_seed_and_differently_in_every_epoch(toy):
    X, y = toy.arrays("train", TAP)
    dataset = toy.dataset("train", TAP)
    first, second = epoch_of(dataset), epoch_of(dataset)
    again = epoch_of(toy.dataset("train", TAP))
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], second[1])
    assert not np.array_equal(first[1], epoch_of(toy.dataset("train", TAP, seed=1))[1])
    for features, classes, _ in (first, second):
        label_of = {tuple(row): label for row, label in zip(X.tolist(), y, strict=True)}
        assert in_any_order(features) == in_any_order(X)
        assert [label_of[tuple(row)] for row in features.tolist()] == classes.tolist()
    assert np.array_equal(epoch_of(toy.dataset("train", TAP, shuffle=False))[1], y)


def test_keras_fits_on_it(toy):
    import keras

    model = keras.Sequential([keras.layers.Dense(3)])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(
        toy.dataset("train", TAP), epochs=3, shuffle=False, verbose=0
    )  # Keras would warn that the dataset shuffles
    assert model.predict(toy.dataset("val", TAP), verbose=0).shape == (len(toy.usable("val")), 3)


def test_torch_samples_are_the_rows_of_arrays(toy, with_torch):
    X, y = toy.arrays("train", TAP)
    dataset = toy.dataset("train", TAP, kind="torch")
    assert len(dataset) == len(y)
    assert dataset.class_names == ["blue", "green", "red"]
    features, label = dataset[3]
    assert np.array_equal(features, X[3])
    assert label == y[3]
    assert np.array_equal(dataset[-1][0], X[-1])
    batch = dataset.__getitems__([7, 0, 7])  # what a DataLoader calls
    assert np.array_equal([features for features, _ in batch], X[[7, 0, 7]])
    assert len(list(dataset)) == len(y)  # ends with IndexError


def test_torch_workers_get_it_by_pickle(toy, with_torch):
    dataset = pickle.loads(pickle.dumps(toy.dataset("val", TAP, kind="torch")))
    assert np.array_equal(dataset[0][0], toy.arrays("val", TAP)[0][0])


def test_a_file_that_is_replaced_meanwhile_is_read_from_its_new_place(tmp_path, with_torch):
    photos = write_images(tmp_path / "photos")
    cache = fc.extract(photos, "pixels:size=8", out=tmp_path / "photos.h5")
    dataset = cache.dataset("train", kind="torch")
    before = dataset[0][0]
    write_images(photos, first=100)
    fc.extract(photos, "pixels:size=8", out=tmp_path / "photos.h5")
    assert np.array_equal(dataset[0][0], before)


def test_an_image_without_a_row_is_refused_before_the_first_batch(tmp_path, with_torch):
    photos = write_images(tmp_path / "photos")
    fc.extract(photos, "pixels:size=8", out=tmp_path / "photos.h5")
    write_images(photos, first=100)
    cache = fc.extract(photos, "pixels:size=4", out=tmp_path / "photos.h5")
    with pytest.raises(UnknownTap, match=r"tap 'pixels:size=8/top' has no features of .* images, such as"):
        cache.dataset("train", "pixels:size=8/top", kind="torch")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"split": "trian"}, UsageError, "`split` takes train, val, test; got 'trian' .did you mean train"),
        ({"tap": "topp"}, UnknownTap, "no tap 'topp'"),
        ({}, UnknownTap, "several taps; choose one of"),
        ({"tap": TAP, "kind": "jax"}, UsageError, "`kind` takes tf, torch; got 'jax'"),
        ({"tap": TAP, "batch_size": 0}, UsageError, "`batch_size` takes a number from 1; got 0"),
        ({"tap": TAP, "kind": "torch", "batch_size": 8}, UsageError, "to the DataLoader"),
        ({"tap": TAP, "kind": "torch", "shuffle": True}, UsageError, "to the DataLoader"),
    ],
)
def test_what_cannot_be_meant_is_refused(toy, with_torch, arguments, error, message):
    with pytest.raises(error, match=message):
        toy.dataset(**arguments)


def test_a_split_without_labelled_images_is_refused(tmp_path):
    cache = fc.extract(write_images(tmp_path / "photos"), "pixels:size=8", split="80/20", out=tmp_path / "photos.h5")
    with pytest.raises(UsageError, match=r"has no labelled images in test. Its splits: train, val"):
        cache.dataset("test")


@pytest.mark.parametrize(("kind", "package"), [("tf", "tensorflow"), ("torch", "torch")])
def test_a_library_that_is_not_installed_is_named(toy, monkeypatch, kind, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentFault, match=f"needs {package}, which is not installed: pip install {package}"):
        toy.dataset("train", TAP, kind=kind)
