from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.extras.report.table import class_table, text_report, trials_table
from featcache.sweeps import Run, Settings, Trial
from featcache.sweeps.metrics import Score
from featcache.sweeps.trial import settings_of, trial_fields
from featcache.text import fields, printable, table


def trial(number, score=0.9, **facts):
    interval = None if score is None else (score - 0.1, score)
    start = Trial(number, "t/top", 4, "logreg", {"C": 0.01}, "ok", score, interval, 0.1, True, True, 1.0, number)
    return replace(start, **facts)


def run_of(*trials, **facts):
    settings = Settings("c.h5", ("logreg",), ("t/top",), cv=facts.pop("cv", None))
    return Run(Path("RUN"), settings, ("a", "b"), {}, 40, 10, trials, 0.1, **facts)


def in_one_line(text):
    return " ".join(text.split())


def test_columns_are_aligned_and_numbers_stand_to_the_right():
    assert table(["name", "n"], [["a", 1], ["long", 1000]]).splitlines() == [
        "name     n",
        "----  ----",
        "a        1",
        "long  1000",
    ]


def test_a_table_without_rows_is_its_header():
    assert table(["a", "bb"], []).splitlines() == ["a  bb", "-  --"]


@given(st.text())
def test_nothing_that_a_terminal_would_obey_is_printed(text):
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)


def test_a_label_with_control_characters_is_shown_escaped():
    shown = table(["class"], [["\x1b[2Jred\n"]])
    assert r"\x1b[2Jred\n" in shown
    assert "\x1b" not in shown


def test_trials_come_best_first_with_their_settings():
    lines = trials_table(
        run_of(trial(1, 0.8), trial(2, 0.95), trial(3, 0.85, head="ridge", params={"alpha": 1e4}))
    ).splitlines()
    assert [line.split()[0] for line in lines[3:6]] == ["2", "3", "1"]
    assert "C=0.01" in lines[3]
    assert "0.950 [0.850, 0.950]" in lines[3]
    assert "alpha=10000" in lines[4]


def test_a_limit_shows_the_best_only():
    three = run_of(trial(1, 0.5), trial(2, 0.95), trial(3, 0.4))
    shown = trials_table(three, limit=1)
    assert "0.950" in shown
    assert "0.500" not in shown
    assert "2 more: featcache show RUN" in shown
    assert " more" not in trials_table(three, limit=2)


def test_a_run_without_scores_is_a_header_and_its_failures_in_a_narrow_window_too(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    shown = trials_table(run_of(trial(1, None, status="ValueError: planted")))
    assert shown.startswith("trial  tap")
    assert "Trial 1 (logreg) failed" in shown


def test_one_trial_is_shown_in_the_words_of_the_table():
    shown = fields(trial_fields(trial(2, 0.123456789, scores={"accuracy": 0.123456789, "ece": None})))
    for line in ("setting      C=0.01", "score        0.123 [0.023, 0.123]", "scores       accuracy 0.123"):
        assert line in shown.splitlines()
    assert "handoff      exact" in shown
    assert "handoff      taught" in fields(trial_fields(trial(2, handoff=False)))
    assert shown.count("\n") > fields(trial_fields(trial(2, None, status="ValueError: no"))).count("\n") == 5


@pytest.mark.parametrize(("cv", "chose"), [(None, ", and at most 3 validation images chose"), (5, "")])
def test_images_that_shots_leaves_out_are_noted(cv, chose):
    run = run_of(trial(1), cv=cv)
    shown = trials_table(replace(run, settings=replace(run.settings, shots=3)))
    assert f"At most 3 images per class trained{chose} (--shots)." in in_one_line(shown)


def test_a_choice_on_few_images_is_noted():
    text = "Only 10 images chose and calibrated the probabilities"
    assert f"{text}. To choose on 40: featcache sweep" in in_one_line(trials_table(run_of(trial(1, 0.5))))
    assert f"{text}." in in_one_line(trials_table(run_of(trial(1, 0.5), cv=5)))


def test_heads_without_probabilities_are_named():
    shown = trials_table(run_of(trial(1, 0.5, log_loss=0.3), trial(2, 0.4)))
    assert "Trials that only name a class, so that no probabilities are calibrated: 2." in in_one_line(shown)


def test_ties_are_called_ties():
    assert "2 trials tie at 0.9000" in trials_table(run_of(trial(1), trial(2), trial(3, 0.2)))
    assert "tie at" not in trials_table(run_of(trial(1), trial(2, 0.8)))


def test_trials_within_the_interval_of_the_best_are_counted():
    assert "one's interval: 1 of 2 other trials." in trials_table(run_of(trial(1, 0.9), trial(2, 0.85), trial(3, 0.2)))
    assert "one's interval: 1 of 1 other trial." in trials_table(run_of(trial(1, 0.9), trial(2, 0.85)))


def test_a_run_of_one_trial_has_no_note_on_ties():
    assert "other trials" not in trials_table(run_of(trial(1)))


def test_settings_name_the_steps_before_a_head_unless_they_are_the_default():
    texts = [settings_of(trial(1, prepare=chain)) for chain in ("standardise", "none", "l2+standardise")]
    assert texts == ["C=0.01", "C=0.01 not standardised", "C=0.01 after l2+standardise"]


def test_failures_and_what_did_not_converge_are_named():
    shown = trials_table(run_of(trial(1), trial(2, status="ValueError: planted"), trial(3, converged=False)))
    assert "Trial 2 (logreg) failed: ValueError: planted" in shown
    assert "1 of 3 did not converge: 3." in shown


def test_the_width_of_a_hidden_layer_is_in_the_name_of_the_head():
    assert settings_of(trial(1, head="mlp:8", params={"hidden": 8, "learning_rate": 0.001})) == "learning_rate=0.001"


@pytest.mark.parametrize(("cv", "how"), [(None, "the validation split"), (5, "5-fold cross-validation within train")])
def test_a_report_says_on_what_was_chosen(cv, how):
    assert f"chosen on 10 images by {how}" in text_report(run_of(trial(1), cv=cv))


def test_a_report_says_that_test_was_not_read():
    assert "The test split was not read." in text_report(run_of(trial(1)))
    assert "There is no test split" in text_report(run_of(trial(1)), has_test=False)
    opened = replace(run_of(trial(1)), test_opened=({}, {}))
    assert "The test split was opened 2 times before; --final shows its scores." in text_report(opened)


def per_class(*recalls):
    names = [f"class {number}" for number in range(len(recalls))]
    return [
        {"name": name, "images": 4, "recall": None if recall is None else Score(recall, recall, recall)}
        for name, recall in zip(names, recalls, strict=True)
    ]


@pytest.mark.parametrize(
    ("num_models", "legend", "cells"),
    [
        (2, "Recall of:", "0.500 [0.500, 0.500]  0.500 [0.500, 0.500]"),
        (4, "Recall, without the intervals that --json has, of:", "0.500  0.500  0.500  0.500"),
    ],
)
def test_recall_by_several_models_fits_into_80_columns(num_models, legend, cells, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"fine-tuned {number}.keras (epoch 0, the head: no other was better)" for number in range(num_models)]
    classes = {name: per_class(0.5, None) for name in names}
    for scores in classes.values():
        scores[0]["name"] = "lily_of_the_valley"
    lines = class_table(classes).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[:2] == [legend, f"  A  {names[0]}"]
    [first, last] = lines[-2:]
    assert first.split("  ", 1)[0] == "lily_of_the_valley"
    assert first.endswith(cells)
    assert last.split()[-1] == "-"


def test_the_worst_classes_on_test_come_first():
    lines = class_table({"head": per_class(0.1, 0.5, None, 0.3), "tuned": per_class(0.9, 0.2, None, 0.4)}).splitlines()
    assert [line.split()[1] for line in lines[2:]] == ["1", "3", "0", "2"]
    assert "0.500 [0.500, 0.500]  0.200 [0.200, 0.200]" in lines[2]
    many = class_table({"head": per_class(*np.linspace(0, 1, 30))}).splitlines()
    assert len(many) == 23
    assert many[-1] == "10 more, none with a lower recall: --json and --html have all."


def test_a_report_counts_the_looks_at_test():
    final = {"head": Score(0.9, 0.8, 0.95)}
    once, twice = (text_report(run_of(trial(1), test_opened=({},) * looks), final) for looks in (1, 2))
    assert "0.900 [0.800, 0.950]" in once
    look = {"num_images": 178}
    assert "on the test split, 178 images" in text_report(run_of(trial(1), test_opened=(look,)), final)
    assert "was opened" not in once
    assert "The test split was opened 2 times" in twice
