from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import Normalizer

from featcache.errors import ShapeMismatch
from featcache.heads.layers import Affine, Dense, Squares, Unit, Votes, dense, make_head

heads = st.tuples(st.integers(1, 64), st.lists(st.integers(1, 9), max_size=2), st.integers(2, 9), st.integers(0, 99))


def random_layers(num_features, hidden, num_classes, rng):
    sizes = [num_features, *hidden, num_classes]
    return dense([rng.normal(0, 1, shape) for shape in pairwise(sizes)], [rng.normal(0, 1, n) for n in sizes[1:]])


@given(heads)
def test_logits_are_unchanged_by_what_is_absorbed(shape):
    num_features, hidden, num_classes, seed = shape
    rng = np.random.default_rng(seed)
    layers = random_layers(num_features, hidden, num_classes, rng)
    mean, scale = rng.normal(0, 5, num_features), rng.uniform(0.1, 10, num_features)
    turned = Dense(rng.normal(0, 1, (num_features, num_features)), rng.normal(0, 1, num_features))
    after = Affine(rng.uniform(0.1, 9, num_classes), rng.normal(0, 1, num_classes))
    X = rng.normal(3, 7, (5, num_features))
    head = make_head([Affine.standardising(mean, scale), turned, *layers, after], "toy/gap")
    assert len(head.layers) == len(layers)
    expected = after(make_head(layers, "").logits(turned((X - mean) / scale)))
    np.testing.assert_allclose(head.logits(X), expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_nothing_is_absorbed_through_what_is_not_affine():
    eye = Dense(np.eye(2), np.zeros(2))
    for between in (Unit(), Dense(np.eye(2), np.zeros(2), "tanh")):
        head = make_head([Affine(np.full(2, 2.0), np.ones(2)), between, eye, eye], "t")
        assert len(head.layers) == (3 if isinstance(between, Unit) else 2)


def test_rows_have_unit_length_and_zeros_stay():
    X = np.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_array_equal(Unit()(X), Normalizer().fit_transform(X))


def test_votes_come_first_and_sums_order_what_is_within():
    votes = Votes(3)
    found = votes(np.array([[2.0, 1.0, -1.0], [0.5, -0.1, 0.2]]))
    assert found.argmax(axis=1).tolist() == [0, 0]
    assert np.floor(found[0] + 0.5).tolist() == [2, 0, 1]


def test_between_layers_negative_values_become_zero_but_logits_stay():
    head = make_head(dense([np.eye(2), np.eye(2)], [np.zeros(2), np.array([0.0, -9.0])]), "toy/top")
    assert head.logits(np.array([[-5.0, 2.0]])).tolist() == [[0.0, -7.0]]


def test_features_of_another_width_are_refused():
    head = make_head([Dense(np.eye(3), np.zeros(3))], "toy/top")
    with pytest.raises(ShapeMismatch, match=r"'toy/top' takes 3 features; got 4"):
        head.logits(np.zeros((1, 4)))


def test_layers_that_do_not_fit_are_refused():
    with pytest.raises(ShapeMismatch, match=r"'toy/gap' does not fit.*its Dense layer takes 8 values and gets 12"):
        make_head([Squares(6), Dense(np.zeros((8, 2)), np.zeros(2))], "toy/gap")
