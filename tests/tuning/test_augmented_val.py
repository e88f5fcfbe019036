"""Validation images that judge the epochs may be augmented, as in some tutorials: always in the same way."""

import json
import shutil

import numpy as np
import pytest

from featcache.cache.reader import Cache
from featcache.errors import UsageError
from featcache.images.augment import augmented
from featcache.models import Probe, handoff
from featcache.models.assemble import logits_of
from featcache.models.certificate import load_pixels
from featcache.spec import IDENTITY
from featcache.sweeps import Run, compare
from featcache.sweeps.metrics import log_loss, wilson
from featcache.tuning import Recipe, finetune
from featcache.tuning.data import image_sets, in_order
from featcache.tuning.tuned import record_of
from featcache_cli.finetune import text

HOW = {"epochs": 2, "learning_rate": 1e-3, "patience": 9, "batch": 16, "augment": "strong", "augment_val": True}


@pytest.fixture
def fresh(weak, tmp_path):
    """Return the head in a run of its own, which has no activations yet."""
    return Run.open(shutil.copytree(weak.run.path, tmp_path / "own.run"))[weak.trial.trial]


def val_of(chosen, view):
    """Return pixels and classes of the validation images in a view."""
    probe = Probe.open(chosen)
    rows = probe.rows("val")
    pixels = load_pixels(probe.source, rows, probe.preprocess)
    views = [augmented(image, view, row.digest) for image, row in zip(pixels, rows, strict=True)]
    return np.stack(views), probe.labels(rows)


def test_the_same_views_judge_every_epoch_whatever_the_seed(weak):
    probe = Probe.open(weak)
    expected, labels = val_of(weak, "strong-1")
    for seed in (0, 7):
        _, val_set = image_sets(probe, Recipe(augment="strong", augment_val=True, seed=seed))
        for size in (4, 100):
            pixels, of_images = zip(*val_set.batches(in_order(val_set), size), strict=True)
            assert np.array_equal(np.concatenate(pixels), expected)
            assert np.array_equal(np.concatenate(of_images), labels)
    [(plain, _)] = val_set.as_they_are().batches(in_order(val_set), 100)
    assert np.array_equal(plain, val_of(weak, IDENTITY)[0])
    _, unaugmented = image_sets(probe, Recipe(augment="strong"))
    assert unaugmented.judging_view == 0


def test_what_is_augmented_has_to_be_said():
    with pytest.raises(UsageError, match=r"^`augment_val` needs the kind of augmentation, such as `augment='light'`$"):
        Recipe(augment_val=True)
    assert Recipe(augment="light", augment_val=True).flags == ["--augment", "light", "--augment-val"]
    assert "augment_val" not in Recipe(augment="light").to_json()  # states of earlier versions lack it


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"views": 2}, {"views": 2, "prefix": False}])
def test_epochs_are_judged_on_augmented_images_and_predictions_are_of_images_as_they_are(how, fresh, tmp_path):
    tuned = finetune(fresh, tmp_path / "a.keras", **HOW | how)
    assert bool(tuned.prefix) == (how == {"views": 2})
    views, labels = val_of(fresh, "strong-1")
    start = logits_of(handoff(fresh)).predict(views, verbose=0)
    assert tuned.start.val_loss == pytest.approx(log_loss(start, labels), rel=1e-4)
    assert tuned.best.val.value >= tuned.start.val.value
    best = logits_of(tuned.model).predict(views, verbose=0)
    assert tuned.best.val_loss == pytest.approx(log_loss(best, labels), rel=1e-3)

    plain, _ = val_of(fresh, IDENTITY)
    logits = logits_of(tuned.model).predict(plain, verbose=0)
    np.testing.assert_allclose(tuned.val_logits, logits, atol=1e-3)
    hits = int((logits.argmax(axis=1) == labels).sum())
    assert tuned.plain_val == wilson(hits, len(labels))
    assert compare(fresh, tuned).scores == (fresh.trial.score, tuned.plain_val.value)
    shown = text(tuned)
    assert "augmented val [95 %]" in shown
    assert "each image in its view strong-1, in all epochs." in shown
    assert f"On the images as they are, the model has {hits / len(labels):.3f}" in shown


@pytest.mark.slow
def test_controls_are_judged_on_the_same_views(fresh, tmp_path):
    tuned = finetune(fresh, tmp_path / "a.keras", views=2, controls="frozen,scratch", **HOW)
    frozen, scratch = tuned.controls.values()
    assert frozen.start.val_loss == pytest.approx(tuned.start.val_loss, rel=1e-4)
    views, labels = val_of(fresh, "strong-1")
    best = logits_of(scratch.model).predict(views, verbose=0)
    assert scratch.best.val_loss == pytest.approx(log_loss(best, labels), rel=1e-3)
    plain, _ = val_of(fresh, IDENTITY)
    np.testing.assert_allclose(scratch.val_logits, logits_of(scratch.model).predict(plain, verbose=0), atol=1e-3)
    assert "on the same images as they are: " in text(tuned)
    cached_taps = Cache.open(fresh.run.path / "prefix.h5").taps.values()
    assert sorted({tap.view for tap in cached_taps}) == [IDENTITY, "strong-1"]
    assert json.loads(record_of(fresh.run.path, tuned.path).read_text())["val_view"] == "strong-1"


@pytest.mark.slow
def test_a_model_judged_on_augmented_images_and_one_on_images_as_they_are_do_not_replace_each_other(fresh, tmp_path):
    model = tmp_path / "tuned.keras"
    plain = {**HOW, "augment_val": False}
    for first, then in ((HOW, plain), (plain, HOW)):
        finetune(fresh, model, **first, force=True)
        before = model.read_bytes()
        with pytest.raises(UsageError, match="is no model that was fine-tuned with these options"):
            finetune(fresh, model, **then)
        assert model.read_bytes() == before
