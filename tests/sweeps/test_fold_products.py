"""Rounds of cross-validation share one pass over the features for their products."""

import numpy as np
from sklearn.preprocessing import StandardScaler

from featcache.sweeps.fold_products import FoldProducts


def test_products_of_each_round_are_of_its_standardised_rows():
    rng = np.random.default_rng(0)
    X = rng.normal([1000, -3, 0, 7], [1, 5, 0.1, 2], (60, 4)).astype(np.float32)
    X[:, 3] = 7  # a constant has the scale 1
    rows = np.arange(50)  # of train; the first five choose in no fold
    folds = [rows[5:20], rows[20:40], rows[40:]]
    rounds = (*((np.setdiff1d(rows, fold), fold) for fold in folds), (rows, rows[:0]))
    products = FoldProducts(X, rounds)
    for number, (fit_on, _) in enumerate(rounds):
        scaler = StandardScaler().fit(X[fit_on].astype(np.float64))
        Z = scaler.transform(X[fit_on].astype(np.float64))
        np.testing.assert_allclose(products.standardised(number, scaler.scale_), Z.T @ Z, rtol=1e-9, atol=1e-9)


def test_products_are_shared_where_images_are_many_and_features_few():
    fold = np.arange(3)
    rounds = ((fold, fold), (fold, fold[:0]))
    assert FoldProducts.are_worth_it(np.zeros((21, 10)), rounds)
    assert not FoldProducts.are_worth_it(np.zeros((20, 10)), rounds)  # half of them are no more than the features
    assert not FoldProducts.are_worth_it(np.zeros((21, 10)), rounds[:1])  # a single fit shares with nobody
    assert not FoldProducts.are_worth_it(np.broadcast_to(np.float32(0), (99_999, 9_999)), rounds)  # 1.6 GB of sums
