"""Settings that are fitted together are those that scikit-learn fits one by one."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.class_weight import compute_sample_weight

from featcache.errors import UsageError
from featcache.heads import row_blocks
from featcache.heads.absorb import decision_logits
from featcache.heads.estimators import FAMILIES
from featcache.heads.folds import Fold, FoldResult
from featcache.heads.solvers import kernels
from featcache.heads.solvers.paths import check_leave_one_out, together, try_all, try_leave_one_out

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
    num_features=st.sampled_from([1, 3, 20, 90]),  # fewer and more than images
    class_weight=st.sampled_from([None, "balanced"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_ridge_of_every_strength_is_scikit_learns(num_classes, num_features, class_weight, seed):
    fold = fold_of(num_classes, num_features=num_features, seed=seed, rare=6)
    for tried, params in zip(try_all("ridge", ALPHAS, fold, class_weight), ALPHAS, strict=True):
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


@pytest.mark.filterwarnings("ignore:Singular matrix")  # says scikit-learn
def test_ridge_that_is_singular_is_scikit_learns():
    fold = fold_of(3, num_features=90)
    fold = replace(fold, X=np.concatenate([fold.X] * 2), y=np.concatenate([fold.y] * 2))  # half of the rows are enough
    tiny, zero, one = [{"alpha": 1e-30}, {"alpha": 0.0}, {"alpha": 1.0}]
    for tried, params in zip(try_all("ridge", [tiny, zero, one], fold), [tiny, zero, one], strict=True):
        alone = RidgeClassifier(**params).fit(fold.X, fold.y)
        np.testing.assert_allclose(tried.logits, decision_logits(alone, fold.others), rtol=1e-9)


def test_ridge_takes_products_that_folds_share_unless_its_images_have_weights():
    fold = fold_of(3, rare=6)
    calls = []

    def products():
        calls.append(1)
        centred = fold.X - fold.X.mean(axis=0)
        return centred.T @ centred

    for class_weight in (None, "balanced"):
        shared = try_all("ridge", ALPHAS, replace(fold, products=products), class_weight)
        for tried, alone in zip(shared, try_all("ridge", ALPHAS, fold, class_weight), strict=True):
            np.testing.assert_allclose(tried.logits, alone.logits, rtol=1e-9, atol=1e-9)
        assert len(calls) == 1  # the second time they would be wrong


SHRINKAGES = [{"shrinkage": one} for one in (1.0, 0.9, 0.3, 0.01)]


@given(num_classes=st.sampled_from([2, 3, 7]), num_features=st.sampled_from([3, 20, 90]), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
@pytest.mark.filterwarnings("ignore:Only one sample available")  # of a class, says scikit-learn's own
def test_discriminant_analysis_of_every_shrinkage_is_scikit_learns(num_classes, num_features, seed):
    fold = fold_of(num_classes, num_features=num_features, seed=seed, rare=6)
    for tried, params in zip(try_all("lda", SHRINKAGES, fold), SHRINKAGES, strict=True):
        alone = LinearDiscriminantAnalysis(solver="lsqr", **params).fit(fold.X, fold.y)
        expected = decision_logits(alone, fold.others)
        np.testing.assert_allclose(tried.logits, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
        np.testing.assert_allclose(decision_logits(tried.classifier, fold.others), tried.logits, rtol=1e-6, atol=1e-6)
        assert (tried.predicted == tried.classifier.predict(fold.others)).all()


def test_shrinkage_that_is_not_a_number_is_fitted_by_scikit_learn():
    fold = fold_of(3)
    auto, none, wrong = try_all("lda", [{"shrinkage": "auto"}, {"shrinkage": None}, {"shrinkage": 7.0}], fold)
    for tried, shrinkage in ((auto, "auto"), (none, None)):
        alone = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(fold.X, fold.y)
        assert np.array_equal(tried.logits, decision_logits(alone, fold.others))
    assert wrong.reason.startswith("InvalidParameterError: The 'shrinkage' parameter")


MACHINES = [{"C": C, "gamma": gamma} for gamma in ("scale", "auto", 0.3) for C in (0.1, 1.0, 30.0)]
MACHINES += [{"C": C, "gamma": 0.3} for C in (0.2, 100.0)]  # after a C that bounds nothing, one that does
MACHINES.append({"C": 1.0, "gamma": 1e9})  # whose kernel is 0, so that decisions are 0 as well


@given(
    num_classes=st.sampled_from([2, 3, 7]), class_weight=st.sampled_from([None, "balanced"]), seed=st.integers(0, 99)
)
@settings(max_examples=15, deadline=None)
def test_machines_on_a_shared_kernel_are_scikit_learns(num_classes, class_weight, seed):
    fold = fold_of(num_classes, seed=seed, rare=6)
    for tried, params in zip(try_all("rbf", MACHINES, fold, class_weight), MACHINES, strict=True):
        alone = SVC(**params, class_weight=class_weight).fit(fold.X, fold.y)
        np.testing.assert_allclose(tried.logits, decision_logits(alone, fold.others), atol=1e-6)
        assert (tried.predicted == alone.predict(fold.others)).all()
        np.testing.assert_allclose(decision_logits(tried.classifier, fold.others), tried.logits, atol=1e-9)
        assert tried.classifier.get_params() == alone.get_params()
        assert (tried.classifier.support_vectors_ == alone.support_vectors_).all()


def test_a_machine_that_cannot_be_fails_alone():
    good, bad = try_all("rbf", [{"C": 1.0}, {"C": -1.0}], fold_of(3))
    assert not good.reason
    assert bad.reason.startswith("InvalidParameterError: The 'C' parameter of SVC must be")


def test_without_room_for_a_kernel_machines_are_fitted_one_by_one(monkeypatch):
    fold = fold_of(3)
    together = try_all("rbf", MACHINES, fold)
    monkeypatch.setattr(kernels, "MAX_ROWS", 5)
    for one, other in zip(try_all("rbf", MACHINES, fold), together, strict=True):
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-6)


@pytest.mark.parametrize("head", ["ridge", "rbf"])
def test_classifiers_that_nobody_wants_are_not_kept(head):
    fold = fold_of(3)
    kept = try_all(head, FAMILIES[head].grid, fold)
    for tried, same in zip(try_all(head, FAMILIES[head].grid, replace(fold, keep=False)), kept, strict=True):
        assert tried.classifier is None
        assert same.classifier is not None
        np.testing.assert_allclose(tried.logits, same.logits, rtol=1e-9, atol=1e-12)


@given(
    num_classes=st.sampled_from([2, 3]),
    num_features=st.sampled_from([3, 7, 11, 90]),  # 7 and 11 are the numbers of images less one
    class_weight=st.sampled_from([None, "balanced"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=10, deadline=None)
def test_leaving_one_out_is_fitting_on_all_others(num_classes, num_features, class_weight, seed):
    fold = fold_of(num_classes, per_class=5, num_features=num_features, seed=seed)
    grid = [{"alpha": 1e-7}, {"alpha": 0.01}, {"alpha": 30.0}]
    weights = compute_sample_weight(class_weight, fold.y)
    for tried, params in zip(try_leave_one_out("ridge", grid, fold.X, fold.y, class_weight), grid, strict=True):
        targets = np.eye(num_classes)[fold.y] * 2 - 1
        for row in range(len(fold.X)):
            rest = np.arange(len(fold.X)) != row
            alone = Ridge(**params, solver="svd").fit(fold.X[rest], targets[rest], weights[rest])
            [expected] = alone.predict(fold.X[row : row + 1])
            found = tried.logits[row] if num_classes > 2 else tried.logits[row] * 2  # of two: (-d/2, d/2)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
        [whole] = try_all("ridge", [params], fold, class_weight)
        np.testing.assert_allclose(tried.classifier.coef_, whole.classifier.coef_, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(tried.classifier.intercept_, whole.classifier.intercept_, rtol=1e-6, atol=1e-8)


def test_leaving_one_out_is_refused_where_only_rounding_is_left():
    fold = fold_of(3, per_class=5, num_features=90)
    copied = np.concatenate([fold.X, fold.X[:1]])  # without a penalty, one of two copies could have any weight
    results = list(try_leave_one_out("ridge", [{"alpha": 0.0}, {"alpha": 0.01}], copied, np.append(fold.y, fold.y[0])))
    assert "alpha is too small for leave-one-out: rounding errors would decide" in results[0].reason
    assert not results[1].reason

    lonely = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    lonely[:, 2] = 0
    lonely[0, 2] = 1  # no other image shows what this feature is worth
    y = np.arange(100) % 3
    results = list(try_leave_one_out("ridge", [{"alpha": 1e-10}, {"alpha": 0.01}], lonely, y))
    assert "alpha is too small for leave-one-out: rounding errors would decide" in results[0].reason
    assert not results[1].reason


def test_the_neighbours_of_an_image_are_others():
    fold = fold_of(3)
    grid = [{"n_neighbors": k} for k in (5, 1, 500)]
    found = try_leave_one_out("knn", grid, fold.X, fold.y)
    assert found[2].reason == f"ValueError: there are {len(fold.X)} images, so no 500 neighbours"
    for tried, params in zip(found[:2], grid, strict=False):
        for row in range(len(fold.X)):
            rest = np.arange(len(fold.X)) != row
            alone = KNeighborsClassifier(**params, metric="cosine", algorithm="brute").fit(fold.X[rest], fold.y[rest])
            assert tried.predicted[row] == alone.predict(fold.X[row : row + 1])[0]


def test_leaving_one_out_is_refused_where_it_takes_too_long():
    with pytest.raises(UsageError, match=r"`cv='loo'` is for ridge, knn; with 'svm' it takes too long. Use `cv=5`"):
        check_leave_one_out("svm", {"C": 1.0})


def test_features_are_made_wide_block_by_block(monkeypatch):
    fold = fold_of(3, per_class=40, num_features=5)
    whole = try_all("ridge", ALPHAS, fold)
    others = try_all("lda", SHRINKAGES, fold)
    monkeypatch.setattr(row_blocks, "ROWS", 7)
    for tried, same in zip(try_all("ridge", ALPHAS, fold), whole, strict=True):
        np.testing.assert_allclose(tried.logits, same.logits, rtol=1e-9, atol=1e-9)
    for tried, same in zip(try_all("lda", SHRINKAGES, fold), others, strict=True):
        np.testing.assert_allclose(tried.logits, same.logits, rtol=1e-9, atol=1e-9)


@given(num_classes=st.sampled_from([2, 3, 7]), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_every_number_of_neighbours_votes_as_in_scikit_learn(num_classes, seed):
    fold = fold_of(num_classes, seed=seed)
    for tried, params in zip(try_all("knn", NEIGHBOURS, fold), NEIGHBOURS, strict=True):
        alone = KNeighborsClassifier(**params, metric="cosine", algorithm="brute").fit(fold.X, fold.y)
        assert (tried.predicted == alone.predict(fold.others)).all(), params
        assert (tried.classifier.predict(fold.others) == tried.predicted).all()
        np.testing.assert_allclose(np.exp(tried.logits), alone.predict_proba(fold.others), atol=1e-12)


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
    assert together("logreg", [{"C": 1}, {"C": 2}]) == [[0, 1]]
    assert together("logreg", [{"C": 1, "l1_ratio": 0}, {"C": 2, "l1_ratio": 0}]) == [[0], [1]]
    assert together("svm", [{"C": 1}, {"C": 2}]) == [[0, 1]]
    assert together("svm", [{"C": 1, "intercept_scaling": 2}, {"C": 2, "intercept_scaling": 2}]) == [[0], [1]]
    assert together("forest", [{"n_estimators": 1}, {"n_estimators": 2}]) == [[0], [1]]


@pytest.mark.parametrize("head", ["ridge", "logreg", "svm", "knn"])
def test_a_classifier_that_raises_gives_its_reason(head, monkeypatch):
    def broken(params, class_weight, seed):
        raise ArithmeticError("planted\nfault")

    monkeypatch.setitem(FAMILIES, head, replace(FAMILIES[head], make=broken))
    grid = FAMILIES[head].grid[:2]
    assert try_all(head, grid, fold_of(3)) == [FoldResult(None, None, None, 0.0, "ArithmeticError: planted fault")] * 2


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
