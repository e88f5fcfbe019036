"""Settings that are fitted together are those that scikit-learn fits one by one."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from featcache.heads.absorb import decision_logits
from featcache.heads.estimators import FAMILIES
from featcache.heads.paths import together, try_all
from featcache.heads.tried import Fold, Tried

from .conftest import blobs

ALPHAS = [{"alpha": float(alpha)} for alpha in np.logspace(-6, 5, 12)]
NEIGHBOURS = [{"n_neighbors": k} for k in (15, 8, 5, 2, 1)]


def fold_of(num_classes, per_class=12, num_features=6, seed=0, rare=0):
    """Return a fold, without most images of the last class if asked."""
    X, y = blobs(num_classes, per_class, num_features, 6.0, seed)
    keep = (y < num_classes - 1) | (np.arange(len(y)) % per_class < per_class - rare)
    X = StandardScaler().fit_transform(X[keep])
    chosen = np.random.default_rng(seed).permutation(len(X))
    some, others = chosen[len(X) // 4 :], chosen[: len(X) // 4]
    return Fold(X[some], y[keep][some], X[others])


@given(
    num_classes=st.sampled_from([2, 3, 7]),
    num_features=st.sampled_from([3, 20, 90]),  # fewer and more than images
    class_weight=st.sampled_from([None, "balanced"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_ridge_of_every_strength_is_scikit_learns(num_classes, num_features, class_weight, seed):
    fold = fold_of(num_classes, num_features=num_features, seed=seed, rare=6)
    few = ALPHAS[6:9]  # are solved in another way
    found = [*zip(try_all("ridge", ALPHAS, fold, class_weight), ALPHAS, strict=True)]
    found += zip(try_all("ridge", few, fold, class_weight), few, strict=True)
    for tried, params in found:
        alone = RidgeClassifier(**params, class_weight=class_weight).fit(fold.X, fold.y)
        # of the smallest strengths the systems are nearly singular, and only what they predict is well determined
        expected = decision_logits(alone, fold.others)
        assert np.allclose(tried.logits, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()), params
        assert tried.classifier.coef_.shape == np.atleast_2d(alone.coef_).shape  # (D,) of two classes in 1.9
        assert (tried.predicted == tried.classifier.predict(fold.others)).all()
        assert (tried.classifier.get_params(), list(tried.classifier.classes_)) == (
            alone.get_params(),
            list(alone.classes_),
        )


@given(num_classes=st.sampled_from([2, 3, 7]), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_every_number_of_neighbours_votes_as_in_scikit_learn(num_classes, seed):
    fold = fold_of(num_classes, seed=seed)
    for tried, params in zip(try_all("knn", NEIGHBOURS, fold), NEIGHBOURS, strict=True):
        alone = KNeighborsClassifier(**params, metric="cosine", algorithm="brute").fit(fold.X, fold.y)
        assert (tried.predicted == alone.predict(fold.others)).all(), params
        assert (tried.classifier.predict(fold.others) == tried.predicted).all()


def test_more_neighbours_than_images_fail_alone():
    fold = fold_of(3, per_class=4)
    found = try_all("knn", NEIGHBOURS, fold)
    assert len(fold.X) == 9
    assert [one.reason for one in found] == ["ValueError: there are 9 images, so no 15 neighbours", "", "", "", ""]
    assert found[0].classifier is None


@pytest.mark.parametrize("strengths", [3, 12])
def test_a_strength_that_cannot_be_fails_alone(strengths):
    grid = [*ALPHAS[-strengths:], {"alpha": -1.0}, {"alpha": "x"}]
    *good, negative, text = try_all("ridge", grid, fold_of(3, num_features=90))
    assert [one.reason for one in good] == [""] * strengths
    assert negative.reason.startswith("InvalidParameterError: The 'alpha' parameter of RidgeClassifier must be")
    assert text.reason.startswith("InvalidParameterError: ")


@pytest.mark.parametrize("head", ["ridge", "knn", "logreg", "svm"])
def test_without_others_there_is_a_classifier_and_nothing_said(head):
    fold = fold_of(3)
    for tried in try_all(head, FAMILIES[head].grid, replace(fold, others=fold.X[:0])):
        assert (len(tried.predicted), tried.logits, tried.reason) == (0, None, "")
        assert set(tried.classifier.predict(fold.X)) <= {0, 1, 2}


def test_what_shares_is_in_one_group_and_the_rest_alone():
    assert together("ridge", [{"alpha": 1}, {"alpha": 2}]) == [[0, 1]]
    assert together("knn", [{"n_neighbors": 1}, {"n_neighbors": 2}]) == [[0, 1]]
    assert together("logreg", [{"C": 1}, {"C": 2}]) == [[0], [1]]


@pytest.mark.parametrize("head", ["ridge", "logreg", "knn"])
def test_a_classifier_that_raises_gives_its_reason(head, monkeypatch):
    def broken(params, class_weight, seed):
        raise ArithmeticError("planted\nfault")

    monkeypatch.setitem(FAMILIES, head, replace(FAMILIES[head], make=broken))
    grid = FAMILIES[head].grid[:2]
    assert try_all(head, grid, fold_of(3)) == [Tried(None, None, None, 0.0, "ArithmeticError: planted fault")] * 2


def test_settings_that_differ_in_something_else_are_apart():
    grid = [{"n_neighbors": k, "metric": metric} for k in (5, 1) for metric in ("cosine", "euclidean")]
    assert together("knn", grid) == [[0, 2], [1, 3]]
    assert together("knn", [{"n_neighbors": k, "weights": "distance"} for k in (5, 1)]) == [[0], [1]]
    assert together("ridge", [{"alpha": 1, "fit_intercept": False}, {"alpha": 1}]) == [[0], [1]]
    fold = fold_of(3)
    for numbers in together("knn", grid):
        some = [grid[number] for number in numbers]
        for tried, params in zip(try_all("knn", some, fold), some, strict=True):
            alone = KNeighborsClassifier(**params, algorithm="brute").fit(fold.X, fold.y)
            assert (tried.predicted == alone.predict(fold.others)).all()
