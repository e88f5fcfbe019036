"""What a stranger tried: values that cannot be, classifiers of all sorts, runs begun at once."""

import sys
import threading

import pytest
from filelock import FileLock

from featcache.errors import UnknownHead, UsageError
from featcache.sweeps import Run, sweep, writer
from featcache.sweeps.run import open_trial
from featcache.sweeps.run_paths import head_file

from .conftest import TAP, edited

MODULE = """
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
class OnlyPredicts(ClassifierMixin, BaseEstimator):
    def fit(self, X, y): self.classes_ = np.unique(y); return self
    def predict(self, X): return np.zeros(len(X), int)
class Texts(OnlyPredicts):
    def predict(self, X): return np.array(["red"] * len(X))
class Wide(OnlyPredicts):
    def decision_function(self, X): return np.zeros((len(X), 7))
class Refuses(OnlyPredicts):
    def __init__(self): raise ValueError("not today")
"""


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """Be in a folder with a module of odd classifiers, and forget it afterwards."""
    (tmp_path / "odd_heads_of_a_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield "odd_heads_of_a_test"
    sys.modules.pop("odd_heads_of_a_test", None)


def run_on(cache, out, heads, **options):
    return sweep(cache, heads, **{"taps": [TAP], "out": out, **options})


def statuses(run):
    return [trial.status.partition(":")[0] for trial in run.trials]


@pytest.mark.filterwarnings("ignore:Singular matrix")  # says scikit-learn's own
def test_without_a_penalty_ridge_is_scikit_learns(hard, tmp_path):
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    run = run_on(hard, tmp_path / "run", "ridge", shots=3, grid={"ridge": {"alpha": [0.0, 1.0]}})
    rows = [run.rows(hard, split) for split in ("train", "val")]
    (X, y), (others, truth) = ((hard.features(some, TAP), hard.labels(some)) for some in rows)
    for trial in run.trials:
        alone = make_pipeline(StandardScaler(), RidgeClassifier(**trial.params)).fit(X, y)
        assert trial.score == alone.score(others, truth), trial


def test_pca_and_leaving_one_out_do_not_go_together(hard, tmp_path):
    with pytest.raises(UsageError, match="`cv='loo'` goes without pca, which would see the image that is left out"):
        run_on(hard, tmp_path / "run", "ridge", cv="loo", prepare="pca:3")


@pytest.mark.filterwarnings("ignore")
def test_scores_that_are_not_finite_fail_alone(hard, tmp_path):
    run = run_on(hard, tmp_path / "run", "ridge,softmax", grid={"softmax": {"learning_rate": [1e-3, 1e30]}})
    bad = [trial for trial in run.trials if trial.failed]
    assert [trial.params["learning_rate"] for trial in bad] == [1e30]
    assert bad[0].status == "ValueError: its scores are not finite"


def test_discriminant_analysis_of_one_image_per_class_fails_as_scikit_learns(hard, tmp_path):
    run = run_on(hard, tmp_path / "run", "ridge,lda", shots=1)
    assert {trial.status for trial in run.trials if trial.head == "lda"} == {
        "ValueError: The number of samples must be more than the number of classes."
    }


def test_more_components_than_images_fail_alone(hard, tmp_path):
    run = run_on(hard, tmp_path / "run", "ridge", prepare="pca:500,standardise")
    assert {(trial.prepare, trial.failed) for trial in run.trials} == {("pca:500", True), ("standardise", False)}


def test_a_chain_that_few_images_cannot_fit_is_tried_on_all_within_a_budget(hard, tmp_path):
    run = run_on(hard, tmp_path / "run", "ridge", prepare="pca:12", budget=600.0)
    assert set(statuses(run)) == {"ok"}


def test_classifiers_of_all_sorts_are_swept_or_fail_alone(odd, hard, tmp_path):
    heads = [f"{odd}:OnlyPredicts", f"{odd}:Texts", f"{odd}:Wide", "sklearn.ensemble:IsolationForest", "ridge"]
    run = run_on(hard, tmp_path / "run", heads)
    by_head = {trial.head.rpartition(":")[2]: trial for trial in run.trials}
    assert by_head["OnlyPredicts"].status == "ok"
    assert by_head["OnlyPredicts"].log_loss is None
    assert by_head["OnlyPredicts"].scores["ece"] is None
    assert by_head["Texts"].failed
    assert "ValueError: it gives 7 scores for 3 classes" in by_head["Wide"].status
    assert by_head["IsolationForest"].failed
    assert run.best.trial.head == "ridge"
    assert Run.open(run.path) == run


def test_a_class_that_cannot_be_made_is_refused(odd, hard, tmp_path):
    with pytest.raises(UsageError, match="is no classifier as scikit-learn's are, made without arguments: not today"):
        run_on(hard, tmp_path / "run", [f"{odd}:Refuses"])


def test_a_class_that_was_swept_is_fitted_again_when_it_is_wanted(odd, hard, tmp_path):
    run = run_on(hard, tmp_path / "run", [f"{odd}:OnlyPredicts"])
    assert run.best.trial.size == 0
    assert Run.open(run.path).best.estimator.predict(hard.arrays("val", TAP)[0]).max() == 0


def test_one_number_of_neighbours_that_cannot_be_fails_alone(hard, tmp_path):
    run = run_on(hard, tmp_path / "run", "knn", grid={"knn": {"n_neighbors": [0, 5]}})
    assert sorted(statuses(run)) == ["InvalidParameterError", "ok"]


def test_values_that_are_lists_are_the_same_when_the_run_is_repeated(hard, tmp_path):
    grid = {"mlp:8": {"hidden": [(4, 3), (5,)], "epochs": [2]}}
    run = run_on(hard, tmp_path / "run", "mlp:8", grid=grid)
    again = run_on(hard, tmp_path / "again", "mlp:8", grid=Run.open(run.path).settings.grid)
    assert [one.score for one in run.trials] == [one.score for one in again.trials]


def test_a_grid_adds_to_that_of_a_preset(hard, tmp_path):
    run = run_on(hard, tmp_path / "run", None, preset="dinov2", grid={"softmax": {"epochs": [1]}})
    assert len(run.trials) == 13
    assert {(one.params["optimizer"], one.params["epochs"]) for one in run.trials} == {("sgd", 1)}


def test_a_head_of_another_kind_is_not_left_under_a_number(hard, tmp_path):
    run = run_on(hard, tmp_path / "run", "rbf", grid={"rbf": {"C": [1.0]}})
    assert head_file(run.path, 1).with_suffix(".skops").exists()
    run = run_on(hard, tmp_path / "run", "ridge", grid={"ridge": {"alpha": [1.0]}}, force=True)
    assert type(run[1].estimator[-1]).__name__ == "RidgeClassifier"
    assert not head_file(run.path, 1).with_suffix(".skops").exists()


def test_two_sweeps_begun_at_once_have_a_folder_each(hard, tmp_path):
    cache = edited(hard, tmp_path / "photos.h5", lambda file: None)
    runs = []
    threads = [
        threading.Thread(target=lambda head=head: runs.append(sweep(cache, head, taps=[TAP], jobs=1)))
        for head in ("ridge", "gnb")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {run.path.name for run in runs} == {"photos.run", "photos-2.run"}
    assert all(Run.open(run.path).trials == run.trials for run in runs)


def test_a_folder_in_which_a_sweep_is_at_work_is_left_alone(hard, tmp_path):
    (tmp_path / "run").mkdir()
    lock = FileLock(tmp_path / "run" / ".lock")
    with lock, pytest.raises(UsageError, match=r"Another sweep is at work in .*run\. Wait"):
        run_on(hard, tmp_path / "run", "ridge")
    assert run_on(hard, tmp_path / "run", "ridge").trials


def test_a_damaged_run_beside_the_cache_does_not_keep_from_sweeping(hard, tmp_path):
    cache = edited(hard, tmp_path / "photos.h5", lambda file: None)
    (tmp_path / "photos.run").mkdir()
    (tmp_path / "photos.run" / "run.json").write_text("{")
    assert sweep(cache, "ridge", taps=[TAP]).path.name == "photos-2.run"


def test_a_sweep_that_was_stopped_before_its_refit_goes_on_with_it(hard, tmp_path, monkeypatch):
    def stopped(self, cache, rows):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(writer.Writer, "refit", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_on(hard, tmp_path / "run", "ridge", refit=True)
    assert run_on(hard, tmp_path / "run", "ridge", refit=True).refitted is not None


def test_a_folder_with_an_at_sign_is_a_run(hard, tmp_path):
    run = run_on(hard, tmp_path / "a@1.run", "ridge")
    assert open_trial(str(run.path)).trial == run.best.trial
    assert open_trial(f"{run.path}@2").trial.trial == 2


def test_what_a_head_gives_as_pairs_of_classes_is_not_asked_for(hard, tmp_path):
    with pytest.raises(UsageError, match="rbf has no parameter 'decision_function_shape'"):
        run_on(hard, tmp_path / "run", "rbf", grid={"rbf": {"decision_function_shape": ["ovo"]}})


def test_no_trials_at_once_are_refused(hard, tmp_path):
    with pytest.raises(UsageError, match="`jobs` takes a number of trials at once, or -1 for one per core; got 0"):
        run_on(hard, tmp_path / "run", "ridge", jobs=0)


def test_an_unknown_module_is_refused_before_anything_is_read(hard, tmp_path):
    with pytest.raises(UnknownHead, match="No module named 'nothing_here'"):
        run_on(hard, tmp_path / "run", ["nothing_here:Thing"])
    assert not (tmp_path / "run").exists()
