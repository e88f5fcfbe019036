"""Runs and caches as data frames and plots."""

import csv
import sys
from dataclasses import replace

import numpy as np
import pytest

from featcache.errors import EnvironmentFault, UnknownTap, UsageError
from featcache.sweeps.trial import COLUMNS

TAP = "pixels:size=8/top"


def test_the_frame_of_a_run_has_every_trial_best_first(toy_run):
    failed = replace(toy_run.trials[0], trial=99, status="ValueError: no", score=None, interval=None)
    frame = replace(toy_run, trials=(failed, *toy_run.trials)).to_frame()
    assert list(frame.columns) == list(COLUMNS)
    assert list(frame.trial) == [trial.trial for trial in toy_run.ranked] + [99]
    best = toy_run.best.trial
    assert (frame.score[0], frame.low[0], frame.high[0]) == (best.score, *best.interval)
    assert frame.status.iloc[-1] == "ValueError: no"
    assert np.isnan(frame.score.iloc[-1])


def test_the_frame_of_a_run_says_what_trials_csv_says(toy_run):
    with (toy_run.path / "trials.csv").open() as file:
        stored = {row["trial"]: row for row in csv.DictReader(file)}
    for row in toy_run.to_frame().itertuples():
        assert stored[str(row.trial)]["params"] == row.params
        assert float(stored[str(row.trial)]["score"]) == pytest.approx(row.score, abs=1e-4)


def test_the_frame_of_a_cache_has_its_images(toy):
    frame = toy.to_frame()
    assert list(frame.columns) == ["path", "label", "group", "split", "digest", "status"]
    assert list(frame.path) == [row.path for row in toy.rows]
    assert set(frame.status) == {"ok"}
    assert len(toy.to_frame("val")) == len(toy.usable("val"))


def test_a_frame_with_a_tap_has_its_features(toy):
    frame = toy.to_frame("val", TAP)
    columns = [f"{TAP}_{number}" for number in range(192)]
    X, _ = toy.arrays("val", TAP)
    assert np.array_equal(frame[columns].to_numpy(), X)
    assert list(frame.path) == [row.path for row in toy.usable("val")]


def test_names_that_do_not_exist_are_refused(toy):
    with pytest.raises(UsageError, match="`split` takes train, val, test; got 'trian'"):
        toy.to_frame("trian")
    with pytest.raises(UnknownTap, match="no tap 'topp'"):
        toy.to_frame(tap="topp")


def test_without_pandas_or_matplotlib_a_line_says_what_to_install(toy, toy_run, monkeypatch):
    for name in ("pandas", "matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, None)
    for frame in (toy.to_frame, toy_run.to_frame):
        with pytest.raises(EnvironmentFault, match=r"needs pandas .*: pip install 'featcache\[notebook\]'"):
            frame()
    with pytest.raises(EnvironmentFault, match=r"needs matplotlib .*: pip install matplotlib"):
        toy_run.plot()


def test_the_plot_has_the_best_of_each_kind_of_head(toy_run):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    assert toy_run.plot(axes) is axes
    best_of_head = {}
    for trial in toy_run.ranked:
        best_of_head.setdefault(trial.head, trial)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert [name.split()[0] for name in names] == list(best_of_head)
    points = [line.get_xdata()[0] for line in axes.lines]
    assert points == [trial.score for trial in best_of_head.values()]
    low, high = axes.get_ylim()
    assert low > high  # the best at the top
    assert axes.get_xlabel() == "accuracy [95 %]"


def test_a_plot_makes_its_own_figure(toy_run, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    axes = toy_run.plot()
    pyplot.close(axes.figure)


def test_a_run_without_scores_cannot_be_plotted(toy_run):
    with pytest.raises(UsageError, match="has no trial with a score to plot"):
        replace(toy_run, trials=()).plot()
