"""Heads that are fitted on several views of each training image, and chosen on images as they are."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from tiny import write_images

from featcache.cache.reader import Cache
from featcache.errors import UnknownTap, UsageError
from featcache.extraction import extract
from featcache.extras.report.commands import commands
from featcache.extras.report.table import trials_table
from featcache.heads.absorb import decision_logits
from featcache.heads.estimators import make_pipeline
from featcache.models import Probe
from featcache.models.reference import reference_of_head
from featcache.sweeps import Run, Settings, sweep
from featcache.sweeps.choosing import images_of
from featcache.sweeps.inputs import few_of
from featcache.sweeps.tap_data import make_tap_data

TAP, SMALL = "pixels:size=8/top", "pixels:size=2/top"
GRIDS = {"logreg": {"C": [1e-3]}, "ridge": {"alpha": [100.0]}, "knn": {"n_neighbors": [3]}}
VIEWS = 3


@pytest.fixture(scope="module")
def viewed(tmp_path_factory):
    """Return a cache of two taps in three views: the images, their mirror images, and a crop. Do not change it."""
    folder = tmp_path_factory.mktemp("viewed")
    write_images(folder / "photos")
    return extract(folder / "photos", ["pixels:size=8", "pixels:size=2"], views=str(VIEWS), out=folder / "c.h5")


def run_on(cache, out, heads="logreg", **options):
    return sweep(
        cache, heads, **{"taps": [TAP], "out": out, "grid": {heads: GRIDS[heads]}, "train_views": True, **options}
    )


def features(cache, rows, tap=TAP):
    """Return (V, N, D): the features of images in every view."""
    return np.stack([cache.features(rows, name) for name in cache.views(tap)])


def fit(cache, rows, head="logreg", tap=TAP):
    """Return a pipeline that is fitted by scikit-learn on all views."""
    stacked = features(cache, rows, tap)
    [(name, [value])] = GRIDS[head].items()
    return make_pipeline(head, {name: value}).fit(np.concatenate(stacked), np.tile(cache.labels(rows), len(stacked)))


def test_a_head_is_fitted_on_all_views_and_judged_on_the_images_as_they_are(viewed, tmp_path):
    run = run_on(viewed, tmp_path / "run")
    train, val = viewed.usable("train"), viewed.usable("val")
    assert (run.num_train, run.num_select) == (len(train), len(val))
    expected = fit(viewed, train)
    assert expected[0].n_samples_seen_ == VIEWS * len(train)
    np.testing.assert_allclose(run.best.estimator[0].mean_, expected[0].mean_, rtol=1e-6)
    np.testing.assert_allclose(run.best.estimator[-1].coef_, expected[-1].coef_, atol=1e-4)
    logits = decision_logits(expected, viewed.features(val, TAP))
    np.testing.assert_allclose(run.best.logits(val) * run.best.trial.temperature, logits, atol=1e-3)
    assert run.best.trial.score == (logits.argmax(axis=1) == viewed.labels(val)).mean()


def test_all_views_of_an_image_are_held_out_with_it(viewed, tmp_path):
    train = viewed.usable("train")
    settings = Settings(str(viewed.path), ("logreg",), (TAP,), cv=3, train_views=True)
    with_views = make_tap_data(viewed, TAP, *images_of(viewed, settings), settings)
    plain = make_tap_data(viewed, TAP, train, [], replace(settings, train_views=False))
    for folds in zip(with_views.folds, plain.folds, strict=True):
        for numbers in zip(*folds, strict=True):
            assert np.array_equal(*numbers)

    run = run_on(viewed, tmp_path / "run", cv=3)
    y, predicted = viewed.labels(train), np.full(len(train), -1)
    for fit_on, held_out in StratifiedKFold(3, shuffle=True, random_state=0).split(y, y):
        head = fit(viewed, [train[number] for number in fit_on])
        predicted[held_out] = head.predict(viewed.features([train[number] for number in held_out], TAP))
    with np.load(run.path / "predictions" / "1.npz") as stored:
        assert np.array_equal(stored["predicted"], predicted)
    np.testing.assert_allclose(run.best.estimator[-1].coef_, fit(viewed, train)[-1].coef_, atol=1e-4)


def test_joined_taps_are_joined_view_by_view(viewed, tmp_path):
    run = run_on(viewed, tmp_path / "run", taps=[f"{TAP}+{SMALL}"])
    train = viewed.usable("train")
    stacked = np.concatenate([features(viewed, train), features(viewed, train, SMALL)], axis=2)
    expected = make_pipeline("logreg", {"C": 1e-3}).fit(np.concatenate(stacked), np.tile(viewed.labels(train), VIEWS))
    np.testing.assert_allclose(run.best.estimator[-1].coef_, expected[-1].coef_, atol=1e-4)


def test_few_images_are_drawn_with_all_their_views(viewed, tmp_path):
    run = sweep(viewed, taps=[TAP], out=tmp_path / "run", preset="fewshot", train_views=True)
    train = viewed.usable("train")
    for trial in run.trials:
        rows = few_of(viewed.labels(train), *trial.few)
        assert run[trial.trial].estimator[0].n_samples_seen_ == VIEWS * len(rows)
    budgeted = run_on(viewed, tmp_path / "budget", "ridge", budget=60.0)
    assert budgeted.best.estimator[0].n_samples_seen_ == VIEWS * len(train)
    shots = run_on(viewed, tmp_path / "shots", "ridge", shots=2)
    assert (shots.num_train, shots.best.estimator[0].n_samples_seen_) == (6, VIEWS * 6)


def test_whatever_fits_a_head_again_takes_all_views(viewed, tmp_path, monkeypatch):
    run = run_on(viewed, tmp_path / "run", "knn", refit=True)
    train, both = run.num_train, run.num_train + run.num_select
    assert len(run.best.estimator[-1]._fit_X) == VIEWS * train  # not stored: fitted when it is wanted
    assert len(run["refit"].estimator[-1]._fit_X) == VIEWS * both
    stored = run_on(viewed, tmp_path / "stored", refit=True)
    assert stored["refit"].estimator[0].n_samples_seen_ == VIEWS * both

    fitted = []
    fit_logreg = LogisticRegression.fit
    monkeypatch.setattr(LogisticRegression, "fit", lambda *args: fitted.append(len(args[1])) or fit_logreg(*args))
    reference = reference_of_head(Probe.open(stored.best))
    assert sum(fitted) == 4 * VIEWS * train  # five folds, each of which leaves a fifth out
    assert len(reference.seen) == both


def test_the_logits_of_the_model_are_those_of_the_head(viewed, tmp_path):
    run = run_on(viewed, tmp_path / "run")
    certificate = run.best.to_keras().certificate
    assert certificate.passed
    assert (certificate.agreement, certificate.images) == (1.0, run.num_train + run.num_select)


def test_a_run_says_so_and_can_be_repeated(viewed, tmp_path):
    run = run_on(viewed, tmp_path / "run")
    assert Run.open(run.path) == run
    assert json.loads((run.path / "run.json").read_text())["settings"]["train_views"] is True
    assert "fitted on all cached views of each training image" in trials_table(run)
    extraction, sweep_again = commands(run, viewed)
    assert extraction.endswith("-b pixels --size 8 --tap top --views identity,crop-1,hflip")
    assert "--config" in sweep_again

    plain = run_on(viewed, tmp_path / "plain", train_views=False)
    assert "train_views" not in (plain.path / "run.json").read_text()  # which earlier versions would refuse
    assert "views" not in trials_table(plain)
    assert "--views" not in "".join(commands(plain, viewed))


def test_another_set_of_views_is_another_sweep(viewed, tmp_path):
    cache = Cache.open(viewed.path)
    run = run_on(cache, tmp_path / "run")
    less = replace(cache, taps={name: tap for name, tap in cache.taps.items() if tap.view != "crop-1"})
    with pytest.raises(UsageError, match=r"holds a run already, with other features"):
        run_on(less, run.path)


@pytest.mark.parametrize("tap", [TAP, f"{TAP}+{SMALL}"])
def test_views_that_are_cached_later_do_not_change_a_run(tap, photos, tmp_path):
    cache = extract(photos, ["pixels:size=8", "pixels:size=2"], views="flip", out=tmp_path / "c.h5")
    run = run_on(cache, tmp_path / "run", "knn", taps=[tap], refit=True)  # knn is not stored: it is fitted again
    val = run.rows(cache, "val")
    logits = [run[name].logits(val) for name in ("best", "refit")]
    X, y = Probe.open(run.best).arrays_to_fit(run.rows(cache, "train"))

    extract(photos, "pixels:size=8", views=str(VIEWS), out=cache.path)  # of joined taps, only one gets a third view
    run = Run.open(run.path)
    assert len(run.best.estimator[-1]._fit_X) == 2 * run.num_train
    np.testing.assert_array_equal([run[name].logits(val) for name in ("best", "refit")], logits)
    later_X, later_y = Probe.open(run.best).arrays_to_fit(run.rows(cache, "train"))
    assert np.array_equal(later_X, X)
    assert np.array_equal(later_y, y)


@pytest.mark.parametrize(
    ("views", "options", "message"),
    [
        ("1", {}, r"needs several views; .*c\.h5 has only one view of tap .* repeat .* with `views='flip'`$"),
        ("flip", {"cv": "loo"}, r"cannot be combined with `cv='loo'`, because other views .* Use `cv=5`$"),
        ("flip", {"memory": 100.0}, r"they are streamed; that goes without `train_views`\. Leave that out"),
        ("flip", {"taps": [f"{TAP}+{SMALL}"]}, r"^Not all of the joined taps .* have the view hflip, which"),
    ],
)
def test_what_cannot_be_fitted_on_several_views_is_refused(views, options, message, photos, tmp_path):
    extract(photos, "pixels:size=8", views=views, out=tmp_path / "c.h5")
    cache = extract(photos, "pixels:size=2", out=tmp_path / "c.h5")
    with pytest.raises(UsageError, match=message):
        run_on(cache, tmp_path / "run", "ridge", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("head", "stops", "turned_off"),
    [
        ("mlp:4", {"patience": [3]}, "patience=none"),
        ("softmax", {"patience": [None, 2]}, "patience=none"),
        ("mlpclassifier", {"early_stopping": [True]}, "early_stopping=false"),
        ("boosting", {}, "early_stopping=false"),  # by default, with more than 10,000 rows
        ("sklearn.linear_model:SGDClassifier", {"early_stopping": [True]}, "early_stopping=false"),
    ],
)
def test_heads_that_hold_out_rows_to_stop_early_are_refused(head, stops, turned_off, viewed, tmp_path):
    message = rf"^`train_views` cannot be combined with .* '{head}', because .* `grid` {head}\.{turned_off}$"
    with pytest.raises(UsageError, match=message):
        sweep(viewed, head, taps=[TAP], out=tmp_path / "run", grid={head: stops}, train_views=True)
    assert not (tmp_path / "run").exists()


def test_heads_whose_early_stopping_is_off_are_fitted_on_views(viewed, tmp_path):
    grid = {"mlp:4": {"patience": [None], "epochs": [1]}, "mlpclassifier": {"early_stopping": [False]}}
    run = sweep(viewed, list(grid), taps=[TAP], out=tmp_path / "run", grid=grid, train_views=True)
    assert [trial.status for trial in run.trials] == ["ok", "ok"]


def test_views_that_new_images_lack_are_named(photos, tmp_path):
    extract(photos, "pixels:size=8", views="flip", out=tmp_path / "c.h5")
    write_images(photos, first=12, per_class=8)
    cache = extract(photos, "pixels:size=8", out=tmp_path / "c.h5")
    with pytest.raises(UnknownTap, match=r"'pixels:size=8/top@hflip' has no features of .* with `views='hflip'`$"):
        run_on(cache, tmp_path / "run")
