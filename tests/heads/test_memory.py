"""What preparing and fitting allocate beside the features."""

import numpy as np
import pytest
from peaks import peak_of
from sklearn.pipeline import Pipeline

from featcache.heads import steps
from featcache.heads.estimators import FAMILIES
from featcache.heads.folds import Fold
from featcache.heads.solvers import nearest
from featcache.heads.solvers.paths import try_all, try_leave_one_out


def fold_of(num_rows, num_features, num_others):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(num_rows + num_others, num_features)).astype(np.float32)
    y = rng.integers(0, 3, num_rows)
    return Fold(X[:num_rows], y, X[num_rows:])


@pytest.mark.parametrize("leaves_one_out", [False, True])
def test_neighbours_are_searched_for_a_block_of_images_at_a_time(leaves_one_out, monkeypatch):
    fold = fold_of(num_rows=1000, num_features=600, num_others=800)
    grid = FAMILIES["knn"].grid

    def fit():
        if leaves_one_out:
            return try_leave_one_out("knn", grid, fold.X, fold.y)
        return try_all("knn", grid, fold)

    whole = fit()
    monkeypatch.setattr(nearest, "BLOCK_BYTES", 2**16)
    results, peak = peak_of(fit)
    assert [list(result.predicted) for result in results] == [list(result.predicted) for result in whole]
    # A copy at unit length would take as much as the features, and all similarities at once more than that.
    assert peak / fold.X.nbytes < 0.8


@pytest.mark.parametrize(("num_rows", "count"), [(20, 20), (33, 1), (1000, 7), (1030, 30)])
def test_neighbours_are_those_of_a_complete_sort(num_rows, count):
    fold = fold_of(num_rows, num_features=6, num_others=50)
    cosines = fold.others @ fold.X.T / np.linalg.norm(fold.X, axis=1)
    in_order = np.argsort(-cosines, axis=1)
    np.testing.assert_array_equal(nearest.nearest(fold.X, fold.others, count), in_order[:, :count])


@pytest.mark.parametrize("chain", ["standardise", "l2", "l2+standardise"])
def test_features_are_prepared_in_place_a_block_at_a_time(chain, monkeypatch):
    fold = fold_of(num_rows=3000, num_features=200, num_others=600)
    whole = Pipeline(steps.make_steps(chain))
    expected = whole.fit_transform(fold.X.copy())
    expected_others = whole.transform(fold.others.copy())
    monkeypatch.setattr(steps, "BLOCK", 64)
    (fitted, X, others), peak = peak_of(lambda: steps.fit_steps(chain, fold.X, fold.others))
    assert peak / fold.X.nbytes < 0.3
    np.testing.assert_allclose(X, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(others, expected_others, rtol=1e-5, atol=1e-6)
    assert [step.get_params() for _, step in fitted] == [step.get_params() for step in whole]
