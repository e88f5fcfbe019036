import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax as reference

from featcache.errors import ShapeMismatch
from featcache.heads.linear import DenseHead, softmax


def test_a_linear_head_is_one_matrix_product():
    head = DenseHead((np.array([[1.0, 2.0], [3.0, 4.0]]),), (np.array([10.0, 20.0]),), "toy/top")
    assert head.logits(np.array([[1.0, 1.0]])).tolist() == [[14.0, 26.0]]


def test_between_layers_negative_values_become_zero_but_logits_stay():
    head = DenseHead((np.eye(2), np.eye(2)), (np.zeros(2), np.array([0.0, -9.0])), "toy/top")
    assert head.logits(np.array([[-5.0, 2.0]])).tolist() == [[0.0, -7.0]]


def test_features_of_another_width_are_refused():
    head = DenseHead((np.eye(3),), (np.zeros(3),), "toy/top")
    with pytest.raises(ShapeMismatch, match=r"'toy/top' takes 3 features; got 4"):
        head.logits(np.zeros((1, 4)))


@given(seed=st.integers(0, 999), size=st.sampled_from([1e-3, 1.0, 1e3]))
def test_softmax_is_a_distribution_and_does_not_overflow(seed, size):
    logits = np.random.default_rng(seed).normal(0, size, (5, 4))
    found = softmax(logits)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    np.testing.assert_allclose(found, reference(logits, axis=1), atol=1e-12)
