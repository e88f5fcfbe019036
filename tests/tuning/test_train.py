"""The training loop alone, on a network that compiles in a moment."""

import math
import re
from dataclasses import replace
from importlib import import_module
from itertools import pairwise

import keras
import numpy as np
import pytest

from featcache.errors import EnvironmentFault
from featcache.spec import ImageRow, Preprocess
from featcache.sweeps.metrics import Score, log_loss
from featcache.tuning.data import ImageSet
from featcache.tuning.optimizing import RateGroup
from featcache.tuning.state import TrainingState
from featcache.tuning.train import Epoch, TrainingTask, predict_logits, train
from featcache.tuning.training_recipe import Recipe

loop = import_module("featcache.tuning.train")  # the package has the function under this name
SIZE = 4
PLAIN = {"schedule": "constant", "warmup": 0.0}


def image_set(count, seed=0):
    """Return images whose class is whether they are bright."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    pixels = rng.integers(0, 120, (count, SIZE, SIZE, 3)) + 100 * labels[:, None, None, None]
    rows = [ImageRow(f"{at}.png", str(label), "", "", "") for at, label in enumerate(labels)]
    return ImageSet(None, rows, labels, Preprocess(SIZE), _kept=pixels.astype(np.uint8))


def small_model(bias=0.0):
    keras.utils.set_random_seed(0)
    image = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 127.5, -1)(keras.ops.cast(image, "float32"))
    x = keras.layers.Dense(2, name="logits")(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, keras.layers.Softmax()(x))
    model.get_layer("logits").set_weights([np.zeros((3, 2)), np.array([0.0, bias])])
    return model


def run_loop(model, recipe, checkpoint=lambda: None, images=24):
    found = train(task_of(model, recipe, images, checkpoint=checkpoint), recipe, lambda tick: None)
    return list(found.history), found.best


def task_of(model, recipe, images=24, **more):
    logits = keras.Model(model.input, model.get_layer("logits").output)
    group = RateGroup("head", tuple(logits.trainable_weights), recipe.learning_rate)
    sets = {"train_set": image_set(images), "val_set": image_set(11, seed=1), **more}
    return TrainingTask(logits, [group], changing=logits.weights, **sets)


def test_augmented_images_judge_and_the_logits_at_the_end_are_of_images_as_they_are():
    val_set = replace(image_set(11, seed=1), augment="strong", judging_view=1)
    [(views, labels)], [(plain, _)] = (
        val_set.batches(np.arange(11), 11),
        val_set.as_they_are().batches(np.arange(11), 11),
    )
    recipe = Recipe(epochs=1, learning_rate=0.1, **PLAIN)
    task = task_of(small_model(bias=0.5), recipe, val_set=val_set)
    result = train(task, recipe, lambda tick: None)
    assert result.best.val_loss == pytest.approx(log_loss(task.model.predict(views, verbose=0), labels), rel=1e-4)
    np.testing.assert_allclose(result.val_logits, task.model.predict(plain, verbose=0), atol=1e-5)
    assert np.abs(task.model.predict(views, verbose=0) - result.val_logits).max() > 0.01


def scripted(monkeypatch, scores, losses=None):
    """Let validation answer with these scores, epoch 0 first."""
    losses = losses or [1.0] * len(scores)

    def evaluate(running, found):
        return replace(found, val_loss=losses[found.epoch], val=Score(scores[found.epoch], 0, 1))

    monkeypatch.setattr(loop.TrainingLoop, "evaluate", evaluate)


def epoch(number, value, loss):
    return Epoch(number, 0.0, loss, Score(value, 0, 1), 0.0)


def test_it_learns():
    model = small_model()
    history, best = run_loop(model, Recipe(epochs=15, learning_rate=0.1, patience=15, **PLAIN))
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
    history, best = run_loop(model, Recipe(epochs=9, learning_rate=1e38, patience=9, **PLAIN))
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
    recipe = Recipe(epochs=3, learning_rate=1e38, batch=24, **PLAIN)
    found = train(task_of(model, recipe, val_set=val), recipe, lambda tick: None)
    assert found.history[0].val.value == 0
    assert math.isfinite(found.best.val_loss)
    assert all(np.isfinite(value).all() for value in model.get_weights())


def test_one_seed_makes_two_trainings_equal_and_another_does_not():
    found = {}
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        model = small_model()
        history, _ = run_loop(model, Recipe(epochs=2, learning_rate=0.01, batch=5, seed=seed))
        found[name] = (model.get_weights()[0].tolist(), [one.val_loss for one in history])
    assert found["first"] == found["again"] != found["other"]


def test_balanced_classes_weigh_as_much():
    np.testing.assert_allclose(loop.class_weights(np.array([0, 0, 0, 1]), "balanced"), [4 / 6, 2])
    assert loop.class_weights(np.array([0, 0, 0, 1]), None).tolist() == [1, 1]
    assert np.isfinite(loop.class_weights(np.array([0, 2]), "balanced")).all()


@pytest.mark.parametrize("count", [1, 7, 32, 33, 50])
def test_all_batches_have_one_size_and_hardly_an_image_waits(count, monkeypatch):
    seen, model = [], small_model()

    def train_on_batch(self, pixels, labels, sample_weight):
        seen.append(len(pixels))
        return 0.0

    monkeypatch.setattr(keras.Model, "train_on_batch", train_on_batch)
    run_loop(model, Recipe(batch=32, epochs=1), images=count)
    assert len(set(seen)) == 1
    assert max(seen) <= 32
    assert 0 <= count - sum(seen) < len(seen)


def test_an_epoch_of_so_many_steps_goes_through_the_images_again_in_another_order(monkeypatch):
    seen = []
    monkeypatch.setattr(keras.Model, "train_on_batch", lambda self, pixels, *more, **kw: seen.append(pixels) or 0.0)
    history, _ = run_loop(small_model(), Recipe(batch=8, epochs=2, steps_per_epoch=4), images=20)
    assert [len(pixels) for pixels in seen] == [8] * 8
    assert [epoch.images for epoch in history] == [0, 32, 64]
    passes = [np.concatenate(seen[at : at + 2]) for at in (0, 2, 4, 6)]  # 20 images make two full batches
    assert all(len(np.unique(one, axis=0)) == 16 for one in passes)
    assert all((one != other).any() for one, other in pairwise(passes))


def test_logits_come_in_the_order_of_the_images_whatever_the_batch():
    source = small_model()
    source.get_layer("logits").set_weights([np.ones((3, 2)), np.zeros(2)])
    logits = keras.Model(source.input, source.get_layer("logits").output)
    images = image_set(11)
    whole, pieces = predict_logits(logits, images, 16), predict_logits(logits, images, 4)
    assert whole.shape == (11, 2)
    np.testing.assert_allclose(whole, pieces, atol=1e-5)
    assert len(np.unique(whole[:, 0])) > 1


# Going on after a stop, and what can go wrong


def stopped_after(epochs, recipe, states):
    """Train for some epochs, as a process would that is killed then, and keep its states."""

    def keep(state):
        states.append(state)
        if len(states) == epochs:
            raise KeyboardInterrupt

    model = small_model()
    with pytest.raises(KeyboardInterrupt):
        train(task_of(model, recipe, keep=keep, facts={}), recipe, lambda tick: None)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adagrad"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_training_that_was_stopped_goes_on_bit_equal(optimizer, epochs, tmp_path):
    recipe = Recipe(epochs=5, learning_rate=0.02, batch=5, patience=5, optimizer=optimizer)
    whole = small_model()
    expected = train(task_of(whole, recipe), recipe, lambda tick: None)
    states = []
    stopped_after(epochs, recipe, states)
    states[-1].save(tmp_path / "t.state")
    model = small_model()
    found = train(task_of(model, recipe), recipe, lambda tick: None, TrainingState.load(tmp_path / "t.state", {}))
    assert [(one.epoch, one.val_loss, one.train_loss) for one in found.history[1:]] == [
        (one.epoch, one.val_loss, one.train_loss) for one in expected.history[1:]
    ]
    for now, then in zip(model.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_training_that_is_over_stays_over(tmp_path):
    recipe, states = Recipe(epochs=9, learning_rate=1e-30, patience=2), []
    first = train(task_of(small_model(), recipe, keep=states.append), recipe, lambda tick: None)
    assert first.stopped == "no better validation score for 2 epochs in a row"
    again = train(task_of(small_model(), recipe), recipe, lambda tick: None, states[-1])
    assert len(again.history) == len(first.history) < 10


def test_why_it_stopped_names_epoch_and_rate():
    recipe = Recipe(epochs=9, learning_rate=1e38, patience=9, batch=24, **PLAIN)
    found = train(task_of(small_model(), recipe), recipe, lambda tick: None)
    assert re.fullmatch(
        r"the (validation )?loss was not finite in epoch \d, at a learning rate of 1\.0e\+38 \(head\)", found.stopped
    )


def failing(monkeypatch, times, error):
    """Let so many steps raise, after the first of each compilation."""
    left, steps = [times], [0]
    plain = keras.Model.train_on_batch

    def train_on_batch(self, *args, **options):
        steps[0] += 1
        if left[0] and steps[0] % 3 == 0:
            left[0] -= 1
            raise error
        return plain(self, *args, **options)

    monkeypatch.setattr(keras.Model, "train_on_batch", train_on_batch)


def test_out_of_memory_goes_on_with_half_the_batch_once(monkeypatch):
    notes, recipe = [], Recipe(epochs=2, batch=8, learning_rate=0.01)
    failing(monkeypatch, 1, RuntimeError("RESOURCE_EXHAUSTED: OOM when allocating tensor"))
    found = train(task_of(small_model(), recipe), recipe, lambda tick: notes.append(tick.note))
    assert [one.epoch for one in found.history] == [0, 1, 2]
    assert found.batch == 4
    assert "out of memory with 8 images per step; going on with 4" in notes
    assert found.history[1].images == 24


def test_after_memory_ran_out_the_schedule_goes_on_where_it_was_and_the_state_knows(monkeypatch):
    recipe, states = Recipe(epochs=4, batch=8, learning_rate=0.01, patience=9), []
    plain, steps = keras.Model.train_on_batch, []

    def train_on_batch(self, pixels, *args, **options):
        steps.append(len(pixels))
        if len(steps) == 5:
            raise MemoryError
        return plain(self, pixels, *args, **options)

    monkeypatch.setattr(keras.Model, "train_on_batch", train_on_batch)
    task = task_of(small_model(), recipe, keep=states.append)
    train(task, recipe, lambda tick: None)
    assert steps == [8] * 5 + [4] * 18
    assert [state.batch for state in states] == [8, 4, 4, 4]
    iterations = [int(one) for one in task.model.optimizer.variables if one.name == "iteration"]
    assert iterations == [24]  # 3 of 12 steps became 6 of 24, and 18 more


def test_memory_that_runs_out_at_once_halves_the_batch_too(monkeypatch):
    plain, seen = loop.TrainingLoop.evaluate, []

    def evaluate(running, found):
        seen.append(running.recipe.batch)
        if len(seen) == 1:
            raise RuntimeError("CUDA out of memory")
        return plain(running, found)

    monkeypatch.setattr(loop.TrainingLoop, "evaluate", evaluate)
    recipe = Recipe(epochs=1, batch=8)
    assert train(task_of(small_model(), recipe), recipe, lambda tick: None).batch == 4
    assert seen == [8, 4, 4]


def test_out_of_memory_twice_is_an_error_that_says_what_to_do(monkeypatch):
    recipe = Recipe(epochs=2, batch=8)
    failing(monkeypatch, 2, MemoryError())
    with pytest.raises(EnvironmentFault, match=r"not enough memory to train in batches of 4\. Unfreeze less"):
        train(task_of(small_model(), recipe), recipe, lambda tick: None)


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    failing(monkeypatch, 1, ValueError("shapes"))
    with pytest.raises(ValueError, match="shapes"):
        run_loop(small_model(), Recipe(epochs=2, batch=8))


def test_mixtures_of_start_and_end_compete(monkeypatch):
    model = small_model(bias=1.0)
    start = model.get_weights()
    recipe = Recipe(epochs=2, learning_rate=0.5, wise_ft=True, **PLAIN)
    wanted = []
    scores = {0: 0.1, 1: 0.6, 2: 0.2}

    def better_in_between(running, found):
        wanted.append((found.mixture, running.weights()))
        value = 0.9 if found.mixture == 0.3 else 0.5 if found.mixture else scores[found.epoch]
        return replace(found, val_loss=1.0, val=Score(value, 0, 1))

    monkeypatch.setattr(loop.TrainingLoop, "evaluate", better_in_between)
    found = train(task_of(model, recipe), recipe, lambda tick: None)
    assert (found.best.epoch, found.best.mixture) == (1, 0.3)
    assert [share for share, _ in wanted[3:]] == [step / 10 for step in range(1, 10)]
    for now, one, other in zip(model.get_weights(), start, wanted[1][1], strict=True):
        np.testing.assert_allclose(now, 0.7 * one + 0.3 * other, rtol=1e-6)


def test_where_no_epoch_was_better_the_last_is_mixed_with_the_start(monkeypatch):
    def evaluate(running, found):
        return replace(found, val_loss=1.0, val=Score({0.9: 0.9}.get(found.mixture, 0.5 - found.epoch / 9), 0, 1))

    monkeypatch.setattr(loop.TrainingLoop, "evaluate", evaluate)
    recipe = Recipe(epochs=3, learning_rate=0.5, wise_ft=True)
    found = train(task_of(small_model(), recipe), recipe, lambda tick: None)
    assert (found.best.epoch, found.best.mixture) == (3, 0.9)


@pytest.mark.parametrize(("class_weight", "smoothing"), [(None, 0.0), (None, 0.2), ("balanced", 0.2)])
def test_smoothed_labels_and_class_weights_reach_the_loss(class_weight, smoothing, monkeypatch):
    """One step of plain gradient descent is the gradient by hand."""
    monkeypatch.setattr(Epoch, "better_than", lambda one, other: True)
    how = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 1.0, **PLAIN}
    recipe = Recipe(epochs=1, batch=24, label_smoothing=smoothing, class_weight=class_weight, **how)
    model, images = small_model(), image_set(24)
    images.labels = np.array([1] * 18 + [0] * 6)
    train(task_of(model, recipe, train_set=images), recipe, lambda tick: None)
    share = np.array([0.25, 0.75]) if class_weight is None else np.array([0.5, 0.5])
    np.testing.assert_allclose(model.get_weights()[1], (1 - smoothing) * share + smoothing / 2 - 0.5, atol=1e-6)


def test_every_step_within_an_epoch_is_shown():
    ticks = []
    recipe = Recipe(epochs=2, batch=8, patience=9, learning_rate=0.01, **PLAIN)
    train(task_of(small_model(), recipe, images=24), recipe, ticks.append)
    steps = [(tick.done, tick.total) for tick in ticks if tick.step == "train"]
    assert steps == [(0, 6), (1, 6), (2, 6), (3, 6), (3, 6), (4, 6), (5, 6), (6, 6)]
    judged = [(tick.done, tick.total) for tick in ticks if tick.step == loop.VALIDATE]
    assert judged[:3] == [(0, 11), (8, 11), (11, 11)]  # before the first epoch
