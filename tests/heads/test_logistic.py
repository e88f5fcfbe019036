"""What logistic regressions solved together come to is what scikit-learn comes to for each alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from featcache.heads.folds import Fold
from featcache.heads.solvers import axes, descent
from featcache.heads.solvers.logistic import logistic_path
from featcache.heads.solvers.paths import together, try_all
from featcache.sweeps.scoring import has_converged

from .conftest import blobs

STRENGTHS = [float(f"{value:.12g}") for value in np.geomspace(1e-6, 1e3, 10)]


def problem(num_classes, num_features, seed=0, per_class=12):
    """Return standardised features with a constant column and a row twice, and classes, of the last one image."""
    X, y = blobs(num_classes, per_class, num_features, 6.0, seed)
    X[:, 0], X[1] = 7.0, X[0]
    some = slice(None, len(y) - per_class + 1)
    return StandardScaler().fit_transform(X[some]), y[some]


def largest_gradient(X, y, C, weights, solution):
    """Return the largest entry of the gradient of the mean loss, as scikit-learn has it."""
    logits = X @ solution.coef.T + solution.intercept
    if logits.shape[1] == 1:
        logits = np.hstack([-logits / 2, logits / 2])
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    left = weights[:, None] * (p / p.sum(axis=1, keepdims=True) - np.eye(logits.shape[1])[y])
    left = left[:, -len(solution.coef) :]
    by_coef = left.T @ X + solution.coef / C
    return max(np.abs(by_coef).max(), np.abs(left.sum(axis=0)).max()) / weights.sum()


@given(
    num_classes=st.sampled_from([2, 3, 7]),
    num_features=st.sampled_from([3, 20, 90]),  # fewer and more than images
    class_weight=st.sampled_from([None, "balanced"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=10, deadline=None)
@pytest.mark.filterwarnings(
    "ignore:The line search",
    "ignore:Rounding errors prevent the line search",
    "ignore:Line Search failed",
    "ignore:newton-cg failed",
)  # at rounding
def test_every_strength_is_what_scikit_learn_converges_to(num_classes, num_features, class_weight, seed):
    X, y = problem(num_classes, num_features, seed)
    weights = compute_sample_weight(class_weight, y)
    for C, found in zip(STRENGTHS, logistic_path(X, y, STRENGTHS, weights, 20000, 1e-9), strict=True):
        # its lbfgs stops where the loss no longer changes, of small strengths with intercepts far off
        alone = LogisticRegression(C=C, class_weight=class_weight, solver="newton-cg", tol=1e-10, max_iter=500).fit(
            X, y
        )
        assert found.converged, C
        assert (found.coef.shape, found.intercept.shape) == (alone.coef_.shape, alone.intercept_.shape)
        assert np.allclose(found.coef, alone.coef_, rtol=0, atol=1e-8 + 1e-3 * np.abs(alone.coef_).max()), C
        expected = X @ alone.coef_.T + alone.intercept_
        near = 1e-8 + 1e-3 * np.abs(expected).max()
        assert np.allclose(X @ found.coef.T + found.intercept, expected, rtol=0, atol=near), C
        assert num_classes == 2 or abs(found.intercept.mean()) < 1e-9


@given(
    num_classes=st.sampled_from([2, 3, 7]),
    num_features=st.sampled_from([3, 20, 90]),
    class_weight=st.sampled_from([None, "balanced"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_what_is_converged_meets_scikit_learns_criterion(num_classes, num_features, class_weight, seed):
    X, y = problem(num_classes, num_features, seed)
    weights = compute_sample_weight(class_weight, y)
    for tol in (1e-4, 1e-7):  # the one in float32
        for C, found in zip(STRENGTHS, logistic_path(X, y, STRENGTHS, weights, tol=tol), strict=True):
            assert found.converged
            assert largest_gradient(X, y, C, weights, found) <= 1.1 * tol, C


def test_order_and_repetition_of_strengths_do_not_matter():
    X, y = problem(3, 20)
    there = logistic_path(X, y, STRENGTHS)
    back = logistic_path(X, y, [*STRENGTHS[::-1], STRENGTHS[4]])
    for one, other in zip([*there, there[4]], [*back[:-1][::-1], back[-1]], strict=True):
        assert (one.coef == other.coef).all()
        assert (one.intercept == other.intercept).all()


def test_batches_of_strengths_and_blocks_of_rows_change_nothing(monkeypatch):
    for num_features in (5, 90):
        X, y = problem(3, num_features)
        whole = logistic_path(X, y, STRENGTHS, tol=1e-9)
        monkeypatch.setattr(descent, "BATCH_NUMBERS", 1)
        monkeypatch.setattr(axes, "BLOCK_ROWS", 7)
        for one, other in zip(whole, logistic_path(X, y, STRENGTHS, tol=1e-9), strict=True):
            assert np.allclose(one.coef, other.coef, atol=1e-5 * np.abs(one.coef).max())
        monkeypatch.undo()


def test_few_iterations_are_said_not_to_be_enough():
    X, y = problem(3, 20)
    found = logistic_path(X, y, [1e-1, 1e1], max_iter=2)
    assert [(one.iterations, one.converged) for one in found] == [(2, False)] * 2
    grid = [{"C": C, "max_iter": most} for most in (2, 1000) for C in (1e-1, 1e1)]
    assert together("logreg", grid) == [[0, 1], [2, 3]]
    short, long = (try_all("logreg", some, Fold(X, y, X)) for some in (grid[:2], grid[2:]))
    assert [has_converged(one.classifier) for one in [*short, *long]] == [False, False, True, True]


def test_the_features_have_no_spread():
    found = logistic_path(np.zeros((6, 4)), np.array([0, 0, 0, 1, 1, 2]), [1.0], tol=1e-9)[0]
    assert (found.coef == 0).all()
    assert np.allclose(np.exp(found.intercept) / np.exp(found.intercept).sum(), [1 / 2, 1 / 3, 1 / 6])


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_classifiers_are_fitted_ones_of_scikit_learn(num_classes, class_weight):
    X, y = problem(num_classes, 90)
    X, y = X.astype(np.float32), y * 10
    grid = [{"C": 0.1, "tol": 1e-9}, {"C": 1e-3, "tol": 1e-9}]
    for tried, params in zip(try_all("logreg", grid, Fold(X, y, X), class_weight), grid, strict=True):
        settings = {**params, "max_iter": 1000, "class_weight": class_weight}
        alone = LogisticRegression(**settings).fit(X.astype(np.float64), y)
        assert tried.classifier.get_params() == alone.get_params()
        assert (tried.classifier.coef_.dtype, tried.classifier.n_iter_.shape) == (np.float32, alone.n_iter_.shape)
        assert np.allclose(tried.classifier.predict_proba(X), alone.predict_proba(X), atol=1e-5)
        assert (tried.predicted == alone.predict(X)).all()


def test_a_strength_that_cannot_be_fails_alone_and_an_endless_one_is_scikit_learns():
    X, y = problem(3, 5)
    grid = [{"C": 1.0}, {"C": -1.0}, {"C": "x"}, {"C": float("inf")}, {"C": 0.1}]
    one, negative, text, endless, other = try_all("logreg", grid, Fold(X, y, X))
    assert [tried.reason for tried in (one, endless, other)] == [""] * 3
    assert negative.reason.startswith("InvalidParameterError: The 'C' parameter of LogisticRegression must be")
    assert text.reason.startswith("InvalidParameterError: ")
    assert (endless.classifier.coef_ == LogisticRegression(C=np.inf, max_iter=1000).fit(X, y).coef_).all()


def test_one_class_is_refused_as_scikit_learn_does():
    X, y = problem(3, 5)
    reasons = [one.reason for one in try_all("logreg", [{"C": 1.0}, {"C": 2.0}], Fold(X, y * 0, X))]
    assert all(reason.startswith("ValueError: This solver needs samples of at least 2 classes") for reason in reasons)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("strength", "apart"), [(1.0, 0.01), (1e2, 0.05), (1e3, 0.25)])
def test_weak_penalties_end_near_the_solution_where_classes_come_apart(strength, apart, seed):
    """There the gradient is tiny long before, and a tolerance on it alone ends at half of the way."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(5), 30)
    centres = rng.normal(0, 0.2, (5, 200))
    X, others = (centres[y] + rng.normal(0, 1, (150, 200)) for _ in range(2))
    [[found], [exact]] = (logistic_path(X, y, [strength], None, *stop) for stop in ((1000, 1e-4), (50_000, 1e-10)))
    scores = [others @ one.coef.T + one.intercept for one in (found, exact)]
    centred = [one - one.mean(axis=1, keepdims=True) for one in scores]
    assert np.abs(centred[0] - centred[1]).max() < apart * np.abs(centred[1]).max()


def test_a_strength_starts_where_the_two_below_point_to():
    """Where classes come apart, weights grow with the logarithm of C."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(5), 30)
    X = rng.normal(0, 0.2, (5, 200))[y] + rng.normal(0, 1, (150, 200))
    solutions = logistic_path(X, y, [1e-3, 1e-1, 1e1, 1e3, 1e5])
    assert sum(solution.iterations for solution in solutions) < 35


def test_rounding_leaves_no_curvature_below_zero():
    y = np.append(np.zeros(369, int), np.arange(1, 20))
    X = np.tile(np.random.default_rng(0).normal(size=(len(y) // 2, 475)), (2, 1))
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)
    for solution in logistic_path(X, y, [1e-8, 1e-5, 1e-3], max_iter=50):
        assert np.isfinite(solution.coef).all()
