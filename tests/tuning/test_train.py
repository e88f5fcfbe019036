"""The training loop alone, on a network that compiles in a moment."""

import math
from importlib import import_module

import keras
import numpy as np
import pytest

from featcache.spec import ImageRow, Preprocess
from featcache.sweeps.metrics import Score
from featcache.tuning.data import ImageSet
from featcache.tuning.train import Epoch, Recipe, predict_logits, train

loop = import_module("featcache.tuning.train")  # the package has the function under this name
SIZE = 4


def image_set(count, seed=0):
    """Return images whose class is whether they are bright."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    pixels = rng.integers(0, 120, (count, SIZE, SIZE, 3)) + 100 * labels[:, None, None, None]
    rows = [ImageRow(f"{at}.png", str(label), "", "", "") for at, label in enumerate(labels)]
    return ImageSet(None, rows, labels, Preprocess(SIZE), pixels.astype(np.uint8))


def small_model(bias=0.0):
    keras.utils.set_random_seed(0)
    image = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 127.5, -1)(keras.ops.cast(image, "float32"))
    x = keras.layers.Dense(2, name="logits")(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, keras.layers.Softmax()(x))
    model.get_layer("logits").set_weights([np.zeros((3, 2)), np.array([0.0, bias])])
    return model


def run_loop(model, recipe, checkpoint=lambda: None, images=24):
    return train(model, image_set(images), image_set(11, seed=1), recipe, checkpoint, lambda tick: None)


def scripted(monkeypatch, scores, losses=None):
    """Let validation answer with these scores, epoch 0 first."""
    losses = losses or [1.0] * len(scores)

    def evaluate(logits, images, recipe, number, loss):
        return Epoch(number, loss, losses[number], Score(scores[number], 0, 1), 0.0)

    monkeypatch.setattr(loop, "_evaluate", evaluate)


def epoch(number, value, loss):
    return Epoch(number, 0.0, loss, Score(value, 0, 1), 0.0)


def test_it_learns():
    model = small_model()
    history, best = run_loop(model, Recipe(epochs=15, learning_rate=0.1, patience=15))
    assert history[0].val.value < 0.6
    assert best.val.value == 1
    assert best == max(history, key=lambda one: (one.val.value, -one.val_loss))


def test_a_higher_score_is_better_and_of_equal_scores_the_lower_loss():
    assert epoch(1, 0.9, 5.0).better_than(epoch(0, 0.8, 1.0))
    assert epoch(1, 0.9, 0.5).better_than(epoch(0, 0.9, 0.6))
    assert not epoch(1, 0.9, 0.6).better_than(epoch(0, 0.9, 0.6))
    assert not epoch(1, 0.9, 0.7).better_than(epoch(0, 0.9, 0.6))
    assert not epoch(1, 0.8, 0.0).better_than(epoch(0, 0.9, 9.0))


def test_the_best_epoch_is_kept_and_its_weights_are_those_of_the_model(monkeypatch):
    scripted(monkeypatch, [0.5, 0.6, 0.8, 0.8, 0.7, 0.8], [1, 1, 0.9, 0.5, 1, 0.6])
    model, kept = small_model(), []
    history, best = run_loop(
        model, Recipe(epochs=5, learning_rate=0.1, patience=9), lambda: kept.append(model.get_weights())
    )
    assert (best.epoch, len(history)) == (3, 6)
    assert len(kept) == 4  # epochs 0, 1, 2 and 3
    for now, then in zip(model.get_weights(), kept[-1], strict=True):
        np.testing.assert_array_equal(now, then)


def test_scores_of_zero_are_no_worse_than_zero(monkeypatch):
    scripted(monkeypatch, [0.0, 0.0, 0.0], [1.0, 2.0, 3.0])
    assert run_loop(small_model(), Recipe(epochs=2))[1].epoch == 0


def test_a_model_that_only_got_worse_is_given_back_as_it_was(monkeypatch):
    scripted(monkeypatch, [0.9, 0.8, 0.7, 0.6])
    model = small_model(bias=3.0)
    before = model.get_weights()
    history, best = run_loop(model, Recipe(epochs=9, learning_rate=1.0, patience=3))
    assert (best.epoch, len(history)) == (0, 4)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize(("patience", "epochs"), [(1, 2), (2, 5)])
def test_it_stops_when_patience_is_over(patience, epochs, monkeypatch):
    scripted(monkeypatch, [0.5, 0.6, 0.5, 0.7, 0.6, 0.6, 0.9])
    assert len(run_loop(small_model(), Recipe(epochs=6, patience=patience))[0]) == epochs + 1


def test_it_stops_when_its_time_is_up():
    history, _ = run_loop(small_model(), Recipe(epochs=50, patience=50, max_seconds=0.0))
    assert len(history) == 2


def test_a_loss_that_is_not_finite_stops_it_and_keeps_the_best():
    model = small_model()
    before = model.get_weights()
    history, best = run_loop(model, Recipe(epochs=9, learning_rate=1e38, patience=9))
    assert best.epoch == 0 or math.isfinite(best.val_loss)
    assert all(np.isfinite(value).all() for value in model.get_weights())
    if best.epoch == 0:
        for now, then in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(now, then)
    assert len(history) < 10


def test_weights_that_are_not_finite_never_win():
    """One class has all the validation images, and NaN answers with the first class: a score of 1, without a loss."""
    model, val = small_model(bias=3.0), image_set(11, seed=1)
    val.labels[:] = 0
    history, best = train(
        model, image_set(24), val, Recipe(epochs=3, learning_rate=1e38, batch=24), lambda: None, lambda tick: None
    )
    assert history[0].val.value == 0
    assert math.isfinite(best.val_loss)
    assert all(np.isfinite(value).all() for value in model.get_weights())


def test_one_seed_makes_two_trainings_equal_and_another_does_not():
    found = {}
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        model = small_model()
        history, _ = run_loop(model, Recipe(epochs=2, learning_rate=0.01, batch=5, seed=seed))
        found[name] = (model.get_weights()[0].tolist(), [one.val_loss for one in history])
    assert found["first"] == found["again"] != found["other"]


def test_balanced_classes_weigh_as_much():
    np.testing.assert_allclose(loop._class_weights(np.array([0, 0, 0, 1]), "balanced"), [4 / 6, 2])
    assert loop._class_weights(np.array([0, 0, 0, 1]), None).tolist() == [1, 1]
    assert np.isfinite(loop._class_weights(np.array([0, 2]), "balanced")).all()


@pytest.mark.parametrize("count", [1, 7, 32, 33, 50])
def test_all_batches_have_one_size_and_hardly_an_image_waits(count, monkeypatch):
    seen = []

    class Logits:
        def train_on_batch(self, pixels, labels, sample_weight):
            seen.append(len(pixels))
            return 0.0

        def reset_metrics(self):
            pass

    loop._one_epoch(Logits(), image_set(count), Recipe(batch=32), np.arange(count), loop._Clock(math.inf))
    assert len(set(seen)) == 1
    assert max(seen) <= 32
    assert 0 <= count - sum(seen) < len(seen)


def test_logits_come_in_the_order_of_the_images_whatever_the_batch():
    source = small_model()
    source.get_layer("logits").set_weights([np.ones((3, 2)), np.zeros(2)])
    logits = keras.Model(source.input, source.get_layer("logits").output)
    images = image_set(11)
    whole, pieces = predict_logits(logits, images, 16), predict_logits(logits, images, 4)
    assert whole.shape == (11, 2)
    np.testing.assert_allclose(whole, pieces, atol=1e-5)
    assert len(np.unique(whole[:, 0])) > 1
