"""Classes of a few images: they bar no others, train in all folds, and are named where no score is about them."""

import json
from collections import Counter

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featcache.errors import TooFewClasses
from featcache.extraction import extract
from featcache.extras.report.final import open_test
from featcache.extras.report.html import write_report
from featcache.extras.report.table import text_report
from featcache.images.manifest import scan
from featcache.sweeps import Run, compare, sweep
from featcache.sweeps.choosing import images_of
from featcache.sweeps.comparing import predictions_on_selection
from featcache.sweeps.run import Settings
from featcache.sweeps.tap_data import make_tap_data

PIXELS = "pixels:size=8"
TAP = "pixels:size=8/top"
GRID = {"ridge": {"alpha": [1.0]}}


@pytest.fixture
def cached(tmp_path):
    """Return a function that makes a cache of noise with so many images of each class in each split."""

    def make(groups=None, **counts):
        labels = [name for name, of_splits in counts.items() for number in of_splits for _ in range(number)]
        splits = []
        for of_splits in counts.values():
            for split, number in zip(("train", "val", "test"), of_splits, strict=False):
                splits += [split] * number
        pixels = np.random.default_rng(0).integers(0, 255, (len(labels), 8, 8, 3), np.uint8)
        names = sorted(counts)
        for image, label in zip(pixels, labels, strict=True):
            image[names.index(label)] //= 2  # hard to tell apart
        images = scan(pixels, labels=labels, splits=splits, groups=groups and groups(labels), split="100/0/0")
        return extract(images, PIXELS, out=tmp_path / "c.h5")

    return make


def test_classes_of_one_image_train_in_all_folds_and_are_not_judged(cached, tmp_path):
    cache = cached(a=(9,), b=(8,), two=(2,), x=(1,), y=(1,))
    settings = Settings(str(cache.path), ("ridge",), (TAP,), cv=4)
    train, _ = images_of(cache, settings)
    data = make_tap_data(cache, TAP, train, [], settings)
    labels = np.array([row.label for row in train])
    for fit_on, choose_on in data.folds:
        assert set(labels[fit_on]) == {"a", "b", "two", "x", "y"}
        assert not set(fit_on) & set(choose_on)
        assert len(fit_on) + len(choose_on) == len(train)
    judged = np.concatenate([choose_on for _, choose_on in data.folds])
    assert Counter(labels[judged]) == {"a": 9, "b": 8, "two": 2}

    run = sweep(cache, "ridge", cv=4, grid=GRID, metric="balanced_accuracy", out=tmp_path / "run")
    assert (run.num_train, run.num_select, run.unjudged) == (21, 19, ("x", "y"))
    assert Run.open(run.path).unjudged == ("x", "y")
    predicted = np.full(len(train), -1)
    for fit_on, choose_on in data.folds:
        alone = make_pipeline(StandardScaler(), RidgeClassifier()).fit(data.X[fit_on], data.y[fit_on])
        predicted[choose_on] = alone.predict(data.X[choose_on])
    recalls = [(predicted == data.y)[labels == name].mean() for name in ("a", "b", "two")]
    assert run.best.trial.score == pytest.approx(np.mean(recalls))
    rows, said = predictions_on_selection(run.best)
    assert [row.path for row in rows] == [row.path for row in train if row.label not in "xy"]
    assert (said.predicted == predicted[predicted >= 0]).all()


def test_leaving_one_out_judges_all_that_have_company(cached, tmp_path):
    cache = cached(a=(6,), b=(5,), two=(2,), x=(1,))
    run = sweep(cache, "ridge,knn", cv="loo", grid={**GRID, "knn": {"n_neighbors": [1]}}, out=tmp_path / "run")
    assert (run.num_select, run.unjudged) == (13, ("x",))
    X, y = cache.arrays("train", TAP)
    scaled = StandardScaler().fit_transform(X)
    judged = np.flatnonzero(y != y.max())
    right = 0
    for at in judged:
        others = np.arange(len(y)) != at
        right += RidgeClassifier().fit(scaled[others], y[others]).predict(scaled[[at]])[0] == y[at]
    ridge = next(trial for trial in run.trials if trial.head == "ridge")
    assert ridge.score == pytest.approx(right / 13)
    assert compare(run[1], run[2]).images == 13


def test_a_group_that_has_a_whole_class_stays_in_training(cached, tmp_path):
    cache = cached(
        a=(9,),
        b=(9,),
        x=(3,),
        groups=lambda labels: [f"{at // 3 if label != 'x' else 'x'}" for at, label in enumerate(labels)],
    )
    run = sweep(cache, "ridge", cv=3, grid=GRID, out=tmp_path / "run")
    assert (run.num_select, run.unjudged) == (18, ("x",))


@pytest.mark.parametrize("cv", [2, "loo"])
def test_folds_take_two_classes_that_can_be_judged(cached, tmp_path, cv):
    cache = cached(a=(9,), x=(1,))
    with pytest.raises(
        TooFewClasses, match=rf"`cv={cv!r}` needs two classes with training images that can be left out"
    ):
        sweep(cache, "ridge", cv=cv, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_classes_without_validation_or_test_images_are_named_in_reports(cached, tmp_path):
    cache = cached(a=(4, 3, 2), b=(4, 3, 2), x=(2, 0, 1), y=(2, 1, 0))
    run = sweep(cache, "ridge", grid=GRID, metric="balanced_accuracy", out=tmp_path / "run")
    assert run.unjudged == ("x",)
    said = "1 of 4 classes have no validation image and are not judged: x. Scores are about the other 3."
    assert said in " ".join(text_report(run).split())
    write_report(run, tmp_path / "r.html")
    assert said in (tmp_path / "r.html").read_text()
    tested = open_test(run)
    opened, scores = tested.run, tested.scores
    said = "1 of 4 classes have no test image and are not judged: y. Scores are about the other 3."
    assert said in " ".join(text_report(opened, scores).split())


def test_runs_in_which_all_classes_are_judged_are_written_as_before(cached, tmp_path):
    run = sweep(cached(a=(4, 2), b=(4, 2)), "ridge", grid=GRID, out=tmp_path / "run")
    assert "unjudged" not in json.loads((run.path / "run.json").read_text())
    assert "not judged" not in text_report(run)
