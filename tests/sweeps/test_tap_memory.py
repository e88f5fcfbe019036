"""What a sweep allocates beside the features of a tap."""

import numpy as np
import pytest
from peaks import peak_of

from featcache.heads import steps
from featcache.sweeps import Settings, tap_data
from featcache.sweeps.tap_data import Prepared, TapData

NUM_TRAIN, NUM_ROWS, NUM_FEATURES = 2000, 2500, 200


def tap_data_of(num_folds, num_views=1):
    """Return the data of a tap that chooses on the last rows, or by cross-validation among all."""
    rng = np.random.default_rng(0)
    views = rng.normal(size=(num_views, NUM_ROWS, NUM_FEATURES)).astype(np.float32)
    y = np.arange(NUM_ROWS) % 3
    rows = np.arange(NUM_ROWS)
    if not num_folds:
        return TapData("t", views[0], y, ((rows[:NUM_TRAIN], rows[NUM_TRAIN:]),), NUM_TRAIN)
    folds = tuple((rows[rows % num_folds != fold], rows[rows % num_folds == fold]) for fold in range(num_folds))
    return TapData("t", views[0], y, folds, NUM_ROWS, other_views=tuple(views[1:]))


@pytest.mark.parametrize(("num_folds", "num_views", "copies"), [(0, 1, 0), (5, 1, 1), (5, 3, 1)])
def test_a_round_copies_the_features_once_at_most(num_folds, num_views, copies, monkeypatch):
    monkeypatch.setattr(steps, "BLOCK", 16)
    assert Prepared(tap_data_of(num_folds), "standardise", last=True)[0]  # imports what it needs
    data = tap_data_of(num_folds, num_views)
    prepared = Prepared(data, "standardise", last=True)
    (_, fold), peak = peak_of(lambda: prepared[0])
    assert abs(fold.X.mean()) < 1e-5
    # A view is gathered before it takes its place among the others.
    gathered = 0.3 if num_views > 1 else 0
    assert peak / data.num_bytes < copies + gathered + 0.1


@pytest.mark.parametrize(
    ("copies", "num_folds", "keep", "workers"),
    [
        (100, 0, True, 8),
        (4, 0, True, 3),  # 8 copies, of which the features take one and each fit two
        (1, 0, True, 1),
        (8, 5, True, 4),  # the features and six rounds are held
        (8, 5, False, 5),  # each fit prepares its round, and the features are held
    ],
)
def test_fewer_heads_are_fitted_at_once_where_memory_is_short(copies, num_folds, keep, workers, monkeypatch):
    data = tap_data_of(num_folds)
    monkeypatch.setattr(tap_data, "KEEP_BYTES", 100 * data.num_bytes if keep else 0)
    settings = Settings("c.h5", ("ridge",), ("t",), memory=copies * data.num_bytes)
    assert Prepared(data, "standardise", last=True).num_workers(8, settings) == workers
