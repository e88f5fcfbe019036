"""Runs that are stopped, gone on with, or kept within a budget."""

import csv
import json
import time
from dataclasses import replace

import numpy as np
import pytest

from featcache.errors import UsageError
from featcache.heads.estimators import FAMILIES
from featcache.models import Probe
from featcache.sweeps import Run, budget, sweep, trials, writer
from featcache.sweeps.budget import Clock, parse_seconds

from .conftest import TAP, edited, rewrite

HEADS = "gnb,ridge,logreg,svm"
APART = {"svm": {"C": [0.1**n for n in range(9)], "intercept_scaling": [1.0]}}  # each is fitted alone


def run_on(cache, out, heads=HEADS, **options):
    return sweep(cache, heads, out=out, **{"taps": [TAP], "jobs": 1, **options})


def without_time(run):
    return [replace(trial, fit_s=0.0) for trial in run.trials]


@pytest.fixture
def fits(monkeypatch):
    """Return a list of the heads that were fitted since, a name for every group and round."""
    seen = []
    keep = trials.fitted

    def noting(task, prepared, groups, *arguments, **options):
        for group, outcomes in keep(task, prepared, groups, *arguments, **options):
            seen.append(group.head)
            yield group, outcomes

    monkeypatch.setattr(trials, "fitted", noting)
    return seen


def stopped_after(count, monkeypatch, call):
    """Call something that is stopped by Ctrl-C after so many groups of trials."""
    keep, added = writer.Writer.add, []

    def add(self, some):
        keep(self, some)
        added.append(some)
        if len(added) == count:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(writer.Writer, "add", add)
        with pytest.raises(KeyboardInterrupt):
            call()


@pytest.mark.parametrize("options", [{}, {"cv": 3}])
def test_a_stopped_run_keeps_what_is_done_and_goes_on(options, hard, tmp_path, monkeypatch):
    whole = run_on(hard, tmp_path / "whole", **options)
    stopped_after(3, monkeypatch, lambda: run_on(hard, tmp_path / "run", **options))
    begun = Run.open(tmp_path / "run")
    assert 0 < len(begun.trials) < begun.planned == len(whole.trials)
    assert begun.best.estimator.predict(hard.arrays("val", TAP)[0]).shape
    found = run_on(hard, tmp_path / "run", **options)
    assert without_time(found) == without_time(whole)
    assert found.best.trial.trial == whole.best.trial.trial


def test_a_run_that_goes_on_fits_nothing_twice(hard, tmp_path, monkeypatch, fits):
    run_on(hard, tmp_path / "whole")
    groups = len(fits)
    fits.clear()
    stopped_after(2, monkeypatch, lambda: run_on(hard, tmp_path / "run"))
    run_on(hard, tmp_path / "run")
    assert len(fits) == groups


def test_without_a_folder_the_stopped_run_beside_the_cache_goes_on(hard, tmp_path, monkeypatch):
    cache = edited(hard, tmp_path / "photos.h5", lambda file: None)
    sweep(cache, "ridge", taps=[TAP])
    stopped_after(2, monkeypatch, lambda: sweep(cache, HEADS, taps=[TAP]))
    assert sweep(cache, "gnb", taps=[TAP]).path == tmp_path / "photos-3.run"
    found = sweep(cache, HEADS, taps=[TAP])
    assert (found.path, found.is_finished) == (tmp_path / "photos-2.run", True)


@pytest.mark.parametrize("options", [{"cv": 3}, {"seed": 1}, {"heads": "ridge,logreg"}, {"metric": "macro_f1"}])
def test_a_stopped_run_that_was_asked_something_else_is_not_touched(options, hard, tmp_path, monkeypatch):
    stopped_after(1, monkeypatch, lambda: run_on(hard, tmp_path / "run"))
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(UsageError, match="holds a run already"):
        run_on(hard, tmp_path / "run", **options)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_stopped_run_of_other_images_is_not_touched(hard, tmp_path, monkeypatch):
    cache = edited(hard, tmp_path / "photos.h5", lambda file: None)
    stopped_after(1, monkeypatch, lambda: run_on(cache, tmp_path / "run"))

    def moved(file):
        splits = file["images/split"][()]
        rewrite(file["images"], "split", np.where(splits == b"test", b"train", splits))

    other = edited(cache, tmp_path / "other.h5", moved)
    other.path.replace(cache.path)
    with pytest.raises(UsageError, match="holds a run already"):
        run_on(cache.path, tmp_path / "run")


def test_a_run_is_written_while_it_is_made(hard, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SAVE_SHARE", 1e9)
    seen = []
    keep = writer.Writer.add

    def add(self, some):
        keep(self, some)
        seen.append(len(Run.open(self.run.path).trials))

    monkeypatch.setattr(writer.Writer, "add", add)
    run = run_on(hard, tmp_path / "run")
    assert seen == sorted(seen)
    assert seen[-1] == len(run.trials)
    assert len(set(seen)) > 3


@pytest.fixture
def slow(monkeypatch):
    """Make the linear machines take a tenth of a second each."""
    make = FAMILIES["svm"].make

    def sleeping(params, class_weight, seed):
        time.sleep(0.1)
        return make(params, class_weight, seed)

    monkeypatch.setitem(FAMILIES, "svm", replace(FAMILIES["svm"], make=sleeping))


def test_with_time_for_all_all_are_tried(hard, tmp_path):
    run = run_on(hard, tmp_path / "run", budget=600.0)
    plain = run_on(hard, tmp_path / "plain")
    assert without_time(run) == without_time(plain)


def test_with_little_time_the_promising_are_tried_and_the_rest_says_why(hard, tmp_path, slow):
    run = run_on(hard, tmp_path / "run", "ridge,svm", budget=1.0, grid=APART)
    dropped = [trial for trial in run.trials if trial.dropped]
    assert dropped
    assert len(run.trials) == run.planned == 14
    assert not any(trial.failed for trial in run.trials)
    assert run.ranked
    assert all("dropped: not among the best" in one.status or "time of the budget" in one.status for one in dropped)


def test_what_was_not_tried_has_no_score_anywhere(hard, tmp_path):
    run = run_on(hard, tmp_path / "run", budget=1e-6)
    dropped = [trial for trial in run.trials if trial.dropped]
    assert {(trial.score, trial.interval) for trial in dropped} == {(None, None)}
    with (run.path / "trials.csv").open() as file:
        rows = {int(row["trial"]): row for row in csv.DictReader(file)}
    stored = json.loads((run.path / "run.json").read_text(), parse_constant=pytest.fail)["trials"]
    for trial in dropped:
        assert [rows[trial.trial][name] for name in ("score", "low", "high", "std", "accuracy")] == [""] * 5
        assert [stored[trial.trial - 1][name] for name in ("score", "interval")] == [None, None]
    assert all(rows[trial.trial]["score"] == f"{trial.score:.4f}" for trial in run.ranked)
    assert Run.open(run.path) == run
    with pytest.raises(UsageError, match=r"\) of .* has no head: dropped: .*Take RUN@best"):
        Probe.open(run[dropped[0].trial])


def test_one_group_is_tried_however_little_time_there_is(hard, tmp_path):
    run = run_on(hard, tmp_path / "run", budget=1e-6)
    assert len(run.ranked) >= 1
    assert len(run.trials) == run.planned


def test_the_best_on_few_images_go_on(hard, tmp_path, monkeypatch):
    kept = []
    keep = budget.glimpses_of

    def looked(groups, task_of, asked, jobs, share, clock):
        found = [*keep(groups, task_of, asked, jobs, share, clock)]
        kept.append((share, {id(one.bundle): one.value for one in found}))
        return found

    monkeypatch.setattr(budget, "glimpses_of", looked)
    monkeypatch.setattr(Clock, "left", 0.0)
    monkeypatch.setattr(Clock, "may_begin", lambda self: True)
    with monkeypatch.context() as patched:
        patched.setattr(budget, "fitted", lambda *args, may_begin, **options: trials.fitted(*args, **options))
        run = run_on(hard, tmp_path / "run", "svm", budget=1.0, grid=APART)
    assert [share for share, _ in kept] == [9, 3]
    first, second = (values for _, values in kept)
    assert (len(first), len(second), len(run.ranked)) == (9, 3, 1)
    assert min(first[key] for key in second) >= max(first[key] for key in first.keys() - second.keys())


def test_a_budget_and_leaving_one_out_do_not_go_together(hard, tmp_path):
    with pytest.raises(UsageError, match="`budget` has nothing to save with `cv='loo'`"):
        run_on(hard, tmp_path / "run", "ridge", budget=1.0, cv="loo")


@pytest.mark.parametrize("text", ["", "60d", "-1", "nan", "1e3", "s"])
def test_a_time_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="`budget` takes a time such as 60s, 5m or 1h"):
        parse_seconds(text)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_budget_that_is_none_is_refused(seconds, hard, tmp_path):
    with pytest.raises(UsageError, match="`budget` takes a time"):
        run_on(hard, tmp_path / "run", budget=seconds)
