"""What linear support vector machines solved together come to is what scikit-learn comes to for each alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.class_weight import compute_class_weight

from featcache.heads.folds import Fold
from featcache.heads.solvers import axes, descent
from featcache.heads.solvers.hinge import hinge_path
from featcache.heads.solvers.paths import together, try_all
from featcache.sweeps.scoring import has_converged

from .conftest import blobs

STRENGTHS = [1e-9, 1e-5, 1e-4, 1e-3, 1e-2, 0.1]


def problem(num_classes, num_features, seed=0, per_class=12):
    """Return standardised features with a constant column, a column and a row twice, and a class of one image."""
    X, y = blobs(num_classes, per_class, num_features, 6.0, seed)
    X[:, 0], X[:, 1], X[1] = 7.0, X[:, 2], X[0]
    rows = slice(None, len(y) - per_class + 1)
    return StandardScaler().fit_transform(X[rows]), y[rows]


def objective(X, y, C, class_weight, coef, intercept):
    """Return what liblinear minimises and the norm of its gradient, both (K,).

    Of more than two classes, the weight of a class is for its own images.
    """
    is_own = y == (np.array([[1]]) if len(coef) == 1 else np.arange(len(coef))[:, None])
    rest = class_weight[0] if len(coef) == 1 else 1
    weights = np.where(is_own, class_weight[y], rest)
    signs = np.where(is_own, 1, -1)
    missing = np.maximum(0, 1 - signs * (X @ coef.T + intercept).T)
    penalty = (coef**2).sum(axis=1) + intercept**2
    pull = -2 * C * weights * missing * signs
    gradient = np.column_stack([coef + pull @ X, intercept + pull.sum(axis=1)])
    return penalty / 2 + C * (weights * missing**2).sum(axis=1), np.linalg.norm(gradient, axis=1)


problems = given(
    num_classes=st.sampled_from([2, 3, 7]),
    num_features=st.sampled_from([3, 20, 90]),  # fewer and more than images
    class_weight=st.sampled_from([None, "balanced"]),
    seed=st.integers(0, 1000),
)


@problems
@settings(max_examples=25, deadline=None)
@pytest.mark.filterwarnings("ignore:Liblinear failed to converge")  # at rounding
def test_every_strength_is_what_scikit_learn_converges_to(num_classes, num_features, class_weight, seed):
    X, y = problem(num_classes, num_features, seed)
    weights = compute_class_weight(class_weight, classes=np.arange(num_classes), y=y)
    for C, solution in zip(STRENGTHS, hinge_path(X, y, STRENGTHS, weights, 20_000, 1e-9), strict=True):
        alone = LinearSVC(C=C, class_weight=class_weight, dual=False, tol=1e-9, max_iter=2000).fit(X, y)
        assert solution.converged, C
        assert (solution.coef.shape, solution.intercept.shape) == (alone.coef_.shape, alone.intercept_.shape)
        ours, _ = objective(X, y, C, weights, solution.coef, solution.intercept)
        theirs, slope = objective(X, y, C, weights, alone.coef_, alone.intercept_)
        assert np.allclose(ours, theirs, rtol=1e-9, atol=0), C
        # liblinear may stop early. The penalty makes the objective so convex that the minimum is nearer than the slope.
        near = 1e-5 * np.abs(alone.coef_).max() + slope.max()
        assert np.allclose(solution.coef, alone.coef_, rtol=0, atol=near), C
        assert np.allclose(solution.intercept, alone.intercept_, rtol=0, atol=near), C


@problems
@settings(max_examples=25, deadline=None)
def test_scores_are_as_near_to_the_minimum_as_scikit_learns(num_classes, num_features, class_weight, seed):
    """With the tolerance that users have, where both stop a little before the minimum."""
    X, y = problem(num_classes, num_features, seed)
    fold = Fold(X.astype(np.float32), y * 10, X.astype(np.float32))
    grid = [{"C": C} for C in STRENGTHS]
    exact = [{**params, "tol": 1e-9, "max_iter": 20_000} for params in grid]
    results = zip(try_all("svm", grid, fold, class_weight), try_all("svm", exact, fold, class_weight), strict=True)
    for (result, minimum), params in zip(results, grid, strict=True):
        alone = LinearSVC(**params, class_weight=class_weight, dual=False, max_iter=5000).fit(X, fold.y)
        scores = result.classifier.decision_function(X)
        expected = minimum.classifier.decision_function(X)
        error_of_theirs = np.abs(alone.decision_function(X) - expected).max()
        assert np.abs(scores - expected).max() <= error_of_theirs + 5e-3 * np.abs(expected).max(), params
        assert result.classifier.get_params() == alone.get_params()
        assert (result.classifier.coef_.dtype, type(result.classifier.n_iter_)) == (np.float64, int)
        assert (result.predicted == result.classifier.predict(fold.others)).all()
        assert has_converged(result.classifier)


def test_few_steps_are_enough():
    num_steps = 0
    for seed in range(8):
        [solution] = hinge_path(*problem(7, 90, seed), [0.1])
        num_steps += solution.iterations
    assert num_steps < 185


def test_order_and_repetition_of_strengths_do_not_matter():
    X, y = problem(3, 20)
    forth = hinge_path(X, y, STRENGTHS)
    back = hinge_path(X, y, [*STRENGTHS[::-1], STRENGTHS[4]])
    for solution, same in zip([*forth, forth[4]], [*back[:-1][::-1], back[-1]], strict=True):
        assert (solution.coef == same.coef).all()
        assert (solution.intercept == same.intercept).all()


@pytest.mark.parametrize("num_features", [5, 90])
def test_batches_of_strengths_and_blocks_of_rows_change_nothing(num_features, monkeypatch):
    X, y = problem(3, num_features)
    whole = hinge_path(X, y, STRENGTHS, tol=1e-9)
    monkeypatch.setattr(descent, "BATCH_NUMBERS", 1)
    monkeypatch.setattr(axes, "BLOCK_ROWS", 7)
    for solution, same in zip(whole, hinge_path(X, y, STRENGTHS, tol=1e-9), strict=True):
        assert np.allclose(solution.coef, same.coef, atol=1e-6 * np.abs(solution.coef).max())


@pytest.mark.parametrize("num_features", [5, 90])
@pytest.mark.parametrize("strength", [1e-14, 1.0, 1e4, 1e10])
def test_extreme_strengths_end_no_higher_than_scikit_learn(strength, num_features):
    X, y = problem(3, num_features)
    [solution] = hinge_path(X.astype(np.float32), y, [strength], max_iter=5000)
    alone = LinearSVC(C=strength, dual=False, max_iter=5000).fit(X, y)
    ours, _ = objective(X, y, strength, np.ones(3), solution.coef, solution.intercept)
    theirs, _ = objective(X, y, strength, np.ones(3), alone.coef_, alone.intercept_)
    assert solution.converged
    assert (ours <= theirs * 1.01).all()


def test_very_weak_penalties_are_left_to_scikit_learn():
    X, y = problem(3, 5)
    weak, very_weak = try_all("svm", [{"C": 1e5}, {"C": 1e6}], Fold(X, y, X))
    alone = LinearSVC(C=1e6, dual=False, max_iter=5000).fit(X, y)
    assert np.array_equal(very_weak.classifier.coef_, alone.coef_)
    assert not np.array_equal(weak.classifier.coef_, alone.coef_)


def test_features_far_from_standardised_are_solved_too():
    X, y = blobs(3, 40, 20, 6.0)
    X = (X * 10 + 1000).astype(np.float32)
    [solution] = hinge_path(X, y, [1e-6], max_iter=20_000, tol=1e-9)
    alone = LinearSVC(C=1e-6, dual=False, max_iter=5000, tol=1e-9).fit(X, y)
    assert solution.converged
    assert np.allclose(X @ solution.coef.T + solution.intercept, alone.decision_function(X), atol=1e-3)


def test_rounding_does_not_keep_a_rare_class_from_converging():
    """Its tolerance is a 600th of the usual one, which float32 cannot reach."""
    y = np.append(np.zeros(581, int), np.arange(1, 20))
    X = np.random.default_rng(0).normal(size=(len(y), 40)).astype(np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    for solution in hinge_path(X, y, [1e-6, 1e-4], max_iter=50):
        assert solution.converged


def test_few_iterations_are_said_not_to_be_enough():
    X, y = problem(3, 20)
    grid = [{"C": C, "max_iter": limit} for limit in (2, 1000) for C in (1e-2, 0.1)]
    assert together("svm", grid) == [[0, 1], [2, 3]]
    short, long = (try_all("svm", part, Fold(X, y, X)) for part in (grid[:2], grid[2:]))
    assert [has_converged(result.classifier) for result in [*short, *long]] == [False, False, True, True]
    assert short[0].classifier.n_iter_ == 2


def test_the_features_have_no_spread():
    X, y = np.zeros((6, 4)), np.array([0, 0, 0, 1, 1, 2])
    [solution] = hinge_path(X, y, [1.0], tol=1e-9)
    alone = LinearSVC(dual=False, tol=1e-9).fit(X, y)
    assert (solution.coef == 0).all()
    assert np.allclose(solution.intercept, alone.intercept_)


def test_a_strength_that_cannot_be_fails_alone():
    X, y = problem(3, 5)
    grid = [{"C": 1.0}, {"C": -1.0}, {"C": "x"}, {"C": 0.1}]
    good, negative, text, other = try_all("svm", grid, Fold(X, y, X))
    assert (good.reason, other.reason) == ("", "")
    assert negative.reason.startswith("InvalidParameterError: The 'C' parameter of LinearSVC must be")
    assert text.reason.startswith("InvalidParameterError: ")


def test_one_class_is_refused_as_scikit_learn_does():
    X, y = problem(3, 5)
    results = try_all("svm", [{"C": 1.0}, {"C": 2.0}], Fold(X, y * 0, X))
    for result in results:
        assert result.reason.startswith("ValueError: This solver needs samples of at least 2 classes")


def test_other_losses_are_scikit_learns_own():
    X, y = problem(3, 5)
    params = {"C": 1e-3, "loss": "hinge", "dual": True, "tol": 1e-6}
    [result] = try_all("svm", [params], Fold(X, y, X))
    assert not result.reason
    assert result.classifier.get_params()["loss"] == "hinge"
