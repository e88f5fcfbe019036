"""Two trials on the same images."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from featcache.errors import NotARun, UsageError
from featcache.sweeps import Run, compare, sweep
from featcache.sweeps.run_paths import predictions_file

from .conftest import TAP, edited, rewrite


@pytest.fixture(scope="module")
def run(hard, tmp_path_factory):
    """Return a run by folds. Do not change it."""
    heads = "ridge,knn,svm"
    return sweep(hard, heads, taps=[TAP], cv=3, out=tmp_path_factory.mktemp("compared") / "run")


def said(run, number):
    with np.load(predictions_file(run.path, number)) as file:
        return file["predicted"]


def test_the_difference_is_that_of_the_scores_and_has_the_images_that_only_one_got_right(run, hard):
    a, b = run.ranked[0].trial, run.ranked[-1].trial
    found = compare(run[a], run[b])
    _, y = hard.arrays("train", TAP)
    right = [said(run, number) == y for number in (a, b)]
    assert found.scores == (run[a].trial.score, run[b].trial.score) == (right[0].mean(), right[1].mean())
    assert found.difference == pytest.approx(right[0].mean() - right[1].mean())
    only = ((right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum())
    assert (found.only_a, found.only_b, found.images) == (*only, len(y))
    assert found.p_value == binomtest(int(only[0]), int(sum(only))).pvalue
    assert found.interval[0] < found.difference < found.interval[1]


def test_the_interval_is_that_of_images_drawn_in_pairs(run, hard):
    a, b = run.ranked[0].trial, run.ranked[-1].trial
    _, y = hard.arrays("train", TAP)
    first, second = said(run, a), said(run, b)
    rng = np.random.default_rng(5)
    drawn = [rng.integers(0, len(y), len(y)) for _ in range(400)]
    apart = [
        f1_score(y[rows], first[rows], average="macro") - f1_score(y[rows], second[rows], average="macro")
        for rows in drawn
    ]
    found = compare(run[a], run[b], "macro_f1")
    assert found.interval == pytest.approx(tuple(np.quantile(apart, [0.025, 0.975])), abs=0.03)


@pytest.mark.parametrize("other", [1, "best"])
def test_a_trial_and_itself_are_not_compared(other, run):
    first = run[1] if other == 1 else run[run.best.trial.trial]
    with pytest.raises(UsageError, match=r"Both are .*@\d+\. Name another trial: featcache show"):
        compare(first, run[other])


def test_a_trial_and_its_copy_are_tied(run, tmp_path):
    found = compare(run[1], Run.open(shutil.copytree(run.path, tmp_path / "copy"))[1])
    assert (found.difference, found.interval, found.p_value) == (0.0, (0.0, 0.0), 1.0)
    assert found.verdict.startswith("tie: the interval of the difference holds 0")


@pytest.mark.parametrize(("metric", "sign"), [("accuracy", 1), ("log_loss", -1)])
def test_swapping_two_trials_turns_the_sign_and_less_loss_is_better(metric, sign, run):
    one, other = compare(run[2], run[5], metric), compare(run[5], run[2], metric)
    assert one.difference == pytest.approx(-other.difference)
    assert one.difference == pytest.approx(sign * (one.scores[0] - one.scores[1]))
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]), abs=1e-12)


def test_the_better_one_is_named(hard, tmp_path):
    grid = {"ridge": {"alpha": [1e9, 1.0]}}
    run = sweep(hard, "ridge", taps=[TAP], cv=3, out=tmp_path / "run", grid=grid, metric="log_loss")
    found = compare(run[1], run[2])
    assert found.verdict == f"{run.path}@2 is better"
    assert compare(run[2], run[1]).verdict == f"{run.path}@2 is better"


def test_trials_of_two_runs_with_other_folds_are_compared_image_by_image(run, hard, tmp_path):
    other = sweep(hard, "ridge", taps=[TAP], cv=4, seed=9, out=tmp_path / "run")
    found = compare(run[2], other[2])
    assert found.scores == (run[2].trial.score, other[2].trial.score)


def test_other_images_cannot_be_compared(run, hard, tmp_path):
    other = sweep(hard, "ridge", taps=[TAP], out=tmp_path / "run")
    ways = r"\(3-fold cross-validation within train, the validation split\)"
    with pytest.raises(UsageError, match=rf"chosen on other images or labels {ways}"):
        compare(run[1], other[1])


def test_other_labels_cannot_be_compared(run, hard, tmp_path):
    after = dict(zip(hard.classes, (*hard.classes[1:], hard.classes[0]), strict=True))

    def turned(file):
        rewrite(file["images"], "label", np.array([after[one.decode()].encode() for one in file["images/label"][()]]))

    cache = edited(hard, tmp_path / "turned.h5", turned)
    other = sweep(cache, "ridge", taps=[TAP], cv=3, out=tmp_path / "run")
    with pytest.raises(UsageError, match="chosen on other images or labels"):
        compare(run[1], other[1])


def test_a_trial_without_a_score_cannot_be_compared(run):
    failed = replace(run[1], trial=replace(run[1].trial, status="ValueError: no"))
    with pytest.raises(UsageError, match=r"@1 has no score: ValueError: no"):
        compare(failed, run[2])


def test_what_was_fitted_on_the_images_that_chose_cannot_be_compared(hard, tmp_path):
    run = sweep(hard, "ridge", taps=[TAP], out=tmp_path / "run", refit=True)
    with pytest.raises(UsageError, match=r"refit was fitted on the images that chose"):
        compare(run["refit"], run[1])


def renamed(data):
    """Return a zip with one bit flipped in the last name of its table, which no checksum covers."""
    at = data.rindex(b"loss.npy")
    return data[:at] + b"m" + data[at + 1 :]


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"", lambda data: data[:-30], renamed])
def test_damaged_predictions_are_refused(damage, run, tmp_path):
    copied = Run.open(shutil.copytree(run.path, tmp_path / "run"))
    path = predictions_file(copied.path, 1)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(NotARun, match=r"Cannot read the predictions .*1\.npz.*Sweep again"):
        compare(copied[1], copied[2])


def test_predictions_of_another_length_are_refused(run, tmp_path):
    copied = Run.open(shutil.copytree(run.path, tmp_path / "run"))
    three = np.zeros(3)
    np.savez(predictions_file(copied.path, 1), predicted=np.zeros(3, np.int32), loss=three, confidence=three)
    with pytest.raises(NotARun, match="does not fit the images"):
        compare(copied[1], copied[2])


def test_an_unknown_metric_is_refused(run):
    with pytest.raises(UsageError, match=r"`metric` takes accuracy, .*got 'acc'"):
        compare(run[1], run[2], "acc")


def test_numbers_that_are_missing_in_run_json_are_named(run, tmp_path):
    copied = shutil.copytree(run.path, tmp_path / "run")
    facts = json.loads((copied / "run.json").read_text()) | {"format": 2}  # which has no digest
    del facts["digest"]
    facts["trials"][0]["score"] = None
    (copied / "run.json").write_text(json.dumps(facts))
    with pytest.raises(NotARun, match="is damaged or of another version"):
        Run.open(copied)
