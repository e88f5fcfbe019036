"""Heads that train together are those that train alone, and those of Keras."""

import subprocess
import sys
from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from featcache.heads import softmax
from featcache.heads.folds import Fold
from featcache.heads.softmax import DenseSoftmax, chunks, family, train_together
from featcache.heads.solvers import dense
from featcache.heads.solvers.dense import MIN_STEPS, held_out, initial_kernels, mini_batches
from featcache.heads.solvers.dense_steps import Batch, NumpyEngine, batch_of, forward, gradients
from featcache.heads.solvers.paths import together, try_all

from .conftest import blobs

ENGINES = ("numpy", "keras")
BATCH = 16
CONSTANT = {"schedule": "constant", "optimizer": "sgd", "weight_decay": 0.0}


def problem(num_classes=4, seed=0, per_class=20):
    X, y = blobs(num_classes, per_class=per_class, spread=6.0, seed=seed)
    return StandardScaler().fit_transform(X).astype(np.float32), y


def head_of(**params):
    return DenseSoftmax(**{"learning_rate": 0.02, "epochs": 3, "batch_size": BATCH, **params})


def trained(X, y, *settings, **common):
    heads = [head_of(**common, **setting) for setting in settings]
    train_together(heads, X, y)
    return heads


def arrays(head):
    return [*head.kernels_, *head.biases_]


def assert_equal(one, other, atol=2e-4):
    for a, b in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=atol)


def differ(one, other):
    return max(np.abs(a - b).max() for a, b in zip(arrays(one), arrays(other), strict=True))


def in_keras(head, X, y):
    """Return the model that plain Keras makes of a head's parameters, first weights and mini-batches."""
    import keras

    num_classes = int(y.max()) + 1
    layers = [keras.layers.Dense(width, activation="relu") for width in softmax.widths(head.hidden)]
    model = keras.Sequential([keras.Input((X.shape[1],)), *layers, keras.layers.Dense(num_classes)])
    kernels = initial_kernels(head.seed, [X.shape[1], *softmax.widths(head.hidden), num_classes])
    for layer, kernel in zip(model.layers, kernels, strict=True):
        layer.set_weights([kernel, np.zeros(kernel.shape[1])])
    steps = max(MIN_STEPS, head.epochs * (len(X) // head.batch_size))
    rate = head.learning_rate
    if head.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, steps)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=head.weight_decay)
    if head.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(rate, head.momentum, head.nesterov, weight_decay=head.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=head.label_smoothing)
    model.compile(optimizer, loss)
    weights = head._sample_weights(y)
    for rows in mini_batches(head.seed, len(X), head.batch_size, steps):
        model.train_on_batch(X[rows], np.eye(num_classes)[y[rows]], sample_weight=weights[rows])
    return model


@pytest.mark.parametrize(
    "params",
    [
        pytest.param({"label_smoothing": 0.2, "weight_decay": 0.1}, marks=pytest.mark.slow),
        {"hidden": (5,), "class_weight": "balanced", "weight_decay": 0.3},
        {"hidden": (6, 4), "seed": 3, "schedule": "constant", "learning_rate": 0.003},
        pytest.param({"optimizer": "sgd", "weight_decay": 0.1, "class_weight": "balanced"}, marks=pytest.mark.slow),
        {"optimizer": "sgd", "hidden": (5,), "nesterov": True, "momentum": 0.8, "schedule": "constant"},
        pytest.param(
            {"optimizer": "sgd", "hidden": (6, 4), "label_smoothing": 0.1, "momentum": 0.5}, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_a_head_is_the_one_that_plain_keras_trains(params):
    X, y = problem()
    X, y = X[6:], y[6:]  # classes of several sizes
    weights = in_keras(head_of(**params), X, y).get_weights()
    for engine in ENGINES:
        head = head_of(**params, engine=engine).fit(X, y)
        for found, expected in zip(arrays(head), [*weights[::2], *weights[1::2]], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4)


OWN = [
    {"learning_rate": 0.003},
    {"learning_rate": 0.03, "weight_decay": 0.3},
    {"label_smoothing": 0.3},
    {"seed": 1},
    {"seed": 1, "weight_decay": 0.5, "label_smoothing": 0.1},
    {"seed": 2, "dropout": 0.5},
    {"dropout": 0.5},
    {"dropout": 0.2},
]


@pytest.mark.parametrize("engine", ["numpy", pytest.param("keras", marks=pytest.mark.slow)])
@pytest.mark.parametrize("hidden", [0, 7, (6, 4)])
def test_heads_trained_together_are_those_trained_alone(hidden, engine):
    X, y = problem()
    for setting, head in zip(OWN, trained(X, y, *OWN, hidden=hidden, engine=engine), strict=True):
        assert_equal(head, head_of(**setting, hidden=hidden).fit(X, y))
        assert (head.n_features_in_, list(head.classes_), head.n_epochs_) == (6, [0, 1, 2, 3], 60)


@pytest.mark.slow
@pytest.mark.parametrize("common", [{"optimizer": "sgd", "nesterov": True}, {"hidden": 5, "patience": 2}], ids=str)
def test_the_engines_agree(common):
    X, y = problem()
    of_numpy, of_keras = (trained(X, y, *OWN, **common, engine=engine) for engine in ENGINES)
    for one, other in zip(of_numpy, of_keras, strict=True):
        assert_equal(one, other)
        assert one.n_epochs_ == other.n_epochs_


@pytest.mark.parametrize("hidden", [0, 5])
def test_every_parameter_of_a_head_makes_another(hidden):
    X, y = problem()
    plain, *others = trained(X, y, {}, *OWN, hidden=hidden)
    assert min(differ(plain, other) for other in others) > 1e-2


@pytest.mark.parametrize(("steps", "least"), [(None, 300), (3, 6), (400, 800)])
def test_a_head_trains_for_so_many_steps(steps, least, monkeypatch):
    counted = []
    step = NumpyEngine.step
    monkeypatch.setattr(NumpyEngine, "step", lambda self, *more: counted.append(1) or step(self, *more))
    head = head_of(epochs=2, steps_per_epoch=steps).fit(*problem())
    assert len(counted) == least
    assert head.n_epochs_ == 2 or steps is None


def test_a_seed_changes_the_first_weights_and_the_mini_batches():
    first, other = (initial_kernels(seed, [6, 5, 3]) for seed in (0, 1))
    assert [kernel.shape for kernel in first] == [(6, 5), (5, 3)]
    assert not np.isclose(first[0], other[0]).any()
    assert abs(np.abs(initial_kernels(0, [300, 200])[0]).max() - (6 / 500) ** 0.5) < 1e-4
    batches = [next(mini_batches(seed, 80, 16, 1)) for seed in (0, 1)]
    assert set(batches[0]) != set(batches[1])


def test_what_is_held_out_is_a_tenth_of_each_class():
    index = np.repeat([0, 1, 2, 3], [40, 2, 1, 5])
    held = held_out(0, index)
    assert list(np.bincount(index[held], minlength=4)) == [4, 1, 0, 1]
    assert len(set(held)) == 6
    assert set(held) != set(held_out(1, index))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_head_that_stops_early_is_the_best_so_far(engine):
    """With a constant rate the first epochs are the same however many follow."""
    X, y = problem(per_class=40)
    settings = [{"learning_rate": rate, "seed": seed} for rate in (0.5, 0.05, 1e-4) for seed in (0, 1, 2)]
    heads = trained(X, y, *settings, patience=4, engine=engine, **CONSTANT)
    stopped = {(head.learning_rate, head.seed): head.n_epochs_ for head in heads}
    assert min(stopped.values()) < 10
    assert max(stopped.values()) == 34  # 300 steps of 9 to an epoch: those of a small rate go on to the end
    for head in heads:
        rows = held_out(head.seed, y)
        rest = np.setdiff1d(np.arange(len(y)), rows)
        losses = log_losses(head, X[rest], y[rest], X[rows], y[rows])
        best = int(np.argmin(losses[: first_stop(losses, 4)]))
        assert head.n_epochs_ == best + 1
        assert abs(log_loss(head, X[rows], y[rows]) - losses[best]) < 1e-4


def log_loss(head, X, y):
    return -np.log(head.predict_proba(X)[np.arange(len(y)), y].astype(np.float64)).mean()


def log_losses(head, X, y, X_held, y_held):
    """Return the log loss after each epoch, by SGD in a few lines."""
    kernel, bias = initial_kernels(head.seed, [X.shape[1], y.max() + 1])[0].astype(np.float64), 0.0
    speed, found, per_epoch = 0.0, [], len(X) // BATCH
    for step, rows in enumerate(mini_batches(head.seed, len(X), BATCH, MIN_STEPS), 1):
        logits = X[rows] @ kernel + bias
        delta = softmax.softmax(logits) - np.eye(y.max() + 1)[y[rows]]
        gradient = np.vstack([X[rows].T @ delta, delta.sum(0)]) / BATCH
        speed = head.momentum * speed - head.learning_rate * gradient
        kernel, bias = kernel + speed[:-1], bias + speed[-1]
        if step % per_epoch == 0 or step == MIN_STEPS:
            probabilities = softmax.softmax(X_held @ kernel + bias)
            found.append(-np.log(probabilities[np.arange(len(y_held)), y_held]).mean())
    return found


def first_stop(losses, patience):
    """Return how many epochs a head with patience trains."""
    for epoch in range(len(losses)):
        if epoch - int(np.argmin(losses[: epoch + 1])) == patience:
            return epoch + 1
    return len(losses)


def test_heads_that_have_stopped_leave_the_computation(monkeypatch):
    widths = []
    step = softmax.NumpyEngine.step

    def counted(self, *args):
        widths.append(self.state.params[0].shape[2])
        step(self, *args)

    monkeypatch.setattr(softmax.NumpyEngine, "step", counted)
    X, y = problem(per_class=40)
    trained(X, y, {"learning_rate": 0.5}, {"learning_rate": 1e-4}, patience=4, **CONSTANT)
    assert (widths[0], widths[-1], len(widths)) == (8, 4, 300)
    widths.clear()
    trained(X, y, {"learning_rate": 0.5}, patience=4, **CONSTANT)
    assert len(widths) < 300


def test_balanced_weights_count_in_what_is_held_out():
    data = dense.Data(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), np.array([[1], [3]], np.float32))
    kernel, knobs = np.array([[[1, 0], [0, 0]]], np.float32), softmax._knobs([[head_of()]])
    engine = softmax.NumpyEngine(family(head_of()), data, [kernel, np.zeros((1, 1, 2), np.float32)], knobs)
    expected = (np.log(1 + np.exp(-1)) + 3 * np.log(2)) / 4
    assert engine.log_loss(np.array([[0, 1]])) == pytest.approx(expected)


@pytest.mark.parametrize("hidden", [0, 5, (6, 5)])
def test_gradients_are_those_of_the_loss(hidden):
    """By differences, of two streams with three heads each, with dropout."""
    rng = np.random.default_rng(0)
    knobs = softmax._knobs([[head_of(label_smoothing=part) for part in (0.0, 0.1, 0.5)]] * 2)
    sizes = [4, *softmax.widths(hidden), 3]
    later = [[(2, 3, *shape), (2, 3, 1, shape[1])] for shape in pairwise(sizes[1:])]
    shapes = [(2, 4, 3 * sizes[1]), (2, 1, 3 * sizes[1]), *chain.from_iterable(later)]
    params = [rng.normal(size=shape) for shape in shapes]
    mask = (rng.random((2, 3, 7, 5) if hidden else (2, 7, 4)) < 0.7) / 0.7
    targets, weights = np.eye(3)[rng.integers(0, 3, (2, 1, 7))], rng.random((2, 1, 7, 1))
    batch = Batch(rng.normal(size=(2, 7, 4)), targets, weights, mask)

    def loss():
        likely = softmax.softmax(forward(np, params, batch.X, 3, mask)[1].reshape(-1, 3)).reshape(2, 3, 7, 3)
        part = knobs.label_smoothing[:, :, None, None]
        return -(weights * (targets * (1 - part) + part / 3) * np.log(likely)).sum()

    for param, gradient in zip(params, gradients(np, params, batch, knobs), strict=True):
        direction = rng.normal(size=param.shape)
        kept = param.copy()
        param += 1e-6 * direction
        above = loss()
        param[:] = kept - 1e-6 * direction
        difference = (above - loss()) / 2e-6
        param[:] = kept
        assert difference == pytest.approx((gradient * direction).sum(), rel=1e-5)


@pytest.mark.parametrize("hidden", [0, 400])
def test_dropout_keeps_the_mean_of_what_the_last_layer_takes(hidden):
    noise = np.random.default_rng(0).random((1, 64, 400) if not hidden else (1, 1, 64, 400), dtype=np.float32)
    data = dense.Data(np.ones((64, 400), np.float32), np.ones((64, 2), np.float32), np.ones((64, 1), np.float32))
    rows, dropout = np.arange(64)[None], np.array([[0.3, 0.3 if not hidden else 0.8]], np.float32)
    mask = batch_of(np, data, rows, noise, dropout, 1.0).mask
    assert np.allclose(mask.mean(axis=(-1, -2)), 1, atol=0.03)
    assert set(np.unique(mask)) == {0, np.float32(1 / np.float32(0.7)), *({mask.max()} if hidden else ())}


def test_a_head_with_dropout_predicts_without():
    X, y = problem()
    head = head_of(hidden=6, dropout=0.5).fit(X, y)
    assert (head.decision_function(X) == head.decision_function(X)).all()
    by_hand = np.maximum(X @ head.kernels_[0] + head.biases_[0], 0) @ head.kernels_[1] + head.biases_[1]
    np.testing.assert_allclose(head.decision_function(X), by_hand, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("hidden", -1, "hidden takes 0, a width, or several such as '1024-512'; got -1"),
        ("hidden", "12-x", "hidden takes 0, a width, or several such as '1024-512'; got '12-x'"),
        ("hidden", (4, 0), "hidden takes 0, a width, or several such as '1024-512'; got (4, 0)"),
        ("learning_rate", -0.1, "learning_rate is a number from 0; got -0.1"),
        ("weight_decay", float("nan"), "weight_decay is a number from 0; got nan"),
        ("dropout", 1, "dropout is a number from 0 to below 1; got 1"),
        ("label_smoothing", "x", "label_smoothing is a number from 0 to below 1; got 'x'"),
        ("momentum", 1.5, "momentum is a number from 0 to below 1; got 1.5"),
        ("epochs", 0, "epochs is a whole number from 1; got 0"),
        ("batch_size", 2.5, "batch_size is a whole number from 1; got 2.5"),
        ("seed", None, "seed is a whole number from 0; got None"),
        ("patience", 0, "patience is a whole number from 1; got 0"),
        ("optimizer", "adam", "optimizer is one of adamw, sgd; got 'adam'"),
        ("schedule", "step", "schedule is one of cosine, constant; got 'step'"),
        ("class_weight", "even", "class_weight is one of None, balanced; got 'even'"),
        ("nesterov", "yes", "nesterov is one of False, True; got 'yes'"),
        ("engine", "gpu", "engine is one of auto, numpy, keras; got 'gpu'"),
    ],
)
def test_a_parameter_that_is_none_is_refused(name, value, reason):
    X, y = problem()
    with pytest.raises(ValueError, match=name) as refused:
        head_of(**{name: value}).fit(X, y)
    assert str(refused.value) == reason


def test_patience_needs_images_to_hold_out():
    X, y = problem(per_class=1)
    with pytest.raises(ValueError, match="patience holds out images of classes that have two; got 4 of as many"):
        head_of(patience=1).fit(X, y)


@pytest.mark.parametrize("hidden", ["6-4", (6, 4), [6, 4]])
def test_layers_are_named_in_several_ways(hidden):
    X, y = problem()
    assert [kernel.shape for kernel in head_of(hidden=hidden).fit(X, y).kernels_] == [(6, 6), (6, 4), (4, 4)]


def test_a_chunk_in_numpy_is_of_one_stream_and_in_keras_of_several_with_as_many_heads():
    heads = [head_of(seed=seed, learning_rate=rate) for seed in (0, 1) for rate in (0.1, 0.2)]
    heads += [head_of(seed=2), head_of(seed=0, dropout=0.5), head_of(seed=0, epochs=9)]
    assert chunks(heads) == [[0, 1], [2, 3], [4], [5], [6]]
    for head in heads:
        head.engine = "keras"
    assert chunks(heads) == [[0, 1, 2, 3], [4, 5], [6]]


def test_chunks_are_of_even_sizes_that_fit_the_cache():
    assert [len(chunk) for chunk in chunks([head_of()] * 100)] == [15, 15, 14, 14, 14, 14, 14]
    assert [len(chunk) for chunk in chunks([head_of(hidden=256)] * 5)] == [2, 2, 1]
    assert [len(chunk) for chunk in chunks([head_of(hidden="1024-512")] * 2)] == [1, 1]
    assert [len(chunk) for chunk in chunks([head_of(engine="keras")] * 100)] == [100]


def test_heads_of_another_family_differ_in_what_all_share():
    assert family(head_of(hidden=(8,))) == family(head_of(hidden="8", learning_rate=0.5, dropout=0.1, seed=4))
    for name, value in [("hidden", 3), ("epochs", 9), ("momentum", 0.1), ("class_weight", "balanced")]:
        assert family(head_of()) != family(head_of(**{name: value}))


def test_training_in_numpy_imports_no_keras():
    code = (
        "import sys, numpy as np\n"
        "from featcache.heads.softmax import DenseSoftmax\n"
        "DenseSoftmax(4, epochs=1).fit(np.eye(8), np.arange(8) % 2)\n"
        "assert not {'keras', 'tensorflow'} & {*sys.modules}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_engine_is_keras_only_where_it_has_an_accelerator(monkeypatch):
    import keras

    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    for devices, expected in [(["cpu:0"], "numpy"), (["gpu:0"], "keras"), (["tpu:0"], "keras")]:
        monkeypatch.setattr(keras.distribution, "list_devices", lambda found=devices: found)
        assert softmax.engine_of("auto") == expected
    monkeypatch.delitem(sys.modules, "keras")
    assert softmax.engine_of("auto") == "numpy"
    assert softmax.engine_of("keras") == "keras"


RATES = [{"learning_rate": rate, "weight_decay": decay} for rate in (0.1, 0.01) for decay in (0.1, 0.01)]


def fold_of(X, y):
    return Fold(X[::2], y[::2], X[1::2])


def test_a_sweep_trains_in_one_call_what_differs_in_its_own_parameters_alone(monkeypatch):
    assert together("softmax", RATES) == [[0, 1, 2, 3]]
    assert together("mlp:8", [{"hidden": 8, **rates} for rates in RATES]) == [[0, 1, 2, 3]]
    assert together("softmax", [{"epochs": 2}, {"epochs": 3}, {"epochs": 2, "dropout": 0.1}]) == [[0], [2], [1]]
    assert together("softmax", [{"learning_rate": 1}, {"learning_rate": -1}, {}]) == [[0, 2], [1]]
    assert [len(some) for some in together("softmax", [{"learning_rate": 0.1}] * 17)] == [9, 8]


def test_settings_tried_together_are_those_fitted_alone():
    fold = fold_of(*problem())
    for tried, params in zip(try_all("softmax", RATES, fold, "balanced", 3), RATES, strict=True):
        alone = DenseSoftmax(**params, class_weight="balanced", seed=3).fit(fold.X, fold.y)
        assert_equal(tried.classifier, alone)
        assert (tried.predicted == alone.predict(fold.others)).all()
        assert tried.seconds > 0
    assert try_all("softmax", RATES, replace(fold, others=fold.X[:0]))[0].logits is None


def test_a_setting_that_cannot_be_fails_alone():
    good, bad = try_all("softmax", [{"learning_rate": 0.1}, {"learning_rate": -1.0}], fold_of(*problem()))
    assert (good.reason, bad.reason) == ("", "ValueError: learning_rate is a number from 0; got -1.0")
