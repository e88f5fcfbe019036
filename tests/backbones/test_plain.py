"""A classifier up to its logits, however it makes probabilities of them."""

import keras
import numpy as np
import pytest

from featcache.backbones.plain import as_logits

layers = keras.layers
LOGITS = np.array([0.5, -1.0, 2.0], np.float32)


def ending_in(*tail):
    return keras.Sequential([keras.Input((2, 2, 3)), layers.GlobalAveragePooling2D(), *tail])


def dense(values, activation=None):
    """Return a layer that gives these values, or their probabilities, whatever enters."""
    layer = layers.Dense(len(values), activation)
    layer.build((None, 3))
    layer.set_weights([np.zeros((3, len(values))), np.array(values)])
    return layer


def nested(activation):
    return keras.Sequential([keras.Input((3,)), dense(LOGITS, activation)])


@pytest.mark.parametrize(
    "tail",
    [
        [lambda: dense(LOGITS)],
        [lambda: dense(LOGITS, "softmax")],
        [lambda: dense(LOGITS, "softmax"), lambda: layers.Activation("linear", dtype="float32")],
        [lambda: dense(LOGITS), layers.Softmax],
        [lambda: dense(LOGITS), lambda: layers.Dropout(0.5), lambda: layers.Activation("softmax")],
        [lambda: dense(LOGITS, "log_softmax")],
        [lambda: nested("softmax")],
        [lambda: nested(None), layers.Softmax],
    ],
)
def test_logits_are_what_softmax_takes(tail):
    model = ending_in(*(make() for make in tail))
    logits = as_logits(model)
    assert np.asarray(logits(np.zeros((1, 2, 2, 3)))) == pytest.approx(LOGITS[None], abs=1e-6)
    assert {id(weight) for weight in logits.weights} == {id(weight) for weight in model.weights}


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_one_output_is_the_second_of_two_classes(activation):
    logits = as_logits(ending_in(dense([1.5], activation)))
    assert np.asarray(logits(np.zeros((1, 2, 2, 3)))) == pytest.approx(np.array([[0, 1.5]]))


def test_outputs_that_are_no_softmax_have_no_logits():
    assert as_logits(ending_in(dense(LOGITS, "sigmoid"))) is None
    map_of_probabilities = [layers.Conv2D(3, 1, activation="softmax"), layers.GlobalAveragePooling2D()]
    assert as_logits(keras.Sequential([keras.Input((2, 2, 3)), *map_of_probabilities])) is None
    assert as_logits(keras.Sequential([keras.Input((2, 2, 3)), layers.Conv2D(3, 1, activation="softmax")])) is None
