from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import ShapeMismatch, UsageError
from featcache.heads.absorb import absorb_scaler, absorb_temperature, decision_logits, dense_head
from featcache.heads.linear import DenseHead, softmax

from .conftest import DENSE, blobs

heads = st.tuples(st.integers(1, 64), st.lists(st.integers(1, 9), max_size=2), st.integers(2, 9), st.integers(0, 99))


def random_head(num_features, hidden, num_classes, rng):
    sizes = [num_features, *hidden, num_classes]
    kernels = tuple(rng.normal(0, 1, shape) for shape in pairwise(sizes))
    return DenseHead(kernels, tuple(rng.normal(0, 1, size) for size in sizes[1:]), "toy/gap")


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


@given(heads)
def test_logits_are_unchanged_by_absorbing_the_scaler(shape):
    num_features, hidden, num_classes, seed = shape
    rng = np.random.default_rng(seed)
    head = random_head(num_features, hidden, num_classes, rng)
    mean, scale = rng.normal(0, 5, num_features), rng.uniform(0.1, 10, num_features)
    X = rng.normal(3, 7, (5, num_features))
    same(absorb_scaler(head, mean, scale).logits(X), head.logits((X - mean) / scale))


@given(heads, st.floats(0.01, 100))
def test_logits_are_divided_by_an_absorbed_temperature(shape, temperature):
    num_features, hidden, num_classes, seed = shape
    rng = np.random.default_rng(seed)
    head = random_head(num_features, hidden, num_classes, rng)
    X = rng.normal(0, 1, (5, num_features))
    same(absorb_temperature(head, temperature).logits(X), head.logits(X) / temperature)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("name", DENSE)
def test_a_fitted_pipeline_becomes_dense_layers_with_the_same_logits(name, num_classes, fitted):
    estimator = fitted(name, num_classes)
    X, _ = blobs(num_classes, seed=1)
    head = dense_head(estimator, "toy/top", temperature=0.37)
    assert head.logits(X).shape == (len(X), num_classes)
    same(head.logits(X), decision_logits(estimator, X) / 0.37)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("name", ["logreg", "softmax", "mlp"])
def test_heads_of_log_probabilities_keep_their_probabilities(name, num_classes, fitted):
    estimator = fitted(name, num_classes)
    X, _ = blobs(num_classes, seed=1)
    np.testing.assert_allclose(
        softmax(dense_head(estimator, "").logits(X)), estimator.predict_proba(X), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("name", DENSE)
def test_the_larger_logit_is_the_class_that_the_estimator_predicts(name, num_classes, fitted):
    estimator = fitted(name, num_classes)
    X, _ = blobs(num_classes, seed=1)
    assert (dense_head(estimator, "").logits(X).argmax(axis=1) == estimator.predict(X)).all()


def test_a_scaler_from_another_backbone_is_refused():
    head = random_head(8, [], 2, np.random.default_rng(0))
    with pytest.raises(ShapeMismatch, match=r"fitted on 6 features.*'toy/gap' takes 8\. Refit.*featcache sweep"):
        absorb_scaler(head, np.zeros(6), np.ones(6))


def test_neighbours_are_no_dense_layers(fitted):
    with pytest.raises(UsageError, match=r"A KNeighborsClassifier has no exact form as Dense layers"):
        dense_head(fitted("knn", 3), "toy/top")
