"""Features that may not lie in memory are streamed from the disk."""

import numpy as np
import pytest

from featcache.errors import ShapeMismatch, UsageError
from featcache.heads import row_blocks, steps
from featcache.heads.solvers import streams
from featcache.sweeps import sweep, tap_data
from featcache.sweeps.tap_data import parse_bytes, physical_memory

from .conftest import TAP, edited, with_rows

LITTLE = 100.0  # bytes
SGD = "sklearn.linear_model:SGDClassifier"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(row_blocks, "ROWS", 16)
    monkeypatch.setattr(streams, "ROWS", 16)
    monkeypatch.setattr(tap_data, "BLOCK", 16)
    monkeypatch.setattr(steps, "BLOCK", 16)


def run_on(cache, out, heads, **options):
    return sweep(cache, heads, **{"taps": [TAP], "out": out, "memory": LITTLE, **options})


def test_streamed_heads_are_those_in_memory(hard, tmp_path):
    heads = "ridge,lda,softmax,mlp:4"
    streamed = run_on(hard, tmp_path / "streamed", heads)
    whole = run_on(hard, tmp_path / "whole", heads, memory=None)
    X, _ = hard.arrays("val", TAP)
    for one, other in zip(streamed.trials, whole.trials, strict=True):
        assert (one.status, one.score) == ("ok", other.score), one
        assert one.log_loss == pytest.approx(other.log_loss, rel=1e-3)
        assert (streamed[one.trial].estimator.predict(X) == whole[one.trial].estimator.predict(X)).all()


def test_naive_bayes_streams_with_the_smoothing_of_its_last_block(hard, tmp_path):
    grid = {"gnb": {"var_smoothing": [1e-9]}}
    streamed = run_on(hard, tmp_path / "streamed", "gnb", grid=grid).trials[0]
    whole = run_on(hard, tmp_path / "whole", "gnb", grid=grid, memory=None).trials[0]
    assert streamed.log_loss == pytest.approx(whole.log_loss, rel=1e-4)


def test_features_are_never_in_memory_whole(hard, tmp_path, monkeypatch):
    asked = []
    keep = tap_data.features_of

    def reading(cache, rows, tap):
        asked.append(len(rows))
        return keep(cache, rows, tap)

    monkeypatch.setattr(tap_data, "features_of", reading)
    run_on(hard, tmp_path / "run", "ridge")
    assert max(asked) == 16
    assert sum(asked) == len(hard.usable("train")) + len(hard.usable("val"))


def test_classifiers_with_partial_fit_stream(hard, tmp_path):
    run = run_on(hard, tmp_path / "run", [SGD, "mlpclassifier"])
    assert [trial.status for trial in run.trials] == ["ok", "ok"]
    assert min(trial.score for trial in run.trials) > 0.4  # of three classes in much noise
    assert run.trials[0].handoff


def test_a_classifier_that_cannot_stream_says_so_and_the_sweep_goes_on(hard, tmp_path):
    run = run_on(hard, tmp_path / "run", "svm,ridge")
    failed = [trial for trial in run.trials if trial.failed]
    assert {trial.head for trial in failed} == {"svm"}
    assert "svm needs all features in memory" in failed[0].status
    assert failed[0].status.endswith("these are streamed. Use gnb, ridge, lda, softmax, mlp, mlpclassifier")
    assert run.best.trial.head == "ridge"


@pytest.mark.parametrize(
    "options", [{"cv": 3}, {"budget": 5.0}, {"refit": True}, {"prepare": "l2"}, {"preset": "fewshot"}]
)
def test_what_takes_features_in_memory_is_refused(options, hard, tmp_path):
    [name] = options
    with pytest.raises(UsageError, match=rf"more than the .* so they are streamed; that goes without `{name}"):
        run_on(hard, tmp_path / "run", "ridge", **options)


def test_nothing_is_left_on_the_disk(hard, tmp_path):
    cache = edited(hard, tmp_path / "photos.h5", lambda file: None)
    run_on(cache, tmp_path / "run", "ridge")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos.h5", "run"]


def test_rows_that_are_not_finite_are_named_from_any_block(hard, tmp_path):
    bad = hard.usable("train")[40]
    cache = edited(
        hard,
        tmp_path / "nan.h5",
        lambda file: with_rows(file, hard, lambda row, values: values * (np.nan if row == bad else 1)),
    )
    with pytest.raises(ShapeMismatch, match=rf"not finite, in 1 row such as {bad.path}"):
        run_on(cache, tmp_path / "run", "ridge")


def test_a_quarter_of_the_memory_is_enough_for_small_caches(hard, tmp_path):
    assert physical_memory() > 2**28
    run = run_on(hard, tmp_path / "run", "svm", memory=None)
    assert {trial.status for trial in run.trials} == {"ok"}


@pytest.mark.parametrize("text", ["", "4", "4X", "-1G", "G"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="`memory` takes a size such as 500M or 4G"):
        parse_bytes(text)
