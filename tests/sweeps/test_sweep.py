import shutil
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace

import h5py
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from tiny import write_images

from featcache.cache.exchange import export
from featcache.cache.reader import Cache
from featcache.errors import NotACache, ShapeMismatch, TooFewClasses, UnknownHead, UnknownTap, UsageError
from featcache.extraction import extract
from featcache.heads.estimators import FAMILIES
from featcache.heads.solvers.dense_keras import KerasHeadEngine
from featcache.sweeps import Run, selection, sweep
from featcache.sweeps.advising import advise

from .conftest import TAP, edited, rewrite, with_rows

PLAIN = {
    "ridge": lambda p: RidgeClassifier(**p),
    "logreg": lambda p: LogisticRegression(**p, solver="newton-cg", tol=1e-5, max_iter=1000),  # lbfgs ends further off
    "svm": lambda p: LinearSVC(**p, dual=False, max_iter=5000),
    "knn": lambda p: KNeighborsClassifier(**p, metric="cosine", algorithm="brute"),
}
QUICK = "ridge,logreg"


@pytest.mark.slow
def test_heads_on_threads_share_the_cores_with_no_library(hard, tmp_path):
    code = (
        "import sys, threadpoolctl, featcache as fc\n"
        "limits = set()\n"
        "def progress(tick):\n"
        "    if tick.done:\n"
        "        limits.update(library['num_threads'] for library in threadpoolctl.threadpool_info())\n"
        "fc.sweep(sys.argv[1], 'ridge', out=sys.argv[2], progress=progress)\n"
        "assert limits == {1}, limits\n"
    )
    command = [sys.executable, "-c", code, str(hard.path), str(tmp_path / "run")]
    subprocess.run(command, check=True, timeout=60)


def fingerprint(run):
    """Return the trials without what a clock decides."""
    return [replace(trial, fit_s=0.0) for trial in run.trials]


def run_on(cache, tmp_path, heads=QUICK, name="run", **options):
    return sweep(cache, heads, taps=[TAP], out=tmp_path / name, **options)


@pytest.fixture
def without_test(hard, tmp_path):
    """Return the hard cache with all of test poisoned: its features are NaN, its labels rotated."""

    def poison(file):
        with_rows(file, hard, lambda row, values: values * np.nan if row.split == "test" else values)
        of_split, labels = file["images/split"][()], file["images/label"][()]
        after = dict(zip(hard.classes, (*hard.classes[1:], hard.classes[0]), strict=True))
        rotated = [
            after[label.decode()].encode() if split == b"test" else label
            for split, label in zip(of_split, labels, strict=True)
        ]
        rewrite(file["images"], "label", np.array(rotated))

    return edited(hard, tmp_path / "poisoned.h5", poison)


@pytest.mark.parametrize("options", [{}, {"cv": 3}, {"shots": 4, "cv": 2}, {"metric": "macro_f1"}])
def test_selection_never_sees_test(options, hard, without_test, tmp_path):
    assert hard.splits["test"] > 5
    clean = run_on(hard, tmp_path, "ridge,svm,knn", "clean", **options)
    poisoned = run_on(without_test, tmp_path, "ridge,svm,knn", "poisoned", **options)
    for trial, twin in zip(fingerprint(clean), fingerprint(poisoned), strict=True):
        assert trial == twin
    assert clean.best.trial.trial == poisoned.best.trial.trial


def test_scores_are_those_of_plain_scikit_learn_on_val(hard, tmp_path):
    run = run_on(hard, tmp_path, "ridge,logreg,svm,knn")
    train, val = hard.arrays("train", TAP), hard.arrays("val", TAP)
    for trial in run.trials:
        alone = make_pipeline(StandardScaler(), PLAIN[trial.head](trial.params)).fit(*train)
        assert trial.score == alone.score(*val), trial
        assert (run[trial.trial].estimator.predict(val[0]) == alone.predict(val[0])).all(), trial
    assert len({trial.score for trial in run.trials}) > 2


def test_scores_are_those_of_plain_scikit_learn_by_cross_validation(hard, tmp_path):
    run = run_on(hard, tmp_path, "ridge,logreg,svm,knn", cv=4, seed=5)
    X, y = hard.arrays("train", TAP)
    folds = StratifiedKFold(4, shuffle=True, random_state=5)
    for trial in run.trials:
        alone = make_pipeline(StandardScaler(), PLAIN[trial.head](trial.params))
        assert trial.score == (cross_val_predict(alone, X, y, cv=folds) == y).mean(), trial
    assert run.num_select == run.num_train == len(y)


def test_the_scaler_never_sees_the_images_that_choose(hard, tmp_path):
    def shifted(file):
        with_rows(file, hard, lambda row, values: values + 1000 * (row.split == "val"))

    moved = edited(hard, tmp_path / "moved.h5", shifted)
    scalers = [run_on(cache, tmp_path, "ridge", cache.path.stem).best.estimator[0] for cache in (hard, moved)]
    assert (scalers[0].mean_ == scalers[1].mean_).all()


def test_folds_respect_groups(hard, tmp_path, monkeypatch):
    """Images come in bursts of one class, and a burst must not stand on both sides of a fold."""

    def into_bursts(file):
        labels = file["images/label"][()]
        rewrite(file["images"], "group", np.array([b"%s-%d" % (label, at // 4) for at, label in enumerate(labels)]))

    grouped = edited(hard, tmp_path / "grouped.h5", into_bursts)
    seen = []
    keep = selection.folds_of

    def noting(train, *arguments):
        folds = keep(train, *arguments)
        seen.append((train, folds))
        return folds

    monkeypatch.setattr(selection, "folds_of", noting)
    run_on(grouped, tmp_path, "ridge", cv=3)
    (train, folds), *others = seen  # those that say which images choose, and those of the tap
    for _, again in others:
        np.testing.assert_equal(again, folds)
    assert len(folds) == 3
    for fit_on, choose_on in folds:
        assert not {train[at].group for at in fit_on} & {train[at].group for at in choose_on}
    assert sorted(at for _, choose_on in folds for at in choose_on) == list(range(len(train)))


def test_ties_go_to_the_simpler_kind_and_there_to_the_lower_log_loss(toy_run):
    best = toy_run.best.trial
    tied = [trial for trial in toy_run.trials if trial.score == best.score]
    assert len({trial.head for trial in tied}) > 1
    ridges = [trial for trial in tied if trial.head == "ridge"]
    assert len(ridges) > 1
    assert best == min(ridges, key=lambda trial: trial.log_loss)


def test_one_seed_makes_two_runs_equal(hard, tmp_path):
    first, again = (run_on(hard, tmp_path, "svm,mlp:4", name, seed=3) for name in ("a", "b"))
    assert fingerprint(first) == fingerprint(again)
    X, _ = hard.arrays("val", TAP)
    for trial in first.trials:
        logits = [run[trial.trial].estimator.decision_function(X) for run in (first, again)]
        assert (logits[0] == logits[1]).all()


def test_features_that_are_not_those_that_were_written_are_not_swept(hard, tmp_path):
    path = tmp_path / "bad.h5"
    shutil.copy(hard.path, path)
    with h5py.File(path, "r+") as file:
        file["taps"][TAP]["features"][0, 0] += 1
    with pytest.raises(NotACache, match=r"bad.h5 is damaged: the rows of tap '/taps/glyphnet.* do not match"):
        sweep(path, "ridge", taps=[TAP], out=tmp_path / "run")
    with pytest.raises(NotACache, match=r"bad.h5 is damaged"):
        export(Cache.open(path), tmp_path / "out.npz", TAP)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["bad.h5"]


def test_the_number_of_jobs_changes_no_score(hard, tmp_path):
    first, again = (run_on(hard, tmp_path, "ridge,knn,logreg", str(jobs), jobs=jobs) for jobs in (1, 2))
    assert fingerprint(first) == fingerprint(again)


def test_a_classifier_that_raises_is_a_failed_trial_and_the_sweep_goes_on(hard, tmp_path, monkeypatch):
    def broken(params, class_weight, seed):
        raise ValueError("planted\nfault")

    monkeypatch.setitem(FAMILIES, "logreg", replace(FAMILIES["logreg"], make=broken))
    run = run_on(hard, tmp_path)
    failed = [trial for trial in run.trials if trial.status != "ok"]
    assert {trial.head for trial in failed} == {"logreg"}
    assert failed[0].status == "ValueError: planted fault"
    assert len(failed) == 6
    assert len(run.ranked) == 5
    assert run.best.trial.head == "ridge"


def test_a_run_in_which_everything_failed_says_why(hard, tmp_path, monkeypatch):
    def broken(params, class_weight, seed):
        raise ArithmeticError("planted")

    monkeypatch.setitem(FAMILIES, "ridge", replace(FAMILIES["ridge"], make=broken))
    run = run_on(hard, tmp_path, "ridge")
    with pytest.raises(UnknownHead, match="has no trial with a score: ArithmeticError: planted"):
        assert run.best


def test_what_does_not_converge_is_said(hard, tmp_path, monkeypatch):
    def impatient(params, class_weight, seed):
        return LogisticRegression(**params, max_iter=2)

    monkeypatch.setitem(FAMILIES, "logreg", replace(FAMILIES["logreg"], make=impatient))
    run = run_on(hard, tmp_path, "logreg,ridge")
    assert {trial.head for trial in run.trials if not trial.converged} == {"logreg"}


def test_shots_use_at_most_so_many_images_per_class(hard, tmp_path):
    run = run_on(hard, tmp_path, shots=3)
    for split in ("train", "val"):
        labels = [row.label for row in run.rows(hard, split)]
        assert {label: labels.count(label) for label in hard.classes} == dict.fromkeys(hard.classes, 3)
    assert (run.num_train, run.num_select) == (9, 9)
    assert len(run.rows(hard, "test")) == hard.splits["test"]


def test_more_shots_than_any_class_has_are_said_to_take_all(hard, tmp_path):
    most = max(Counter(row.label for row in hard.usable("train")).values())
    notes = []
    for shots in (most, most + 1):
        run_on(hard, tmp_path, "gnb", str(shots), shots=shots, progress=notes.append)
    said = [tick.note for tick in notes if tick.note]
    assert said == [f"`shots={most + 1}` takes all: no class has more than {most} training images"]


def test_more_shots_keep_the_images_of_fewer(hard):
    few, more = ({row.path for row in hard.usable("train", shots)} for shots in (2, 5))
    assert few < more


def test_balanced_class_weights_reach_the_heads(hard, tmp_path):
    def one_rare(file):
        labels, splits = file["images/label"][()], file["images/split"][()]
        fresh = [b"blue" if at % 5 and split == b"train" else label
                 for at, (label, split) in enumerate(zip(labels, splits, strict=True))]  # fmt: skip
        rewrite(file["images"], "label", np.array(fresh))

    rare = edited(hard, tmp_path / "rare.h5", one_rare)
    plain, balanced = (
        run_on(rare, tmp_path, "logreg", f"r{weight}", class_weight=weight) for weight in (None, "balanced")
    )
    X, _ = rare.arrays("val", TAP)
    blue = [(run[4].estimator.predict(X) == 0).sum() for run in (plain, balanced)]
    assert blue[0] > blue[1]


def test_the_metric_asked_for_chooses(hard, tmp_path):
    run = run_on(hard, tmp_path, metric="macro_f1")
    assert run.settings.metric == "macro_f1"
    assert run.best.trial.score == max(trial.score for trial in run.trials)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"metric": "acuracy"},
            r"`metric` takes accuracy, .*, log_loss, ece; got 'acuracy' \(did you mean",
        ),
        ({"cv": 1}, "`cv` takes a number of folds from 2, or loo; got 1"),
        ({"cv": 0}, "`cv` takes a number of folds from 2, or loo; got 0"),
        ({"shots": 0}, "`shots` takes a number of images per class from 1; got 0"),
        ({"class_weight": "balance"}, r"`class_weight` takes balanced; got 'balance' \(did you mean balanced\?\)"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused(options, message, toy, tmp_path):
    with pytest.raises(UsageError, match=message):
        run_on(toy, tmp_path, **options)
    assert not (tmp_path / "run").exists()


def test_an_unknown_tap_is_refused_naming_those_there_are(toy, tmp_path):
    with pytest.raises(UnknownTap, match=r"no tap 'glifnet'.*glyphnet:weights=none/top"):
        sweep(toy, QUICK, taps="glifnet", out=tmp_path / "run")


def test_auto_is_said_to_be_for_extract_naming_the_taps_there_are(toy, tmp_path):
    with pytest.raises(
        UsageError, match=rf"`taps='auto'` is for extract\. .*toy\.h5 has {TAP}, pixels:size=8/top; without"
    ):
        sweep(toy, "ridge", taps="auto", out=tmp_path / "run")


def test_more_folds_than_images_of_a_class_are_refused(toy, tmp_path):
    with pytest.raises(
        TooFewClasses, match=r"`cv=5` needs 5 training images of a class; the largest, '\w+', has 3\. Use"
    ):
        run_on(toy, tmp_path, shots=3, cv=5)


def test_no_validation_images_ask_for_cross_validation(toy, tmp_path):
    def all_train(file):
        rewrite(file["images"], "split", np.array([b"train"] * len(toy.rows)))

    cache = edited(toy, tmp_path / "no_val.h5", all_train)
    with pytest.raises(TooFewClasses, match=r"has 0 validation images to choose on\. .*`cv=5`"):
        run_on(cache, tmp_path)
    assert run_on(cache, tmp_path, "ridge", cv=2).best.trial.score > 0.5


def test_a_class_without_training_images_is_named(toy, tmp_path):
    def red_into_val(file):
        pairs = zip(file["images/label"][()], file["images/split"][()], strict=True)
        rewrite(file["images"], "split", np.array([b"val" if label == b"red" else split for label, split in pairs]))

    cache = edited(toy, tmp_path / "no_red.h5", red_into_val)
    with pytest.raises(TooFewClasses, match=r"Class 'red' .* has no readable image in train"):
        run_on(cache, tmp_path)


@pytest.mark.parametrize(("label", "found"), [(b"red", "one class only, 'red'"), (b"", "no labels")])
def test_one_class_or_none_is_refused(label, found, toy, tmp_path):
    cache = edited(
        toy, tmp_path / "one.h5", lambda file: rewrite(file["images"], "label", np.array([label] * len(toy.rows)))
    )
    with pytest.raises(TooFewClasses, match=f"has {found}. A classifier needs"):
        run_on(cache, tmp_path)


def test_features_that_are_not_finite_are_refused_naming_the_image(hard, tmp_path):
    bad = hard.usable("train")[3]
    cache = edited(
        hard,
        tmp_path / "nan.h5",
        lambda file: with_rows(file, hard, lambda row, values: values * (np.nan if row == bad else 1)),
    )
    with pytest.raises(ShapeMismatch, match=rf"'{TAP}' has features that are not finite, in 1 row such as {bad.path}"):
        run_on(cache, tmp_path)


def test_a_run_that_exists_is_not_overwritten(hard, tmp_path):
    first = run_on(hard, tmp_path, "ridge")
    before = (first.path / "run.json").read_bytes()
    with pytest.raises(
        UsageError, match=r"holds a run already, with other heads, seed \(featcache show .*run\)\. Give an"
    ):
        run_on(hard, tmp_path, "ridge,gnb", seed=1)
    assert (first.path / "run.json").read_bytes() == before


def test_without_a_folder_runs_are_numbered_beside_the_cache(hard, tmp_path):
    cache = edited(hard, tmp_path / "photos.h5", lambda file: None)
    names = [sweep(cache, "ridge", taps=[TAP], seed=seed).path for seed in range(3)]
    assert names == [tmp_path / name for name in ("photos.run", "photos-2.run", "photos-3.run")]


@pytest.mark.parametrize("out", [None, "photos.run"])
def test_a_finished_sweep_that_is_asked_for_again_is_shown_and_said(out, hard, tmp_path):
    cache, notes = edited(hard, tmp_path / "photos.h5", lambda file: None), []
    out = out and tmp_path / out
    first = sweep(cache, "ridge", taps=[TAP], out=out, refit=True)
    sweep(cache, "gnb", taps=[TAP])
    before = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    again = sweep(cache, "ridge", taps=[TAP], out=out, refit=True, progress=notes.append)
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in first.path.rglob("*")} == before
    assert [tick.note for tick in notes] == [
        f"{first.path} already holds this finished sweep. To do it again: another `out`"
    ]


@pytest.mark.parametrize("out", [None, "photos.run"])
def test_a_finished_sweep_is_completed_by_a_refit_and_keeps_its_trials(out, hard, tmp_path):
    cache = edited(hard, tmp_path / "photos.h5", lambda file: None)
    options = {"taps": [TAP], "out": out and tmp_path / out}
    first = sweep(cache, "ridge", **options)
    heads = {path: path.stat().st_mtime_ns for path in (first.path / "heads").iterdir()}
    sweep(cache, "ridge", **options, refit=True)
    completed = Run.open(first.path)
    assert (completed.trials, completed.settings.refit) == (first.trials, True)
    assert completed["refit"].trial == first.best.trial
    assert {path: path.stat().st_mtime_ns for path in heads} == heads
    assert not (tmp_path / "photos-2.run").exists()
    with pytest.raises(UsageError, match="holds a run already, with other heads, refit"):
        sweep(cache, "gnb", taps=[TAP], out=first.path)


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("out", [None, "photos.run"])
def test_a_sweep_that_failed_throughout_is_tried_anew_in_its_folder(out, refit, hard, tmp_path, monkeypatch):
    def broken(params, class_weight, seed):
        raise ArithmeticError("planted")

    cache = edited(hard, tmp_path / "photos.h5", lambda file: None)
    options = {"taps": [TAP], "out": out and tmp_path / out, "refit": refit}
    with monkeypatch.context() as patched:
        patched.setitem(FAMILIES, "ridge", replace(FAMILIES["ridge"], make=broken))
        failed = sweep(cache, "ridge", **options)
    assert not failed.ranked
    again = sweep(cache, "ridge", **options)
    assert (again.path, len(again.ranked)) == (failed.path, 5)
    assert sweep(cache, "gnb", taps=[TAP]).path == tmp_path / "photos-2.run"


def test_every_tap_is_tried_unless_some_are_named(toy, tmp_path):
    run = sweep(toy, "ridge", out=tmp_path / "run")
    assert {trial.tap for trial in run.trials} == set(toy.taps)
    assert [trial.trial for trial in run.trials] == list(range(1, 11))
    assert {trial.width for trial in run.trials} == {256, 192}


def test_a_tap_that_lacks_images_is_left_out_and_said(tmp_path):
    """A photo was added, and extracted for one of two backbones."""
    photos = write_images(tmp_path / "photos")
    last = sorted(photos.glob("*/*.png"))[0]
    away = last.rename(tmp_path / last.name)
    out = tmp_path / "photos.h5"
    extract(photos, ["pixels:size=8", "pixels:size=4"], out=out)
    away.rename(last)
    cache = extract(photos, "pixels:size=8", out=out)
    note = "Tap 'pixels:size=4/top' lacks features of 1 of 36 images, so it is left out. Bring it up to date: "
    said = []
    sweep(cache, "centroid", progress=lambda tick: said.append(tick.note))
    advise(out, progress=lambda tick: said.append(tick.note))
    assert said.count(note + "featcache extract with its backbone") == 2
    assert Run.open(tmp_path / "photos.run").settings.taps == ("pixels:size=8/top",)


def test_progress_counts_every_setting(hard, tmp_path):
    ticks = []
    run_on(hard, tmp_path, progress=ticks.append)
    assert [tick.done for tick in ticks] == list(range(12))
    assert {tick.total for tick in ticks} == {11}


def test_heads_that_keras_trains_are_those_of_numpy_and_stay_off_threads(hard, tmp_path, monkeypatch):
    threads = set()
    step = KerasHeadEngine.step
    monkeypatch.setattr(KerasHeadEngine, "step", lambda *args: threads.add(threading.current_thread()) or step(*args))
    runs = [
        run_on(hard, tmp_path, "ridge,softmax", name, jobs=2, grid={"softmax": {"engine": [name], "epochs": [2]}})
        for name in ("numpy", "keras")
    ]
    assert threads == {threading.main_thread()}
    in_numpy, in_keras = ([trial for trial in run.trials if trial.head == "softmax"] for run in runs)
    assert [trial.log_loss for trial in in_keras] == pytest.approx([trial.log_loss for trial in in_numpy], rel=1e-4)
