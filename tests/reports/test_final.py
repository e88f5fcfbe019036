import datetime
import shutil
from dataclasses import replace

import pytest

from featcache.cache.reader import Cache
from featcache.errors import DataError, UsageError
from featcache.reports.final import final_scores, head_score, model_score, record_opened
from featcache.sweeps import Run, sweep
from featcache.sweeps.metrics import Score
from featcache.tuning import finetune


@pytest.fixture
def run(toy_run, tmp_path):
    """Return a copy of the toy run to change."""
    return Run.open(shutil.copytree(toy_run.path, tmp_path / "run"))


def test_a_head_has_the_score_of_plain_scikit_learn(run, toy):
    X, y = toy.arrays("test", run.best.trial.tap)
    assert head_score(run.best).value == run.best.estimator.score(X, y)


def test_scoring_other_splits_leaves_no_trace(run):
    before = (run.path / "run.json").read_bytes()
    found = head_score(run.best, "val")
    assert found.value == run.best.trial.score
    assert record_opened(run, "val", {"head": found}) is run
    assert (run.path / "run.json").read_bytes() == before


def test_opening_test_is_recorded_each_time(run):
    after, scores = final_scores(run)
    assert list(scores) == [f"head {run.best.trial.trial} ({run.best.trial.head})"]
    assert Run.open(run.path) == after
    [opened] = after.test_opened
    assert opened["scores"] == {name: list(found) for name, found in scores.items()}
    assert datetime.datetime.fromisoformat(opened["at"]).tzinfo is not None
    assert len(final_scores(after)[0].test_opened) == 2


def test_a_head_fitted_on_train_and_val_is_judged_as_itself(toy, tmp_path):
    run = sweep(toy, "ridge", taps=["glyphnet:weights=none/top"], out=tmp_path / "run", refit=True)
    after, scores = final_scores(run, chosen=run["refit"])
    [(name, found)] = scores.items()
    assert name == f"head {run.best.trial.trial} (ridge, fitted on train and val)"
    X, y = toy.arrays("test", run.best.trial.tap)
    assert found.value == run["refit"].estimator.score(X, y)
    assert len(after.test_opened) == 1


def test_a_trial_without_a_head_is_not_judged_and_nothing_recorded(run):
    failed = replace(run[1], trial=replace(run[1].trial, status="ValueError: no"))
    with pytest.raises(UsageError, match=r"run@1 has no head to judge: ValueError: no\. Take .*run@best"):
        final_scores(run, chosen=failed)
    assert Run.open(run.path).test_opened == ()


def test_recording_changes_nothing_else(run):
    after = record_opened(run, "test", {"head": Score(0.5, 0.4, 0.6)})
    assert after.trials == run.trials
    assert (after.settings, after.fingerprints) == (run.settings, run.fingerprints)


def test_a_fine_tuned_model_is_judged_beside_its_head_wherever_it_lies(run, tmp_path):
    chosen = next(run[trial.trial] for trial in run.trials if trial.params == {"C": 0.01})
    tuned = finetune(chosen, tmp_path / "elsewhere.keras", unfreeze="none", epochs=1, learning_rate=1e-6)
    after, scores = final_scores(run)
    name = list(scores)[1]
    assert name.startswith("fine-tuned elsewhere.keras")
    assert scores[name] == model_score(chosen, tuned.model) == head_score(chosen)
    assert after.tuned == (str(tmp_path / "elsewhere.keras"),)


@pytest.mark.slow
def test_a_model_that_is_the_head_still_says_so(run):
    chosen = next(run[trial.trial] for trial in run.trials if trial.params == {"C": 0.01})
    assert finetune(chosen, unfreeze="none", epochs=1, learning_rate=1.0, warmup=0.0).best.epoch == 0
    _, scores = final_scores(run)
    assert list(scores)[1] == "fine-tuned finetuned.keras (epoch 0, the head: no other was better)"


def test_only_the_test_images_are_read_for_the_final_score(run, monkeypatch):
    asked = []
    keep = Cache.features

    def noting(cache, rows, tap=None):
        asked.extend(row.split for row in rows)
        return keep(cache, rows, tap)

    monkeypatch.setattr(Cache, "features", noting)
    head_score(run.best)
    assert set(asked) == {"test"}


def test_without_test_images_the_reason_is_said_and_nothing_recorded(run, monkeypatch):
    keep = Cache.usable
    monkeypatch.setattr(
        Cache, "usable", lambda cache, split=None, *few: [] if split == "test" else keep(cache, split, *few)
    )
    with pytest.raises(DataError, match=r"has no test images\. Add a folder 'test'"):
        final_scores(run)
    assert Run.open(run.path).test_opened == ()
