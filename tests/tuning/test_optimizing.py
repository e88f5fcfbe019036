"""Which weights train at which rate, and when."""

import keras
import numpy as np
import pytest

from featcache.models import Probe
from featcache.models.assemble import backbones_of
from featcache.tuning.optimizing import HEAD, RateGroup, groups, make_optimizer, rate_at
from featcache.tuning.stages import unfreeze
from featcache.tuning.training_recipe import Recipe

PLAIN = {"sgd": 0.0}  # momentum of those that have one


@pytest.fixture
def model(weak):
    found = Probe.open(weak).model()
    unfreeze(backbones_of(found)[0], "block_3")
    return found


def test_every_weight_that_trains_is_in_one_group_and_blocks_fall_off_from_the_head(model):
    found = groups(model, Recipe(learning_rate=1e-3, head_lr=1e-2, lr_decay=0.5))
    assert [(one.name, one.rate) for one in found] == [(HEAD, 1e-2), ("block_4", 1e-3), ("block_3", 5e-4)]
    grouped = [id(weight) for one in found for weight in one.weights]
    assert sorted(grouped) == sorted(id(weight) for weight in model.trainable_weights)


def test_of_gradual_unfreezing_the_head_begins_and_the_first_block_is_last(model):
    unfreeze(backbones_of(model)[0], "gradual")
    recipe = Recipe(unfreeze="gradual", warmup=0.0, learning_rate=1e-3)
    found = groups(model, recipe)
    begins = [one.begins for one in found]
    assert begins == sorted(begins)
    assert (begins[0], begins[1], begins[-1]) == (0, 0, 0.5)
    late = found[-1]
    assert rate_at(late, recipe, 49, 100) == 0
    assert rate_at(late, recipe, 50, 100) == pytest.approx(1e-3)


def test_rates_rise_then_fall_along_a_cosine():
    recipe, group = Recipe(warmup=0.1), RateGroup("g", (), 1.0)
    rates = [rate_at(group, recipe, step, 100) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert rates[10] == pytest.approx(1)
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3
    assert rate_at(group, Recipe(warmup=0.0, schedule="constant"), 99, 100) == 1


def stepped(optimizer_name, gradient=1e-3, steps=1, **how):
    """Return how far one weight moves."""
    weight = keras.Variable(np.ones(1, np.float32))
    recipe = Recipe(optimizer=optimizer_name, warmup=0.0, schedule="constant", weight_decay=0.0, **how)
    optimizer = make_optimizer([RateGroup("g", (weight,), recipe.learning_rate)], recipe, 10)
    for _ in range(steps):
        optimizer.apply([keras.ops.convert_to_tensor(np.full(1, gradient, np.float32))], [weight])
    return 1 - float(weight.numpy()[0])


def test_adagrad_steps_as_far_as_its_rate_says():
    """Keras 3 begins its sums at 0.1, which makes the first step of such a gradient 300 times as small."""
    assert stepped("adagrad", learning_rate=1e-2) == pytest.approx(1e-2, rel=0.1)


def test_momentum_is_nesterovs():
    assert stepped("sgd", 1.0, learning_rate=0.1, momentum=0.9) == pytest.approx(0.1 * 1.9, rel=1e-5)


def test_large_gradients_are_clipped():
    assert stepped("sgd", 100.0, learning_rate=0.1, momentum=0.0, clip=1.0) == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop", "adagrad"])
def test_several_rates_move_weights_apart(name):
    one, other = (keras.Variable(np.ones(1, np.float32)) for _ in range(2))
    recipe = Recipe(optimizer=name, warmup=0.0, schedule="constant", weight_decay=0.0, momentum=PLAIN.get(name))
    optimizer = make_optimizer([RateGroup("a", (one,), 1e-2), RateGroup("b", (other,), 1e-3)], recipe, 10)
    gradient = keras.ops.convert_to_tensor(np.full(1, 0.5, np.float32))
    optimizer.apply([gradient, gradient], [one, other])
    moved = [1 - float(weight.numpy()[0]) for weight in (one, other)]
    assert moved[0] / moved[1] == pytest.approx(10, rel=1e-3)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_kernels_decay_and_biases_do_not(name):
    kernel, bias = (keras.Variable(np.ones(1, np.float32), name=one) for one in ("kernel", "bias"))
    how = {"warmup": 0.0, "schedule": "constant", "weight_decay": 0.5, "learning_rate": 0.1}
    recipe = Recipe(optimizer=name, momentum=PLAIN.get(name), **how)
    optimizer = make_optimizer([RateGroup("g", (kernel, bias), 0.1)], recipe, 10)
    zero = keras.ops.convert_to_tensor(np.zeros(1, np.float32))
    optimizer.apply([zero, zero], [kernel, bias])
    assert (float(kernel.numpy()[0]), float(bias.numpy()[0])) == (pytest.approx(0.95), 1.0)
