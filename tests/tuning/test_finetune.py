import json
import math
import shutil
import zipfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from featcache.backbones.noise import all_layers
from featcache.errors import DataError, UnknownBlock, UsageError
from featcache.files import file_digest, read_arrays
from featcache.images.sources import open_source
from featcache.models import Probe, load_model
from featcache.models.assemble import backbones_of, head_layers
from featcache.models.certificate import load_pixels
from featcache.models.modelfile import read_reference
from featcache.models.reference import reference_of_head, reference_of_model
from featcache.sweeps import Run, compare, sweep
from featcache.sweeps.metrics import Score, score
from featcache.sweeps.records import predictions_of, read_record
from featcache.tuning import finetune, finetuning, from_scratch
from featcache.tuning.finetuning import note_on_fit
from featcache.tuning.train import Epoch
from featcache.tuning.training_recipe import Recipe
from featcache.tuning.tuned import record_of

scratching = import_module("featcache.tuning.scratch")


def weights_of(model):
    """Return {layer: its weights}, head and backbone."""
    layers = [*all_layers(backbones_of(model)[0]), *head_layers(model)]
    return {layer.name: layer.get_weights() for layer in layers if layer.weights}


def changed(before, after):
    return {name for name in before if any((a != b).any() for a, b in zip(before[name], after[name], strict=True))}


@pytest.fixture(scope="module")
def last(weak, tmp_path_factory):
    """Return a head that was fine-tuned with its last block for a few epochs. Do not change it."""
    path = tmp_path_factory.mktemp("last") / "tuned.keras"
    return finetune(weak, path, unfreeze="last", epochs=3, learning_rate=1e-3, patience=3, batch=32)


def test_its_predictions_on_validation_lie_beside_its_record_and_go_with_it(last, weak, tmp_path):
    record = record_of(weak.run.path, last.path)
    stored = read_arrays(predictions_of(record))
    assert read_record(record)["predictions"] == file_digest(predictions_of(record))
    assert stored["predicted"].tolist() == last.val_logits.argmax(axis=1).tolist()
    cache = weak.run.cache()
    assert stored["loss"].mean() == pytest.approx(last.best.val_loss)
    assert len(stored["confidence"]) == len(weak.run.rows(cache, "val"))
    copied = Path(shutil.copytree(weak.run.path, tmp_path / "run"))
    sweep(cache, "centroid", taps=[weak.trial.tap], out=copied, force=True)
    assert list((copied / "tuned").iterdir()) == []


def test_the_file_tells_strange_images_by_its_own_features_not_by_those_of_the_start(last, weak):
    probe = Probe.open(weak)
    kept, now = read_reference(last.path), reference_of_model(last.model, probe)
    np.testing.assert_allclose(kept.seen, now.seen, atol=1e-4)
    assert np.abs(kept.directions - reference_of_head(probe).directions).max() > 1e-2


@pytest.mark.slow
def test_an_absurd_learning_rate_gives_back_the_head_itself(perfect, tmp_path):
    tuned = finetune(perfect, tmp_path / "tuned.keras", unfreeze="last", epochs=2, learning_rate=1e3)
    assert (tuned.best.epoch, tuned.best.val.value) == (0, 1.0)
    assert len(tuned.history) > 1
    assert max(one.val.value for one in tuned.history[1:]) < 1
    assert not changed(weights_of(Probe.open(perfect).model()), weights_of(tuned.model))


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({}, "Try `unfreeze='all'`, `augment='light'`, a larger `learning_rate` or `label_smoothing=0.1`"),
        ({"unfreeze": "all", "augment": "strong"}, "Try a larger `learning_rate` or `label_smoothing=0.1`"),
    ],
)
def test_a_head_that_fits_every_training_image_is_named_with_what_to_try(options, advice):
    recipe, start = Recipe(**options), Score(0.9, 0.8, 1.0)
    note = note_on_fit(recipe, Epoch(1, 1.2e-5, 0.1, start, 1.0))
    assert "The head already fits the training images (training loss 1.2e-05 in epoch 1)" in note
    assert note.endswith(advice)
    for other in (Epoch(1, 1e-3, 0.1, start, 1.0), Epoch(2, 1.2e-5, 0.1, start, 1.0)):
        assert note_on_fit(recipe, other) == ""


@pytest.mark.slow
def test_that_it_fits_is_told_after_the_first_epoch_and_at_the_end(perfect, tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning, "TINY_LOSS", math.inf)
    ticks = []
    tuned = finetune(perfect, tmp_path / "t.keras", unfreeze="none", epochs=2, controls="frozen", progress=ticks.append)
    told = [tick.note for tick in ticks if "already fits" in tick.note]
    assert tuned.notes == (f"{told[0]}.",)
    assert len(told) == 1  # the control trains for comparison only
    assert tuned.controls["frozen"].notes == ()


def test_epoch_0_is_the_head_and_its_score_is_that_of_the_sweep(last, weak):
    assert last.start.epoch == 0
    assert last.start.val.value == weak.trial.score


def test_it_gets_better_and_the_best_epoch_is_the_argmax(last):
    assert last.best.val.value > last.start.val.value
    assert last.best == max(last.history, key=lambda one: (one.val.value, -one.val_loss))


def test_only_what_was_unfrozen_has_changed(last, weak):
    before, after = weights_of(Probe.open(weak).model()), weights_of(last.model)
    moved = {"block_4_a_conv", "block_4_b_conv", "block_4_shortcut_conv", "out_conv", "logits"}
    assert changed(before, after) == moved
    assert last.num_trainable == sum(before[name][0].size for name in moved if name != "logits")


def test_normalisation_keeps_its_statistics(last, weak):
    before, after = weights_of(Probe.open(weak).model()), weights_of(last.model)
    names = [name for name in before if name.endswith("_bn")]
    assert len(names) > 5
    assert not changed({name: before[name] for name in names}, after)


def test_the_file_holds_the_best(last):
    model, facts = load_model(last.path)
    assert not changed(weights_of(last.model), weights_of(model))
    assert facts["finetuned"]["unfreeze"] == "last"
    assert facts["finetuned"]["learning_rate"] == 1e-3
    assert facts["classes"] == ["blue", "green", "red"]
    assert facts["certificate"]["training"] == last.certificate.training
    with zipfile.ZipFile(last.path) as archive:
        json.loads(archive.read("featcache.json"), parse_constant=pytest.fail)  # JSON that every reader takes


def test_the_model_has_the_score_that_is_claimed(last, weak):
    cache = weak.run.cache()
    rows = weak.run.rows(cache, "val")
    predicted = last.model.predict_on_batch(load_pixels(open_source(cache.root), rows, weak.preprocess)).argmax(axis=1)
    assert score(cache.labels(rows), predicted) == last.best.val


@pytest.mark.slow
def test_one_seed_makes_two_fine_tunings_equal(weak, last, tmp_path):
    again = finetune(weak, tmp_path / "t.keras", unfreeze="last", epochs=3, learning_rate=1e-3, patience=3, batch=32)
    assert [one.val_loss for one in again.history] == [one.val_loss for one in last.history]
    assert not changed(weights_of(last.model), weights_of(again.model))


@pytest.mark.slow
def test_with_nothing_unfrozen_only_the_head_trains(weak, tmp_path):
    tuned = finetune(weak, tmp_path / "t.keras", unfreeze="none", epochs=2, learning_rate=1e-3)
    assert changed(weights_of(Probe.open(weak).model()), weights_of(tuned.model)) == {"logits"}
    assert tuned.num_trainable == 0


@pytest.mark.slow
def test_without_a_file_the_model_lies_in_the_run(toy_run, tmp_path):
    copied = Run.open(shutil.copytree(toy_run.path, tmp_path / "run"))
    tuned = finetune(copied[8], unfreeze="none", epochs=1)
    assert tuned.path == copied.path / "finetuned.keras"
    assert tuned.path.exists()


def test_an_unknown_block_is_refused_with_near_names_and_nothing_is_written(perfect, tmp_path):
    with pytest.raises(UnknownBlock, match=r"block_44.*block_4"):
        finetune(perfect, tmp_path / "t.keras", unfreeze="block_44")
    assert not list(tmp_path.iterdir())


def test_an_unknown_block_is_refused_before_a_head_is_taught(toy_run, tmp_path, monkeypatch):
    knn = next(toy_run[trial.trial] for trial in toy_run.trials if trial.head == "knn")
    monkeypatch.setattr("featcache.models.probe.distilled", lambda *of: pytest.fail("a head was taught"))
    with pytest.raises(UnknownBlock, match=r"No block or layer 'block_44'"):
        finetune(knn, tmp_path / "t.keras", unfreeze="block_44")
    with pytest.raises(UsageError, match=r"`unfreeze` takes up to \d+ layers of this backbone; got 999"):
        finetune(knn, tmp_path / "t.keras", unfreeze=999)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "`learning_rate` takes a number above 0; got 0.0"),
        ({"learning_rate": -1e-3}, "`learning_rate` takes a number above 0; got -0.001"),
        ({"learning_rate": np.nan}, "`learning_rate` takes a number above 0; got nan"),
        ({"learning_rate": np.inf}, "`learning_rate` takes a number above 0; got inf"),
        ({"epochs": 0}, "`epochs` takes a number from 1; got 0"),
        ({"batch": 0}, "`batch` takes a number from 1; got 0"),
        ({"patience": 0}, "`patience` takes a number from 1; got 0"),
        ({"class_weight": "yes"}, "`class_weight` takes balanced; got 'yes'"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused(options, message, perfect, tmp_path):
    with pytest.raises(UsageError, match=message):
        finetune(perfect, tmp_path / "t.keras", **options)


@pytest.mark.slow
def test_neighbours_are_taught_to_a_dense_head_and_that_is_tuned(toy_run, tmp_path):
    knn = next(toy_run[trial.trial] for trial in toy_run.trials if trial.head == "knn")
    tuned = finetune(knn, tmp_path / "t.keras", epochs=1)
    assert tuned.certificate.distilled >= 0.9
    assert tuned.best.val.value >= tuned.start.val.value


def test_without_validation_images_nothing_can_be_judged(perfect, tmp_path, monkeypatch):
    keep, cache = type(perfect.run).rows, perfect.run.cache()
    monkeypatch.setattr(
        type(perfect.run), "rows", lambda run, cache, split: [] if split == "val" else keep(run, cache, split)
    )
    monkeypatch.setattr(type(perfect.run), "cache", lambda run: cache)
    with pytest.raises(DataError, match="has no validation images, so nothing can tell"):
        finetune(perfect, tmp_path / "t.keras")


@pytest.fixture
def scratch(weak, monkeypatch):
    """Return what one epoch from scratch gives, whether it was better or not, and which layers it changed."""
    monkeypatch.setattr(import_module("featcache.tuning.train").Epoch, "better_than", lambda one, other: True)
    before = {}

    def noting(*parts):
        model = assemble(*parts)
        before.update(weights_of(model))
        return model

    assemble = scratching.assemble
    monkeypatch.setattr(scratching, "assemble", noting)
    tuned = from_scratch(weak, max_seconds=1e9, epochs=1, learning_rate=1e-2, seed=5)
    return tuned, before


@pytest.mark.slow
def test_from_scratch_starts_at_random_and_trains_everything(weak, scratch):
    tuned, before = scratch
    start, after = weights_of(Probe.open(weak).model()), weights_of(tuned.model)
    assert set(start) == set(after)
    assert {name for name in start if not name.endswith("_bn")} <= changed(start, before)
    assert changed(before, after) == set(after)  # the statistics of batch normalisation too
    assert tuned.num_trainable == backbones_of(tuned.model)[0].count_params()
    assert (tuned.certificate, tuned.path) == (None, None)


@pytest.mark.slow
def test_training_from_scratch_is_a_fair_control(tuned_run):
    """Moving statistics of batch normalisation that lag behind would judge a good network by its first guess."""
    chosen = tuned_run.best_handoff
    found = from_scratch(chosen, max_seconds=math.inf, epochs=12)
    assert found.best.val.value > 0.7  # three colours: chance is .33
    again = from_scratch(chosen, max_seconds=math.inf, epochs=1)
    assert again.start.val_loss == found.start.val_loss


def test_head_and_tuned_model_are_compared_on_the_same_images(last, weak, toy_run):
    found = compare(weak, last)
    assert found.scores == (weak.trial.score, last.best.val.value)
    assert found.b == str(last.path)
    assert found.difference < 0
    assert found.images == len(weak.run.rows(weak.run.cache(), "val"))
    assert compare(last, weak).difference == -found.difference
    with pytest.raises(UsageError, match="Both are"):
        compare(last, last)


@pytest.mark.slow
def test_a_finished_training_that_is_shown_again_says_why_it_ended_and_how_long_it_took(perfect, tmp_path):
    path = tmp_path / "tuned.keras"
    first = finetune(perfect, path, unfreeze="none", epochs=3, patience=1, learning_rate=1.0)
    recorded = read_record(record_of(perfect.run.path, path))
    again = finetune(perfect, path, unfreeze="none", epochs=3, patience=1, learning_rate=1.0)
    assert again.history == first.history
    assert again.stopped == first.stopped == "no better validation score for 1 epoch in a row"
    assert read_record(record_of(perfect.run.path, path))["seconds"] == recorded["seconds"]
