"""Points and intervals as text: they stand where their scores are."""

from dataclasses import replace
from pathlib import Path

from featcache.extras.report.plot import plots
from featcache.sweeps import Run, Settings, Trial


def trial(number, score, head="ridge", tap="vgg16/top", **params):
    interval = (score - 0.1, score + 0.1)
    return Trial(number, tap, 4, head, params, "ok", score, interval, 0.1, True, True, 1.0, number)


def run_of(*trials, taps=("vgg16/top",)):
    return Run(Path("RUN"), Settings("c.h5", ("ridge",), taps), ("a", "b"), {}, 40, 10, trials, 0.1)


def drawn(shown):
    """Return {label: where its point stands} of the lines with a point."""
    lines = [line for line in shown.splitlines() if line.endswith("|")]
    return {line.split()[0]: line.partition("|")[2].index("o") for line in lines}


def test_points_follow_the_scores_and_numbers_their_order():
    shown = plots(run_of(trial(1, 0.5, alpha=10.0), trial(2, 0.8, alpha=1e-3), trial(3, 0.65, alpha=1000.0)))
    points = drawn(shown)
    assert list(points) == ["0.001", "10", "1000"]
    assert points["10"] < points["1000"] < points["0.001"]
    assert "ridge on vgg16/top:" in shown
    assert "0.400" in shown
    assert "0.900" in shown


def test_each_value_is_plotted_at_the_best_of_all_other_settings():
    tried = [(0.5, 10, 1), (0.9, 10, 2), (0.7, 20, 1)]
    trials = [trial(number, score, alpha=alpha, x=x) for number, (score, alpha, x) in enumerate(tried)]
    points = drawn(plots(run_of(*trials)))
    assert points["10"] > points["20"]


def test_equal_values_of_different_types_have_their_own_lines():
    trials = [trial(1, 0.5, x=1), trial(2, 0.7, x=1.0), trial(3, 0.9, x=True)]
    points = drawn(plots(run_of(*trials)))
    assert set(points) == {"1", "1.0", "True"}
    assert points["1"] < points["1.0"] < points["True"]


def test_taps_stand_in_the_order_of_the_run_with_the_name_of_the_backbone_once():
    taps = ("vgg16/block3_pool", "vgg16/top")
    shown = plots(run_of(trial(1, 0.9, tap=taps[1], alpha=1), trial(2, 0.6, tap=taps[0], alpha=1), taps=taps))
    assert shown.splitlines()[0] == "On layers of vgg16:"
    assert list(drawn(shown)) == ["block3_pool", "top"]


def test_the_plot_says_if_nothing_was_varied():
    assert plots(run_of(trial(1, 0.9, alpha=1))).startswith("Nothing to plot")
    without = replace(trial(1, 0.9, alpha=1), interval=None)
    assert plots(run_of(without, replace(without, trial=2, params={"alpha": 2}))).startswith("Nothing to plot")
