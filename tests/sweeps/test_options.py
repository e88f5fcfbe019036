"""Chains of steps, joined taps, leave-one-out, small training sets, protocols, refitting."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline as piped
from sklearn.preprocessing import Normalizer, StandardScaler

from featcache.errors import ShapeMismatch, UnknownHead, UsageError
from featcache.heads import steps
from featcache.heads.estimators import FAMILIES, Setting, make_pipeline
from featcache.sweeps import Run, Settings, presets, sweep, tap_data
from featcache.sweeps.candidates import Candidate
from featcache.sweeps.fitting import Outcome
from featcache.sweeps.inputs import features_of, few_of
from featcache.sweeps.metrics import METRICS, better, score
from featcache.sweeps.scoring import scored_trial

from .conftest import TAP, edited, with_rows

PIXELS = "pixels:size=8/top"


def run_on(cache, tmp_path, heads="ridge", name="run", **options):
    return sweep(cache, heads, out=tmp_path / name, **{"taps": [TAP], **options})


def by_hand(estimator, cache, cv=3):
    X, y = cache.arrays("train", TAP)
    return (cross_val_predict(estimator, X, y, cv=StratifiedKFold(cv, shuffle=True, random_state=0)) == y).mean()


def test_every_chain_is_tried_and_is_fitted_within_the_folds(hard, tmp_path):
    run = run_on(hard, tmp_path, "logreg", prepare="standardise,l2+standardise", cv=3, grid={"logreg": {"C": [0.1]}})
    first, second = run.trials
    assert [first.prepare, second.prepare] == ["standardise", "l2+standardise"]
    plain = LogisticRegression(C=0.1, tol=1e-6, max_iter=1000)
    assert first.score == by_hand(piped(StandardScaler(), plain), hard)
    assert second.score == by_hand(piped(Normalizer(), StandardScaler(), plain), hard)
    assert [first.handoff, second.handoff] == [True, True]
    for trial in run.trials:
        assert [name for name, _ in run[trial.trial].estimator.steps[:-1]] == trial.prepare.split("+")


def test_taps_are_joined_side_by_side(toy, tmp_path):
    run = run_on(toy, tmp_path, "ridge", taps=[f"{TAP}+{PIXELS}", PIXELS], grid={"ridge": {"alpha": [10.0]}})
    joined, alone = run.trials
    assert (joined.tap, joined.width, joined.handoff) == (f"{TAP}+{PIXELS}", 256 + 192, False)
    assert (alone.width, alone.handoff) == (192, True)
    assert set(run.fingerprints) == {TAP, PIXELS}
    X, y = (np.hstack([toy.arrays("train", tap)[0] for tap in (TAP, PIXELS)]), toy.arrays("train", TAP)[1])
    same = make_pipeline("ridge", {"alpha": 10.0}).fit(X, y)
    rows = run.rows(toy, "val")
    others = features_of(toy, rows, joined.tap)
    assert (run[1].estimator.predict(others) == same.predict(others)).all()
    assert joined.score == (same.predict(others) == toy.labels(rows)).mean()
    assert Run.open(run.path).cache().path == toy.path


def test_leaving_one_out_scores_ridge_on_images_it_was_not_fitted_on(hard, tmp_path):
    run = run_on(hard, tmp_path, "ridge,knn", cv="loo")
    assert (run.settings.cv, run.num_select) == ("loo", run.num_train)
    X, y = hard.arrays("train", TAP)
    scaled = StandardScaler().fit_transform(X)
    for trial in (one for one in run.trials if one.head == "ridge"):
        hits = 0
        for row in range(len(y)):
            rest = np.arange(len(y)) != row
            alone = RidgeClassifier(**trial.params).fit(scaled[rest], y[rest])
            hits += alone.predict(scaled[row : row + 1])[0] == y[row]
        assert trial.score == pytest.approx(hits / len(y))
        whole = make_pipeline("ridge", trial.params).fit(X, y)
        assert (run[trial.trial].estimator.predict(X) == whole.predict(X)).all()


def test_leaving_one_out_is_refused_for_other_heads_before_anything_is_read(hard, tmp_path):
    with pytest.raises(UsageError, match="`cv='loo'` is for ridge, knn; with 'svm' it takes too long"):
        run_on(hard, tmp_path, "ridge,svm", cv="loo")


def test_every_metric_is_noted_and_the_one_asked_for_chooses(hard, tmp_path):
    for metric in METRICS:
        run = run_on(hard, tmp_path, "logreg,knn", metric, metric=metric, cv=3)
        for trial in run.trials:
            assert set(trial.scores) == set(METRICS)
            assert trial.score == trial.scores[metric]
            assert trial.interval[0] <= trial.score <= trial.interval[1]
            assert len(trial.fold_scores) == 3
            assert trial.std == pytest.approx(np.std(trial.fold_scores, ddof=1))
        values = [trial.score for trial in run.ranked]
        assert values == sorted(values, reverse=metric not in ("log_loss", "ece"))


def test_without_folds_there_is_no_deviation(hard, tmp_path):
    assert {trial.std for trial in run_on(hard, tmp_path).trials} == {None}


def test_the_fold_scores_of_accuracy_are_those_of_the_folds(hard, tmp_path):
    [trial] = run_on(hard, tmp_path, "ridge", cv=3, grid={"ridge": {"alpha": [10.0]}}).trials
    X, y = hard.arrays("train", TAP)
    for (fit_on, choose_on), found in zip(
        StratifiedKFold(3, shuffle=True, random_state=0).split(y, y), trial.fold_scores, strict=True
    ):
        alone = make_pipeline("ridge", {"alpha": 10.0}).fit(X[fit_on], y[fit_on])
        assert found == alone.score(X[choose_on], y[choose_on])


def test_the_winner_is_fitted_again_on_train_and_val(hard, tmp_path):
    run = run_on(hard, tmp_path, refit=True)
    best = run.best.trial
    assert run.refitted == best.trial
    rows = [*run.rows(hard, "train"), *run.rows(hard, "val")]
    same = make_pipeline(best.head, best.params).fit(hard.features(rows, TAP), hard.labels(rows))
    found = Run.open(run.path)["refit"]
    assert np.allclose(found.estimator[-1].coef_, same[-1].coef_)
    assert not np.allclose(found.estimator[-1].coef_, run.best.estimator[-1].coef_)


def test_a_winner_that_is_not_stored_is_fitted_again_on_both(hard, tmp_path):
    run = run_on(hard, tmp_path, "knn", refit=True)
    assert len(run["refit"].estimator[-1]._fit_X) == run.num_train + run.num_select


@pytest.fixture
def drawn(hard, tmp_path):
    return run_on(hard, tmp_path, None, preset="fewshot")


def test_few_shots_are_drawn_from_train_and_judged_on_all_of_val(drawn, hard):
    assert [trial.few for trial in drawn.trials] == [(n, seed) for n in (1, 2, 5, 10) for seed in (0, 1, 2)]
    X, y = hard.arrays("train", TAP)
    others, truth = hard.arrays("val", TAP)
    for trial in drawn.trials:
        rows = few_of(y, *trial.few)
        assert np.bincount(y[rows]).tolist() == [min(trial.few[0], n) for n in np.bincount(y)]
        alone = make_pipeline("ridge", {"alpha": 1024.0}).fit(X[rows], y[rows])
        assert trial.score == alone.score(others, truth)
    assert Run.open(drawn.path) == drawn
    with pytest.raises(UnknownHead, match="has no 'refit', since its preset draws a few images"):
        drawn["refit"]


def test_a_head_of_few_images_that_is_not_stored_is_fitted_on_them(drawn, hard):
    loose = replace(drawn[1], trial=replace(drawn[1].trial, size=0))
    X, _ = hard.arrays("val", TAP)
    assert (loose.estimator.predict(X) == drawn[1].estimator.predict(X)).all()


def test_draws_of_different_seeds_differ_and_more_shots_keep_those_of_fewer(hard):
    _, y = hard.arrays("train", TAP)
    assert set(few_of(y, 2, 0)) < set(few_of(y, 5, 0))
    assert set(few_of(y, 2, 0)) != set(few_of(y, 2, 1))


def test_a_preset_that_draws_images_takes_no_other_choice(hard, tmp_path):
    with pytest.raises(UsageError, match="`preset='fewshot'` draws its own images: leave out `cv`"):
        run_on(hard, tmp_path, None, preset="fewshot", cv=3)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_runs_and_says_where_it_is_from(name, toy, tmp_path):
    run = sweep(toy, preset=name, out=tmp_path / "run", taps=None)
    assert all(trial.status == "ok" for trial in run.trials)
    assert run.settings.preset == name
    assert len(presets.PRESETS[name].source) > 60
    assert (run.refitted is not None) == presets.PRESETS[name].refit


@pytest.mark.parametrize(("name", "count", "first", "last"), [("kornblith", 45, 1e-6, 1e5), ("clip", 97, 1e-6, 1e6)])
def test_the_strengths_are_those_of_the_papers(name, count, first, last):
    strengths = presets.PRESETS[name].grid["logreg"]["C"]
    assert (len(strengths), strengths[0], strengths[-1]) == (count, first, last)
    np.testing.assert_allclose(np.diff(np.log(strengths)), np.log(last / first) / (count - 1), rtol=1e-6)


def test_flags_win_over_a_preset(hard, tmp_path):
    run = run_on(hard, tmp_path, "logreg", preset="kornblith", prepare="standardise", refit=False)
    assert (len(run.trials), run.settings.prepare, run.refitted) == (45, ("standardise",), None)


@pytest.mark.parametrize("heads", ["ridge", ["ridge", "logreg"], "logreg, ridge"])
def test_heads_that_a_preset_is_not_about_are_refused(heads, hard, tmp_path):
    with pytest.raises(
        UsageError, match="`preset='kornblith'` is a protocol of logreg; `heads='ridge'` contradicts it"
    ):
        run_on(hard, tmp_path, heads, preset="kornblith")


def test_the_last_taps_are_joined_where_a_protocol_does():
    names = ["a", "b", "c", "d", "e"]
    assert presets.taps_of(presets.PRESETS["dinov2"], names) == ["e", "b+c+d+e"]
    assert presets.taps_of(presets.PRESETS["dinov2"], names[:1]) == ["a"]
    assert presets.taps_of(presets.PRESETS["clip"], names) == names


def test_features_that_are_all_the_same_are_refused(hard, tmp_path):
    cache = edited(hard, tmp_path / "same.h5", lambda file: with_rows(file, hard, lambda row, values: values * 0 + 1))
    with pytest.raises(ShapeMismatch, match=rf"Tap '{TAP}' has the same features for all \d+ images"):
        run_on(cache, tmp_path)


@pytest.mark.slow
def test_a_few_constant_features_do_no_harm(hard, tmp_path):
    def constant(row, values):
        return np.concatenate([values[:6], [3.0] * 6]).astype(np.float32)

    cache = edited(hard, tmp_path / "some.h5", lambda file: with_rows(file, hard, constant))
    heads = [name for name in FAMILIES if name not in ("softmax", "mlp", "boosting")]
    run = run_on(cache, tmp_path, heads, cv=3)
    assert {trial.status for trial in run.trials} == {"ok"}


@pytest.mark.parametrize("chain", ["standardise", "l2", "l2+standardise+pca:4"])
def test_what_is_prepared_in_place_is_the_same(chain, hard, tmp_path, monkeypatch):
    # Only the last chain may overwrite the features.
    plain = run_on(hard, tmp_path, "ridge,logreg", "plain", prepare=f"{chain},none")
    monkeypatch.setattr(steps, "BLOCK", 7)
    blocks = run_on(hard, tmp_path, "ridge,logreg", "blocks", prepare=chain)
    for one, other in zip(plain.trials, blocks.trials, strict=False):
        assert one.prepare == other.prepare
        assert one.score == other.score
        assert one.log_loss == pytest.approx(other.log_loss, rel=1e-4)


def test_features_that_are_half_standardised_are_not_standardised_again(hard, tmp_path, monkeypatch):
    transform = StandardScaler.transform
    calls = []

    def short_of_memory_once(self, X):
        calls.append(len(X))
        if len(calls) == 2:
            raise MemoryError("no room")
        return transform(self, X)

    monkeypatch.setattr(steps, "BLOCK", 7)
    monkeypatch.setattr(StandardScaler, "transform", short_of_memory_once)
    run = run_on(hard, tmp_path, "ridge,knn")
    assert {trial.status for trial in run.trials} == {"MemoryError: no room"}


def test_folds_that_do_not_fit_into_memory_are_prepared_again(hard, tmp_path, monkeypatch):
    plain = run_on(hard, tmp_path, "ridge,knn", "plain", cv=3)
    monkeypatch.setattr(tap_data, "KEEP_BYTES", 0)
    again = run_on(hard, tmp_path, "ridge,knn", "again", cv=3)
    assert [one.score for one in plain.trials] == [one.score for one in again.trials]


def test_scores_that_are_not_numbers_come_last():
    assert better("log_loss", 0.1) > better("log_loss", 0.2) > better("log_loss", np.nan)
    assert better("accuracy", 0.2) > better("accuracy", 0.1)
    assert np.isnan(score(np.array([0, 1]), np.array([0, 1]), "ece").value)


def test_the_time_of_a_trial_is_that_of_one_fit():
    data = tap_data.TapData(TAP, np.zeros((6, 2), np.float32), np.array([0, 1] * 3), (), 6)
    candidate = Candidate(1, TAP, "standardise", None, Setting("ridge", {}, 0))
    failed = Outcome(seconds=6.0, rounds=4, reason="ValueError: no")
    assert scored_trial(data, candidate, failed, Settings("c.h5", ("ridge",), (TAP,))).fit_s == 1.5


@pytest.mark.parametrize("cv", [None, 3])
def test_the_probabilities_of_every_head_are_calibrated(hard, tmp_path, cv):
    """What some heads call probabilities is 0 or 1 for nearly every image, which says less than guessing."""
    wide = edited(hard, tmp_path / "wide.h5", lambda file: with_rows(file, hard, _with_noise))
    run = run_on(wide, tmp_path, "centroid,gnb,ridge,lda,logreg,svm,softmax,knn,rbf,mlp:8", cv=cv)
    for trial in run.trials:
        assert trial.temperature != 1, trial
        assert trial.log_loss < np.log(3) + 0.05, trial


def _with_noise(row, features):
    """Return the features beside 200 that say nothing: more than there are images, so that every head overfits."""
    rng = np.random.default_rng(int(row.digest[:8], 16))
    return np.concatenate([features, rng.normal(0, 1, 200)]).astype(np.float32)
