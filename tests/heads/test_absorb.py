import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.linear_model._base import LinearClassifierMixin
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline as make_pipeline_of
from sklearn.preprocessing import StandardScaler

from featcache.errors import UsageError
from featcache.heads.absorb import decision_logits, exact_head, is_exact
from featcache.heads.estimators import make_pipeline
from featcache.heads.logits import softmax

from .conftest import DENSE, EVERY, blobs

EXACT = (*DENSE, "gnb", "rbf")


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("name", EXACT)
def test_a_fitted_pipeline_becomes_layers_with_the_same_logits(name, num_classes, fitted):
    estimator = fitted(name, num_classes)
    X, _ = blobs(num_classes, seed=1)
    head = exact_head(estimator, "toy/top", temperature=0.37)
    assert head.logits(X).shape == (len(X), num_classes)
    same(head.logits(X), decision_logits(estimator, X) / 0.37)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("name", ["logreg", "softmax", "mlp", "gnb", "mlpclassifier"])
def test_heads_of_log_probabilities_keep_their_probabilities(name, num_classes, fitted):
    estimator = fitted(name, num_classes)
    X, _ = blobs(num_classes, seed=1)
    np.testing.assert_allclose(
        softmax(exact_head(estimator, "").logits(X)), estimator.predict_proba(X), rtol=1e-7, atol=1e-12
    )


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("name", EXACT)
def test_the_larger_logit_is_the_class_that_the_estimator_predicts(name, num_classes, fitted):
    estimator = fitted(name, num_classes)
    X, _ = blobs(num_classes, seed=1)
    assert (exact_head(estimator, "").logits(X).argmax(axis=1) == estimator.predict(X)).all()


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
def test_perceptrons_of_every_activation_are_exact(activation):
    X, y = blobs(3, spread=9)
    params = {"activation": activation, "hidden_layer_sizes": (7, 5), "max_iter": 5000}
    estimator = make_pipeline("mlpclassifier", params).fit(X, y)
    others = blobs(3, spread=9, seed=1)[0]
    np.testing.assert_allclose(
        softmax(exact_head(estimator, "").logits(others)), estimator.predict_proba(others), rtol=1e-6, atol=1e-12
    )


def test_features_that_never_vary_weigh_nothing_in_naive_bayes():
    X, y = blobs(3)
    X[:, 2] = 5.0
    estimator = make_pipeline("gnb", {"var_smoothing": 1e-12}).fit(X, y)
    assert isinstance(estimator[-1], GaussianNB)
    others = blobs(3, seed=1)[0]
    others[:, 2] = 5.1
    head = exact_head(estimator, "")
    assert (head.logits(others).argmax(axis=1) == estimator.predict(others)).all()
    assert np.abs(head.layers[-1].kernel[[2, 8]]).max() < 1


@pytest.mark.parametrize("name", sorted(set(EVERY) - set(EXACT)))
def test_others_are_no_layers(name, fitted):
    assert not is_exact(fitted(name, 3)[-1])
    with pytest.raises(UsageError, match=r"A \w+ has no exact form as layers of Keras"):
        exact_head(fitted(name, 3), "toy/top")


def test_what_an_estimator_says_of_two_classes_has_two_columns(fitted):
    X, _ = blobs(2, seed=1)
    logits = decision_logits(fitted("svm", 2), X)
    same(logits[:, 1] - logits[:, 0], fitted("svm", 2).decision_function(X))


class LeastSquares(LinearClassifierMixin, BaseEstimator):
    """A head as docs/head.md tells a user to write one: linear, fitted in closed form."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        weights = np.linalg.pinv(np.c_[X, np.ones(len(X))]) @ np.eye(len(self.classes_))[y]
        self.coef_, self.intercept_ = weights[:-1].T, weights[-1]
        return self


def test_a_linear_head_of_the_users_converts_exactly():
    X, y = blobs(3)
    estimator = make_pipeline_of(StandardScaler(), LeastSquares()).fit(X, y)
    assert is_exact(estimator[-1])
    np.testing.assert_allclose(exact_head(estimator, "tap").logits(X), decision_logits(estimator, X), atol=1e-9)
