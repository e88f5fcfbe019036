import datetime
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from featcache.cache.layout import looks_beside
from featcache.cache.reader import Cache
from featcache.errors import DataError, DiskFault, NotARun, UsageError
from featcache.extras.report.final import head_score, model_score, open_test, opening
from featcache.extras.report.table import text_report
from featcache.sweeps import Run, sweep
from featcache.sweeps.inputs import digest_of_rows
from featcache.sweeps.metrics import Score
from featcache.tuning import finetune


@pytest.fixture
def run(own_run):
    """Return a run to change."""
    return own_run


def test_a_head_has_the_score_of_plain_scikit_learn(run, toy):
    X, y = toy.arrays("test", run.best.trial.tap)
    assert head_score(run.best).value == run.best.estimator.score(X, y)


def test_scoring_other_splits_leaves_no_trace(run):
    before = (run.path / "run.json").read_bytes()
    score = head_score(run.best, "val")
    assert score.value == run.best.trial.score
    with opening([run.best], "val") as scores:
        scores["head"] = score
    assert (run.path / "run.json").read_bytes() == before
    assert Run.open(run.path).test_opened == ()
    assert run.looks() == []


def test_opening_test_is_recorded_each_time(run):
    tested = open_test(run)
    after, scores = tested.run, tested.scores
    assert list(scores) == [f"head {run.best.trial.trial} ({run.best.trial.head})"]
    assert Run.open(run.path) == after
    [opened] = after.test_opened
    assert opened["scores"] == {name: list(score) for name, score in scores.items()}
    assert datetime.datetime.fromisoformat(opened["at"]).tzinfo is not None
    assert len(open_test(after).run.test_opened) == 2


def test_a_head_fitted_on_train_and_val_is_judged_as_itself(own_run, tmp_path):
    toy = own_run.cache()
    run = sweep(toy, "ridge", taps=["glyphnet:weights=none/top"], out=tmp_path / "run", refit=True)
    tested = open_test(run, chosen=run["refit"])
    after, scores = tested.run, tested.scores
    [(name, score)] = scores.items()
    assert name == f"head {run.best.trial.trial} (ridge, fitted on train and val)"
    X, y = toy.arrays("test", run.best.trial.tap)
    assert score.value == run["refit"].estimator.score(X, y)
    assert len(after.test_opened) == 1


def test_a_trial_without_a_head_is_not_judged_and_nothing_recorded(run):
    failed = replace(run[1], trial=replace(run[1].trial, status="ValueError: no"))
    with pytest.raises(UsageError, match=r"run@1 has no head to judge: ValueError: no\. Take .*run@best"):
        open_test(run, chosen=failed)
    assert Run.open(run.path).test_opened == ()


def test_recording_writes_no_file_of_the_sweep(run):
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    look(run)
    after = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert before.items() <= after.items()
    assert [path.parent.name for path in after.keys() - before.keys()] == ["records"]


def look(run):
    """Open the test split and see a score."""
    with opening([run.best]) as scores:
        scores["head"] = Score(0.5, 0.4, 0.6)


def copies(toy, toy_run, folder, *names):
    """Return runs of these names on one copy of the toy cache."""
    shutil.copy(toy.path, folder / "photos.h5")
    runs = []
    for name in names:
        run = Run.open(shutil.copytree(toy_run.path, folder / name))
        runs.append(replace(run, settings=replace(run.settings, cache=str(folder / "photos.h5"))))
        runs[-1].save()
    return runs


def test_a_look_at_test_survives_a_sweep_that_writes_its_run_later(run):
    sweeping = Run.open(run.path)
    look(run)
    sweeping.save()
    replace(sweeping, trials=sweeping.trials[:3]).save()
    assert len(Run.open(run.path).test_opened) == 1


def test_looks_at_the_same_time_are_all_recorded(run):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(look, [run] * 24))
    opened = Run.open(run.path)
    assert len(opened.test_opened) == len(opened.looks()) == 24
    assert len({look["record"] for look in opened.test_opened}) == 24


def test_the_second_run_on_a_cache_says_that_its_test_split_was_opened_before(toy, toy_run, tmp_path):
    first, second = copies(toy, toy_run, tmp_path, "first.run", "second.run")
    tested = open_test(first)
    opened, scores = tested.run, tested.scores
    assert "was opened" not in text_report(opened, scores)
    assert "The test split was opened 1 time (first.run) before" in text_report(second)
    tested = open_test(second)
    opened, scores = tested.run, tested.scores
    assert "The test split was opened 2 times (first.run, second.run): the more" in text_report(opened, scores)
    assert [Path(look["run"]).name for look in opened.looks()] == ["first.run", "second.run"]
    assert len(opened.test_opened) == 1
    rows = [row for row in toy.usable("test") if row.label]
    assert {look["images"] for look in opened.looks()} == {digest_of_rows(rows)}
    assert all(look["scores"] for look in opened.looks())


def test_looks_at_a_cache_that_is_a_folder_lie_in_it(tmp_path):
    (tmp_path / "c.h5").mkdir()
    assert looks_beside(tmp_path / "c.h5") == tmp_path / "c.h5" / "looks"
    assert looks_beside(tmp_path / "d.h5") == tmp_path / "d.h5.looks"


def test_a_look_that_cannot_be_recorded_beside_the_cache_is_recorded_in_the_run(toy, toy_run, tmp_path):
    [run] = copies(toy, toy_run, tmp_path, "a.run")
    (tmp_path / "photos.h5.looks").symlink_to(tmp_path / "nowhere" / "else")
    tested = open_test(run)
    opened, scores = tested.run, tested.scores
    assert len(opened.test_opened) == len(opened.looks()) == 1
    told = " ".join(text_report(opened, scores).split())
    assert "a.run only, not beside the cache. Cannot make the folder" in told


def test_test_is_not_opened_where_the_run_cannot_record_it(run, monkeypatch):
    (run.path / "records").symlink_to(run.path / "nowhere" / "else")
    asked = []
    monkeypatch.setattr(Cache, "features", lambda cache, rows, tap=None: asked.append(rows))
    with pytest.raises(DiskFault, match=r"Cannot make the folder .*records"):
        open_test(run)
    assert asked == []
    assert run.looks() == []


def test_the_record_lies_there_before_the_first_score_is_computed(run, monkeypatch):
    seen = []
    keep = Cache.features

    def noting(cache, rows, tap=None):
        seen.append([look["scores"] for look in Run.open(run.path).looks()])
        return keep(cache, rows, tap)

    monkeypatch.setattr(Cache, "features", noting)
    after = open_test(run).run
    assert seen[0] == [{}]
    assert after.looks()[0]["scores"]


def test_a_look_that_failed_before_a_score_was_seen_is_withdrawn(run):
    with pytest.raises(ValueError, match="planted"), opening([run.best]):
        raise ValueError("planted")
    assert Run.open(run.path).looks() == []


@pytest.mark.parametrize("place", ["run", "cache"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-30],
        lambda data: data.replace(b"trial", b"trail"),
        lambda data: data.replace(b"digest", b"dagest"),
        lambda data: b"",
    ],
)
def test_a_damaged_record_of_a_look_is_named(place, damage, toy, toy_run, tmp_path):
    [run] = copies(toy, toy_run, tmp_path, "a.run")
    look(run)
    folder = run.path / "records" if place == "run" else tmp_path / "photos.h5.looks"
    [record] = folder.iterdir()
    record.write_bytes(damage(record.read_bytes()))
    with pytest.raises(NotARun, match=re.escape(str(record))):
        text_report(Run.open(run.path))
    with pytest.raises(NotARun, match=re.escape(str(record))):
        open_test(run)


def test_looks_and_models_that_an_earlier_version_wrote_into_run_json_are_read(run):
    facts = json.loads((run.path / "run.json").read_text())
    del facts["digest"]
    old = {"at": "2025-01-01T00:00:00+00:00", "scores": {"head": [0.5, 0.4, 0.6]}}
    facts |= {"format": 2, "tuned": ["/models/a.keras"], "test_opened": [old]}
    (run.path / "run.json").write_text(json.dumps(facts))
    look(run)
    opened = Run.open(run.path)
    assert opened.tuned == ("/models/a.keras",)
    assert opened.test_opened[0] == old
    opened.save()  # as a sweep does that goes on
    again = Run.open(run.path)
    assert again == opened
    assert len(again.looks()) == 2


@pytest.mark.slow
def test_a_fine_tuned_model_is_scored_beside_its_head_wherever_it_lies(run, tmp_path):
    chosen = next(run[trial.trial] for trial in run.trials if trial.params == {"C": 0.01})
    tuned = finetune(chosen, tmp_path / "elsewhere.keras", unfreeze="none", epochs=1, learning_rate=1e-6)
    tested = open_test(run)
    after, scores = tested.run, tested.scores
    name = list(scores)[1]
    assert name.startswith("fine-tuned elsewhere.keras")
    assert scores[name] == model_score(chosen, tuned.model) == head_score(chosen)
    assert after.tuned == (str(tmp_path / "elsewhere.keras"),)


@pytest.mark.slow
def test_a_model_that_is_the_head_still_says_so(run):
    chosen = next(run[trial.trial] for trial in run.trials if trial.params == {"C": 0.01})
    assert finetune(chosen, unfreeze="none", epochs=1, learning_rate=1.0, warmup=0.0).best.epoch == 0
    scores = open_test(run).scores
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


def test_without_test_images_the_error_says_why_and_nothing_is_recorded(run, monkeypatch):
    keep = Cache.usable
    monkeypatch.setattr(
        Cache, "usable", lambda cache, split=None, *few: [] if split == "test" else keep(cache, split, *few)
    )
    with pytest.raises(DataError, match=r"has no test images\. Add a folder 'test'"):
        open_test(run)
    assert Run.open(run.path).test_opened == ()


def test_heads_that_are_judged_together_are_one_look_at_the_data_set(own_run):
    other = sweep(own_run.settings.cache, "ridge", out=own_run.path.with_name("other.run"))
    with opening([own_run.best, other.best]) as scores:
        scores["both"] = head_score(own_run.best)
    for run in (Run.open(own_run.path), Run.open(other.path)):
        assert (len(run.test_opened), len(run.looks())) == (1, 1)


def test_a_look_that_failed_leaves_no_folders(run):
    with pytest.raises(ZeroDivisionError), opening([run.best]):
        raise ZeroDivisionError
    assert not (run.path / "records").exists()
    assert not looks_beside(run.cache().path).exists()
    look(run)
    with pytest.raises(ZeroDivisionError), opening([run.best]):
        raise ZeroDivisionError
    assert len(Run.open(run.path).looks()) == 1
