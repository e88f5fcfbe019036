import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, recall_score

from featcache.heads.logits import softmax
from featcache.sweeps.metrics import fit_temperature, score, wilson


def reference(truth, predicted, metric):
    if metric == "balanced_accuracy":  # as balanced_accuracy_score, which warns about classes only predicted
        return recall_score(truth, predicted, labels=np.unique(truth), average="macro")
    return {"accuracy": accuracy_score, "macro_f1": lambda a, b: f1_score(a, b, average="macro")}[metric](
        truth, predicted
    )


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1"])
@settings(max_examples=20)
@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_scores_are_those_of_scikit_learn(metric, pairs):
    truth, predicted = np.array(pairs).T
    found = score(truth, predicted, metric)
    assert found.value == pytest.approx(reference(truth, predicted, metric))
    assert 0 <= found.low <= found.high <= 1


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17: 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_has_the_published_values(correct, total, low, high):
    found = wilson(correct, total)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


@given(total=st.integers(1, 500), share=st.floats(0, 1))
def test_wilsons_interval_holds_the_share_and_stays_within_0_and_1(total, share):
    found = wilson(round(share * total), total)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


def test_the_interval_of_a_bootstrapped_metric_holds_its_score_and_repeats():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 60)
    predicted = np.where(rng.random(60) < 0.7, truth, rng.integers(0, 3, 60))
    found = score(truth, predicted, "macro_f1")
    assert found.low < found.value < found.high
    assert found == score(truth, predicted, "macro_f1")


@pytest.mark.parametrize("planted", [0.1, 1.0, 20.0])
def test_a_planted_temperature_is_found(planted):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (5000, 4))
    truth = np.array([rng.choice(4, p=p) for p in softmax(logits)])
    assert fit_temperature(logits * planted, truth) == pytest.approx(planted, rel=0.08)


def test_float32_logits_have_the_temperature_of_the_same_numbers_in_float64():
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, (500, 4)).astype(np.float32)
    truth = logits.argmax(axis=1)
    truth[::5] = 0
    assert fit_temperature(logits, truth) == pytest.approx(fit_temperature(logits.astype(float), truth), rel=1e-9)


def test_separable_images_do_not_ask_for_certainty():
    logits, truth = np.eye(3)[[0, 1, 2] * 4] * 5, np.array([0, 1, 2] * 4)
    sure = softmax(logits / fit_temperature(logits, truth)).max(axis=1)
    assert (sure < 0.99).all()
    assert (sure > 0.8).all()
