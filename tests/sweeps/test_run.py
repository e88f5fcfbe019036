import csv
import json
import shutil
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import NotARun, ShapeMismatch, UnknownHead
from featcache.files import write_sealed
from featcache.sweeps import Run, Settings, Trial, open_trial, sweep
from featcache.sweeps.comparing import predictions_on_selection

from .conftest import TAP, edit, edited, rewrite


@pytest.fixture(scope="module")
def small(hard, tmp_path_factory):
    """Return a run of ridge and knn on the hard cache. Do not change it."""
    return sweep(hard, "ridge,knn", taps=[TAP], out=tmp_path_factory.mktemp("small") / "run")


@pytest.fixture
def copied(small, tmp_path):
    """Return a copy of that run."""
    return Run.open(shutil.copytree(small.path, tmp_path / "run"))


def trial(number, score, rank, **facts):
    start = Trial(number, "t/top", 4, "ridge", {}, "ok", score, (0.0, 1.0), 0.1, True, True, 1.0, rank)
    return replace(start, **facts)


def run_of(*trials):
    return Run(Path("RUN"), Settings("c.h5", ("ridge",), ("t/top",)), ("a", "b"), {}, 4, 4, trials, 0.1)


def damage(run, change):
    """Change what a run says, as format 2 had it: without a digest."""
    path = run.path / "run.json"
    facts = json.loads(path.read_text())
    del facts["digest"]
    facts["format"] = 2
    change(facts)
    path.write_text(json.dumps(facts))


def test_what_is_written_is_what_is_read(small):
    assert Run.open(small.path) == small


def test_the_best_score_comes_first_and_of_equal_scores_the_simpler():
    trials = [trial(1, 0.5, 0), trial(2, 0.9, 7), trial(3, 0.9, 2), trial(4, 0.9, 2), trial(5, 0.7, 1)]
    for order in (trials, trials[::-1]):
        assert [one.trial for one in run_of(*order).ranked] == [3, 4, 2, 5, 1]


def test_of_equal_scores_the_kind_decides_before_the_log_loss():
    complex_kind = trial(1, 0.9, 0, head="mlp:8", log_loss=0.1)
    worse, better = trial(2, 0.9, 1, log_loss=0.4), trial(3, 0.9, 2, log_loss=0.3)
    assert [one.trial for one in run_of(complex_kind, worse, better).ranked] == [3, 2, 1]


def test_scores_of_zero_have_a_best_too():
    assert run_of(trial(1, 0.0, 4), trial(2, 0.0, 3)).best.trial.trial == 2


def test_a_failed_trial_is_never_best():
    run = run_of(trial(1, 0.0, 0, status="ValueError: no"), trial(2, 0.0, 3))
    assert run.best.trial.trial == 2
    assert len(run.ranked) == 1


def test_a_trial_is_found_by_number_and_by_best(small):
    assert small[3].trial.trial == small["3"].trial.trial == 3
    assert small["best"].trial == small.best.trial == small.ranked[0]


@pytest.mark.parametrize("which", [0, 99, "99", "bets", "", -1])
def test_a_trial_that_is_not_there_is_refused(which, small):
    with pytest.raises(UnknownHead, match=rf"has trials 1 to 8 and 'best'; got '{which}'"):
        small[which]


def test_a_trial_can_be_opened_by_text(small):
    assert open_trial(f"{small.path}@2").trial.trial == 2
    assert open_trial(f"{small.path}@best").trial == open_trial(str(small.path)).trial


def test_a_folder_with_an_at_sign_can_be_named(small, tmp_path):
    shutil.copytree(small.path, tmp_path / "a@b")
    assert open_trial(f"{tmp_path / 'a@b'}@2").trial.trial == 2


def test_the_best_that_can_be_handed_off_may_be_another_than_the_best():
    run = run_of(trial(1, 0.9, 0, handoff=False), trial(2, 0.8, 1))
    assert (run.best.trial.trial, run.best_handoff.trial.trial) == (1, 2)


def test_a_run_without_a_head_to_hand_off_names_those_that_could():
    with pytest.raises(UnknownHead, match=r"no head that can be handed off. Sweep some of: ridge, logreg"):
        assert run_of(trial(1, 0.9, 0, handoff=False)).best_handoff


def test_an_empty_run_says_so():
    with pytest.raises(UnknownHead, match="has no trial with a score: it is empty"):
        assert run_of().best


@pytest.mark.parametrize(
    "options",
    [
        {"grid": {"ridge": {"alpha": [1, 7.5]}, "knn": {"metric": ["euclidean"]}}},
        {"cv": 3, "seed": 4},
        {"shots": 5, "metric": "macro_f1"},
        {"class_weight": "balanced"},
    ],
)
def test_run_json_is_all_that_is_needed_to_repeat_it(options, hard, tmp_path):
    first = sweep(hard, "ridge,knn", taps=[TAP], out=tmp_path / "a", **options)
    settings = json.loads((first.path / "run.json").read_text())["settings"]
    again = sweep(**settings, out=tmp_path / "b")
    assert again.settings == first.settings
    assert [replace(one, fit_s=0) for one in again.trials] == [replace(one, fit_s=0) for one in first.trials]


def test_the_trials_are_a_table_for_a_spreadsheet(small):
    with (small.path / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == [one.trial for one in small.trials]
    assert rows[0]["params"] == "alpha=10000"
    assert [float(row["score"]) for row in rows] == [round(one.score, 4) for one in small.trials]
    assert {row["handoff"] for row in rows if row["head"] == "knn"} == {"False"}


def test_stored_heads_and_refitted_neighbours_predict_as_in_the_sweep(small, hard):
    X, y = hard.arrays("val", TAP)
    for one in Run.open(small.path).trials:
        assert small[one.trial].estimator.score(X, y) == one.score, one
    assert {one.head for one in small.trials} == {"ridge", "knn"}


def test_neighbours_of_a_few_shot_run_are_fitted_on_the_same_few(hard, tmp_path):
    run = sweep(hard, "knn", taps=[TAP], shots=4, out=tmp_path / "few")
    assert len(run.best.estimator[-1]._fit_X) == run.num_train == 12


def test_a_chosen_trial_knows_its_tap(small):
    assert [one.name for one in small.best.taps] == [TAP]


def test_a_run_refuses_a_cache_that_lost_its_tap(hard, tmp_path):
    cache = edited(hard, tmp_path / "c.h5", lambda file: None)
    run = sweep(cache, "ridge", taps=[TAP], out=tmp_path / "run")
    edit(cache.path, lambda file: file["taps"].pop(TAP))
    with pytest.raises(NotARun, match=rf"features of tap '{TAP}' that .*c\.h5 no longer has. Sweep again"):
        assert run.best.taps


def test_a_run_refuses_a_cache_whose_features_were_made_otherwise(copied):
    damage(copied, lambda facts: facts["fingerprints"].update({TAP: "0" * 64}))
    with pytest.raises(NotARun, match=r"no longer has. Sweep again"):
        Run.open(copied.path).cache()


def test_a_run_refuses_a_cache_of_other_classes(hard, tmp_path):
    cache = edited(hard, tmp_path / "c.h5", lambda file: None)
    run = sweep(cache, "ridge", taps=[TAP], out=tmp_path / "run")

    def rename(file):
        labels = file["images/label"][()]
        rewrite(file["images"], "label", np.where(labels == b"red", b"rust", labels))

    edit(cache.path, rename)
    with pytest.raises(NotARun, match=r"was made for other classes than .* has now. Sweep again"):
        run.cache()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(NotARun, match=r"is not the folder of a run \(it has no run\.json\).*featcache sweep CACHE\.h5"):
        Run.open(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"run"', "{}", '{"format": 1}'])
def test_a_damaged_run_json_is_refused_in_one_line(text, copied):
    (copied.path / "run.json").write_text(text)
    with pytest.raises(NotARun, match=r"run\.json"):
        Run.open(copied.path)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.update(format=1),
        lambda facts: facts.update(digest="of a later format"),
        lambda facts: facts.pop("trials"),
        lambda facts: facts.update(settings=[]),
        lambda facts: facts.update(settings=None),
        lambda facts: facts.update(trials=3),
        lambda facts: facts.update(classes=None),
        lambda facts: facts["trials"][0].pop("score"),
        lambda facts: facts["trials"][0].update(surprise=1),
        lambda facts: facts["settings"].pop("cache"),
        lambda facts: facts.update(surprise=1),
    ],
)
def test_a_run_json_that_lacks_something_is_refused(change, copied):
    damage(copied, change)
    with pytest.raises(NotARun, match=r"run\.json is damaged or of another version.*Sweep again"):
        Run.open(copied.path)


def test_a_run_json_of_the_format_before_is_read(copied, small):
    damage(copied, lambda facts: None)
    opened = Run.open(copied.path)
    assert (opened.trials, opened.settings) == (small.trials, small.settings)


def test_a_run_says_what_made_it_and_one_of_format_3_is_read_without(copied, small):
    [maker] = small.makers
    assert maker["versions"]["featcache"] == version("featcache")
    assert maker["cores"] > 0
    facts = json.loads((copied.path / "run.json").read_text())
    del facts["makers"]
    write_sealed(copied.path / "run.json", facts | {"format": 3})
    assert Run.open(copied.path) == replace(small, path=copied.path, makers=())


def test_a_sweep_that_goes_on_elsewhere_names_both_machines(small, copied, hard):
    elsewhere = {**small.makers[0], "processor": "another"}
    replace(copied, trials=copied.trials[:3], makers=(elsewhere,)).save()
    asked = copied.settings
    finished = sweep(hard, asked.heads, taps=asked.taps, out=copied.path)
    assert finished.makers == (elsewhere, *small.makers)
    assert len(finished.trials) == len(small.trials)


def test_a_run_of_a_later_version_says_what_to_do(copied):
    damage(copied, lambda facts: facts.update(format=5))
    with pytest.raises(
        NotARun, match=r"run\.json has format 5; this featcache reads formats up to 4. Update featcache: "
    ):
        Run.open(copied.path)


def test_a_run_json_that_was_edited_says_so(copied):
    path = copied.path / "run.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(NotARun, match=r"run\.json was changed after it was written, or is damaged.*Sweep again"):
        Run.open(copied.path)


@pytest.mark.slow
def test_no_damaged_byte_of_run_json_changes_what_is_read(copied):
    path, want = copied.path / "run.json", Run.open(copied.path)
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        for bit in (1, 2, 16):
            damaged = bytearray(whole)
            damaged[at] ^= bit
            path.write_bytes(damaged)
            with suppress(NotARun):
                assert Run.open(copied.path) == want


@pytest.mark.slow
@pytest.mark.parametrize("which", [1, 8])
def test_no_damaged_byte_of_a_head_or_its_predictions_changes_what_is_read(which, copied, hard):
    X, _ = hard.arrays("val", TAP)
    want = answers(copied[which], X)
    for file in [copied.path / "predictions" / f"{which}.npz", *(copied.path / "heads").glob(f"{which}.*")]:
        whole = file.read_bytes()
        for at in range(0, len(whole), 50):
            for byte in (whole[at] ^ 1, whole[at] ^ 128, whole[at] ^ 255):
                file.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
                with suppress(NotARun, ShapeMismatch):
                    assert answers(copied[which], X) == want
        file.write_bytes(whole)


def answers(chosen, X):
    """Return what a trial predicted in the sweep, and what its head predicts."""
    _, predictions = predictions_on_selection(chosen)
    arrays = [predictions.predicted, predictions.confidence, predictions.loss, chosen.estimator.predict(X)]
    return [None if array is None else array.tolist() for array in arrays]


def test_a_run_that_lost_a_head_is_refused(copied):
    (copied.path / "heads" / "1.npz").unlink()
    with pytest.raises(NotARun, match=r"Cannot read the head .*1\.npz"):
        assert copied[1].estimator


def test_saving_again_keeps_what_was_recorded(copied):
    replace(copied, test_opened=({"at": "now"},)).save()
    assert Run.open(copied.path).test_opened == ({"at": "now"},)


def test_labels_that_changed_since_the_sweep_are_noticed(copied, tmp_path):
    """The names of the classes are the same: only who is what has changed."""
    path = Path(shutil.copy(copied.settings.cache, tmp_path / "c.h5"))
    run = replace(copied, settings=replace(copied.settings, cache=str(path)))
    assert run.cache().path == path

    def swap(file):
        labels = file["images/label"][()]
        swapped = np.where(labels == b"red", b"blue", np.where(labels == b"blue", b"red", labels))
        rewrite(file["images"], "label", swapped)

    edit(path, swap)
    with pytest.raises(NotARun, match=r"c\.h5 has changed since .* was made from it: .*\. Sweep again"):
        run.cache()


def test_a_run_is_a_sequence_of_its_trials_best_first(toy_run):
    trials = list(toy_run)
    assert [chosen.trial for chosen in trials] == list(toy_run.ranked)
    assert trials[0] == toy_run.best
    assert len(toy_run) == len(trials)
