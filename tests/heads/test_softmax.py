import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from featcache.heads.softmax import DenseSoftmax
from featcache.heads.solvers.dense import mini_batches

from .conftest import blobs


def standardised(*args, **kwargs):
    X, y = blobs(*args, **kwargs)
    return (X - X.mean(axis=0)) / X.std(axis=0), y


def kernels(estimator):
    return [*estimator.kernels_, *estimator.biases_]


@pytest.mark.parametrize("hidden", [0, 7])
def test_it_learns_a_separable_problem(hidden):
    X, y = standardised(3, spread=0.3)
    head = DenseSoftmax(hidden=hidden, learning_rate=0.03).fit(X, y)
    assert head.score(X, y) == 1
    assert [kernel.shape for kernel in head.kernels_] == ([(6, 7), (7, 3)] if hidden else [(6, 3)])


def test_a_hidden_layer_separates_what_no_line_can():
    X = np.array([[0, 0], [1, 1], [0, 1], [1, 0]] * 16, dtype=float) * 2 - 1
    y = np.array([0, 0, 1, 1] * 16)
    settings = {"learning_rate": 0.03, "epochs": 60}
    assert DenseSoftmax(**settings).fit(X, y).score(X, y) < 0.8
    assert DenseSoftmax(hidden=16, **settings).fit(X, y).score(X, y) == 1


@pytest.mark.parametrize("hidden", [0, 4])
def test_one_seed_makes_two_fits_equal_and_another_does_not(hidden):
    X, y = standardised(2)
    first, again, other = (DenseSoftmax(hidden, epochs=2, seed=seed).fit(X, y) for seed in (5, 5, 6))
    assert all((a == b).all() for a, b in zip(kernels(first), kernels(again), strict=True))
    assert not (first.kernels_[0] == other.kernels_[0]).all()


def test_the_random_numbers_of_the_caller_play_no_part():
    X, y = standardised(2)
    first = DenseSoftmax(epochs=2).fit(X, y)
    np.random.seed(99)
    again = DenseSoftmax(epochs=2).fit(X, y)
    assert (first.kernels_[0] == again.kernels_[0]).all()


def test_it_keeps_the_contract_of_a_scikit_learn_estimator():
    head = DenseSoftmax(hidden=4, learning_rate=0.1, seed=7)
    twin = clone(head)
    assert twin is not head
    assert twin.get_params() == head.get_params()
    assert twin.set_params(seed=8).seed == 8
    assert not hasattr(twin, "kernels_")


def test_fit_leaves_its_parameters_and_its_data_alone():
    X, y = standardised(2)
    kept = X.copy()
    head = DenseSoftmax(epochs=1)
    before = head.get_params()
    assert head.fit(X, y) is head
    assert head.get_params() == before
    assert (kept == X).all()


def test_it_works_inside_a_grid_search():
    X, y = standardised(2)
    found = GridSearchCV(DenseSoftmax(epochs=2), {"learning_rate": [1e-6, 0.1]}, cv=2).fit(X, y)
    assert found.best_params_ == {"learning_rate": 0.1}


def test_labels_are_given_back_as_they_were():
    X, y = standardised(2)
    names = np.array(["rose", "aster"])[y]
    head = DenseSoftmax(learning_rate=0.1, epochs=10).fit(X, names)
    assert list(head.classes_) == ["aster", "rose"]
    assert (head.predict(X) == names).all()


def test_probabilities_add_up_and_agree_with_the_prediction():
    X, y = standardised(3)
    head = DenseSoftmax(epochs=2).fit(X, y)
    probabilities = head.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    assert (probabilities.argmax(axis=1) == head.predict(X)).all()


def test_balanced_weights_help_the_rare_class():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [190, 10])
    X = rng.normal(0, 1, (200, 2)) + y[:, None] * 1.0
    plain, balanced = (
        DenseSoftmax(learning_rate=0.03, epochs=20, class_weight=weight).fit(X, y) for weight in (None, "balanced")
    )
    assert (plain.predict(X) == 1).sum() < 10 < (balanced.predict(X) == 1).sum()


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_sample_weight

    y = np.repeat([0, 1, 2], [5, 3, 12])
    found = DenseSoftmax(class_weight="balanced")._sample_weights(y)
    np.testing.assert_allclose(found, compute_sample_weight("balanced", y), rtol=1e-6)


def test_every_epoch_sees_each_row_at_most_once():
    rows = list(mini_batches(seed=0, num_rows=10, batch=4, steps=4))
    epochs = [np.concatenate(rows[:2]), np.concatenate(rows[2:])]
    assert [len(set(epoch)) for epoch in epochs] == [8, 8]
    assert list(epochs[0]) != list(epochs[1])


def test_fewer_images_than_a_batch_are_one_batch():
    X, y = standardised(2, per_class=3)
    assert DenseSoftmax(learning_rate=0.1, epochs=30, batch_size=64).fit(X, y).score(X, y) == 1


@pytest.mark.parametrize("hidden", [0, 8])
def test_a_handful_of_images_is_enough_to_learn_from(hidden):
    X, y = blobs(3, per_class=5, spread=0.5)
    assert DenseSoftmax(hidden=hidden, learning_rate=1e-2).fit(X, y).score(X, y) == 1.0
