"""What a model takes along to tell strange images from those it knows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import NotAModel, UsageError
from featcache.models import handoff, reference
from featcache.models.modelfile import read_reference
from featcache.models.probe import Probe
from featcache.models.reference import (
    NUM_FOLDS,
    PER_CLASS,
    Reference,
    directions_of,
    known_of,
    reference_of_head,
    reference_of_model,
)


def made(seed=0, num_val=40, num_classes=3, width=8):
    """Return a reference of classes that lie in directions of their own, and the directions."""
    rng = np.random.default_rng(seed)
    centres = np.eye(width)[:num_classes] * 10
    labels = np.repeat(np.arange(num_classes), 20)
    train = centres[labels] + rng.normal(size=(len(labels), width))
    of_val = rng.integers(0, num_classes, num_val)
    val = centres[of_val] + rng.normal(size=(num_val, width))
    directions = directions_of(train, labels, num_classes)
    return Reference.of(directions, [known_of(directions, val, val[:, :num_classes])]), centres


@given(rate=st.floats(0.001, 0.999), num_val=st.integers(1, 200), seed=st.integers(0, 9))
def test_the_threshold_rejects_that_share_of_the_validation_images(rate, num_val, seed):
    reference, _ = made(seed, num_val)
    threshold = reference.threshold(rate)
    over = int((reference.seen > threshold.value).sum())
    assert over == threshold.exceeded <= rate * num_val + 1e-6
    assert over > rate * num_val - 1
    assert threshold.images == num_val
    low, high = threshold.interval
    assert 0 < low < (over + 1) / (num_val + 1) < high < 1


def test_the_share_of_new_images_that_exceed_a_threshold_lies_in_its_interval():
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(400):
        threshold = Reference(np.zeros((1, 1)), np.zeros((2, 2)), np.sort(rng.random(29))).threshold(0.05)
        low, high = threshold.interval
        inside.append(low <= 1 - threshold.value <= high)
    assert 0.93 < np.mean(inside) < 0.97


def test_what_points_elsewhere_is_stranger_than_what_the_model_knows():
    reference, centres = made()
    strange = np.eye(8)[5:] * 10
    assert reference.strangeness(strange, strange[:, :3]).min() > reference.seen[-1]
    known = reference.strangeness(centres, centres[:, :3])
    assert known.max() < reference.threshold(0.02).value


def test_what_the_head_is_unsure_of_is_stranger_too():
    reference, centres = made()
    sure, unsure = np.array([[10.0, 0, 0]]), np.array([[4.0, 4, 4]])
    assert reference.strangeness(centres[:1], unsure) > reference.strangeness(centres[:1], sure)


def test_features_of_zeros_and_a_class_without_images_make_no_numbers_that_are_none():
    features = np.zeros((4, 5))
    directions = directions_of(features, np.array([0, 0, 2, 2]), 3)
    reference = Reference.of(directions, [known_of(directions, features, np.zeros((4, 3)))])
    assert np.isfinite(reference.strangeness(features, np.zeros((4, 3)))).all()


@pytest.mark.parametrize("rate", [0, 1, -0.1, 2, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(UsageError, match=r"`reject` takes the share .*such as 0\.02; got"):
        made()[0].threshold(rate)


def test_it_is_read_as_it_was_written():
    reference = made()[0]
    again = Reference.from_bytes(reference.to_bytes())
    for name, value in vars(reference).items():
        np.testing.assert_array_equal(getattr(again, name), value)


@pytest.mark.slow
def test_it_travels_in_the_model_and_says_of_images_what_it_says_of_cached_features(logreg, tmp_path, monkeypatch):
    model = handoff(logreg, tmp_path / "m.keras")
    found = read_reference(tmp_path / "m.keras")
    probe = Probe.open(logreg)
    ticks = []
    by_images = reference_of_model(model, probe, ticks.append)
    num_train, num_val = len(probe.rows("train")), len(probe.rows("val"))
    numbers = f"{num_train} for training, at most 50 of a class, and {num_val} for validation"
    assert ticks[0].note.endswith(f"runs on {num_train + num_val} known ones: {numbers}")
    assert (ticks[-1].done, ticks[-1].total) == (num_train + num_val, num_train + num_val)
    np.testing.assert_allclose(found.directions, by_images.directions, atol=1e-5)
    assert found.directions.shape == (3, logreg.trial.width)
    # Few validation images: training images, left out fold by fold, count too.
    assert len(found.seen) == len(probe.rows("val")) + len(probe.rows("train"))
    monkeypatch.setattr("featcache.models.reference.FEW_VAL", 0)
    of_val = reference_of_head(probe)
    assert len(of_val.seen) == len(probe.rows("val"))
    np.testing.assert_allclose(of_val.seen, by_images.seen, atol=1e-2)


def test_few_training_images_of_every_class_are_enough(logreg, monkeypatch):
    read = []
    features = Probe.features
    monkeypatch.setattr(Probe, "features", lambda self, rows: read.append(rows) or features(self, rows))
    monkeypatch.setattr("featcache.models.reference.PER_CLASS", 2)
    reference_of_head(Probe.open(logreg))
    assert len(read[0]) == 2 * 3
    assert PER_CLASS == 50


def test_directions_within_folds_come_from_as_many_images_as_those_that_are_kept(logreg, monkeypatch):
    """Those of more images would lie nearer to the images held out: too many known images would be called unknown."""
    sizes = []
    make = reference.directions_of
    monkeypatch.setattr(reference, "directions_of", lambda X, *rest: sizes.append(len(X)) or make(X, *rest))
    monkeypatch.setattr(reference, "PER_CLASS", 2)
    reference_of_head(Probe.open(logreg))
    assert sizes == [2 * 3] * (1 + NUM_FOLDS)


def test_a_damaged_one_is_named(logreg, tmp_path):
    import zipfile

    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("featcache_reference.npz", b"nothing")
    with pytest.raises(NotAModel, match=r"m\.keras: featcache_reference\.npz in it is damaged"):
        read_reference(path)
