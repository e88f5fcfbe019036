import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler

from featcache.errors import UsageError
from featcache.heads.absorb import decision_logits, exact_head
from featcache.heads.estimators import make_pipeline
from featcache.heads.steps import make_steps, parse_chains

from .conftest import blobs


def test_chains_are_named_one_way():
    assert parse_chains(" standardise , l2 + pca:3:whiten,l2+pca:3:whiten") == ("standardise", "l2+pca:3:whiten")
    assert parse_chains(["none"]) == ("none",)


@pytest.mark.parametrize("text", ["pca", "pca:0", "pca:-1", "pca:3:white", "l3", "l2++none", "pca:1.5"])
def test_an_unknown_step_is_refused(text):
    with pytest.raises(UsageError, match=r"`prepare` takes standardise, l2, pca:N, pca:N:whiten, none, joined by \+"):
        parse_chains(text)


def test_a_near_name_is_given():
    with pytest.raises(UsageError, match=r"got 'standardize' \(did you mean standardise\?\)"):
        parse_chains("standardize")


@pytest.mark.parametrize("text", ["", " , ", []])
def test_no_chain_at_all_is_refused(text):
    with pytest.raises(UsageError, match="`prepare` takes one chain at least"):
        parse_chains(text)


def test_a_chain_is_what_scikit_learn_does_one_after_the_other():
    X, _ = blobs(3)
    found = X
    for _, step in make_steps("l2+standardise+pca:3:whiten+standardise"):
        found = step.fit_transform(found)
    expected = X
    for step in (Normalizer(), StandardScaler(), PCA(3, whiten=True, svd_solver="full"), StandardScaler()):
        expected = step.fit_transform(expected)
    assert np.array_equal(found, expected)
    assert make_steps("none") == []


def test_a_share_of_the_variance_takes_as_many_components_as_it_needs():
    X, _ = blobs(3)
    [(_, pca)] = make_steps("pca:0.9")
    assert pca.fit(X).n_components_ < 6
    assert pca.explained_variance_ratio_.sum() >= 0.9


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize(
    "chain",
    [
        "none",
        "pca:3",
        "pca:3:whiten",
        "standardise+pca:4+standardise",
        "pca:4+pca:2",
        "l2",
        "standardise+l2",
        "l2+pca:3",
    ],
)
def test_chains_become_layers(chain, num_classes):
    X, y = blobs(num_classes)
    estimator = make_pipeline("logreg", {"C": 1.0}, prepare=chain).fit(X, y)
    others, _ = blobs(num_classes, seed=1)
    expected = decision_logits(estimator, others)
    found = exact_head(estimator, "toy/top").logits(others)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_a_step_of_others_is_refused():
    X, y = blobs(3)
    estimator = make_pipeline("ridge", {}).fit(X, y)
    estimator.steps[0] = ("mine", MinMaxScaler().fit(X))
    with pytest.raises(UsageError, match="A MinMaxScaler has no exact form as layers of Keras"):
        exact_head(estimator, "toy/top")
