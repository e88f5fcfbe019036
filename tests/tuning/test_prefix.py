"""The frozen part computed once gives what training the whole gives."""

import json
import shutil
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
from tiny import TOY

from featcache import files
from featcache.cache.reader import Cache
from featcache.errors import DiskFault, NotACache, ParityFailed, UsageError
from featcache.extraction import extract
from featcache.extraction.engines import KerasEngine
from featcache.models import Probe, handoff, load_model
from featcache.models.assemble import backbones_of, logits_of
from featcache.sweeps import Run, sweep
from featcache.tuning import finetune, finetuning, prefix
from featcache.tuning.data import ActivationSet
from featcache.tuning.precision import twin_of
from featcache.tuning.stages import unfreeze
from featcache.tuning.state import TrainingState
from featcache.tuning.tuned import record_of

HOW = {"epochs": 2, "learning_rate": 1e-3, "patience": 9, "batch": 16}


@pytest.fixture
def fresh(weak, tmp_path):
    """Return the head in a run of its own, which has no activations yet."""
    return Run.open(shutil.copytree(weak.run.path, tmp_path / "own.run", ignore=shutil.ignore_patterns("prefix*")))[
        weak.trial.trial
    ]


SLOW = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize(
    "what", ["last", *(pytest.param(one, marks=SLOW) for one in ("none", "block_3", "3", "gradual:block_3"))]
)
def test_the_same_weights_come_out_as_of_training_the_whole(what, fresh, tmp_path):
    whole = finetune(fresh, tmp_path / "w.keras", unfreeze=what, prefix=False, **HOW)
    parts = finetune(fresh, tmp_path / "p.keras", unfreeze=what, **HOW)
    assert (whole.prefix == "", parts.prefix != "") == (True, True)
    for one, other in zip(whole.model.get_weights(), parts.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    losses = [[one.val_loss for one in tuned.history] for tuned in (whole, parts)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.slow
def test_what_is_frozen_goes_through_the_backbone_once(fresh, tmp_path, monkeypatch):
    seen = []
    forward = KerasEngine.forward
    monkeypatch.setattr(KerasEngine, "forward", lambda self, batch: seen.append(len(batch)) or forward(self, batch))
    images = len(fresh.run.rows(fresh.run.cache(), "train")) + len(fresh.run.rows(fresh.run.cache(), "val"))
    finetune(fresh, tmp_path / "a.keras", unfreeze="last", **HOW)
    computed = sum(seen)
    assert images <= computed <= images + 3 * 64  # and what it took to choose a batch
    finetune(fresh, tmp_path / "b.keras", unfreeze="last", **HOW | {"learning_rate": 1e-4})
    assert sum(seen) == computed


@pytest.mark.slow
def test_activations_are_a_cache_like_any_other(fresh, tmp_path):
    tuned = finetune(fresh, tmp_path / "a.keras", unfreeze="last", **HOW)
    cache = Cache.open(fresh.run.path / "prefix.h5")
    [tap] = cache.taps.values()
    assert (tap.layer, tap.pooling) == (tuned.prefix, "none")
    cache.check(tap.name)
    whole = cache.path.read_bytes()
    with h5py.File(cache.path, "r+") as file:
        features = next(one for one in _datasets(file) if one.name.endswith("features"))
        features[0] = features[0] + 1
    with pytest.raises(NotACache, match=r"prefix\.h5 is damaged: the rows of tap"):
        cache.check(tap.name)
    notes = []
    finetune(fresh, tmp_path / "b.keras", unfreeze="last", **HOW, progress=lambda tick: notes.append(tick.note))
    assert any("prefix.h5 is damaged: its" in note for note in notes)
    assert cache.path.read_bytes() == whole


def _datasets(group):
    for one in group.values():
        if isinstance(one, h5py.Dataset):
            yield one
        else:
            yield from _datasets(one)


@pytest.mark.slow
def test_nothing_is_cut_where_the_first_layers_train_or_views_are_new(fresh, tmp_path):
    assert finetune(fresh, tmp_path / "a.keras", unfreeze="all", **HOW | {"epochs": 1}).prefix == ""
    assert finetune(fresh, tmp_path / "b.keras", augment="light", **HOW | {"epochs": 1}).prefix == ""
    assert not list(fresh.run.path.glob("prefix*"))


@pytest.mark.slow
def test_a_number_of_augmented_views_is_computed_once_and_is_what_training_the_whole_sees(fresh, tmp_path):
    how = HOW | {"augment": "strong", "views": 3, "unfreeze": "last"}
    whole = finetune(fresh, tmp_path / "w.keras", prefix=False, **how)
    parts = finetune(fresh, tmp_path / "p.keras", **how)
    np.testing.assert_allclose(
        [one.train_loss for one in parts.history[1:]], [one.train_loss for one in whole.history[1:]], rtol=1e-3
    )
    taps = Cache.open(fresh.run.path / "prefix-strong.h5").taps.values()
    assert sorted(tap.view for tap in taps) == ["strong-1", "strong-2", "strong-3"]


@pytest.mark.slow
def test_several_taps_and_backbones_are_each_cut(toy, tmp_path):
    cache = extract(toy.root, [TOY, f"{TOY}:seed=5"], tap="block_1_relu,top", out=tmp_path / "two.h5")
    names = list(cache.taps)
    run = sweep(cache, "logreg", taps=["+".join([names[1], names[2], names[0]])], out=tmp_path / "run")
    whole = finetune(run.best, tmp_path / "w.keras", unfreeze="last", prefix=False, **HOW)
    parts = finetune(run.best, tmp_path / "p.keras", unfreeze="last", **HOW)
    assert parts.certificate.passed
    for one, other in zip(whole.model.get_weights(), parts.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_part_that_trains_shares_its_weights_with_the_whole(weak):
    probe = Probe.open(weak)
    parts = probe.parts()
    model = probe.model(parts)
    unfreeze(backbones_of(model)[0], "last")
    found = prefix.cut(model, parts, probe.tap_names)
    inside = {id(weight) for weight in logits_of(model).weights}
    assert all(id(weight) in inside for weight in found.model.weights)
    trains = {id(weight) for weight in model.trainable_weights}
    assert {id(weight) for weight in found.model.trainable_weights} == trains


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["train", "val"])
def test_a_part_that_is_not_that_of_the_whole_is_caught_before_anything_trains(broken, fresh, tmp_path, monkeypatch):
    num_broken = len(fresh.run.rows(fresh.run.cache(), broken))

    def shifted(views, labels, seed, unchanged=None):
        shift = 0.1 * (len(labels) == num_broken)
        return ActivationSet([[array + shift for array in view] for view in views], labels, seed)

    monkeypatch.setattr(prefix, "ActivationSet", shifted)
    monkeypatch.setattr(finetuning, "train", lambda *args: pytest.fail("training began"))
    with pytest.raises(ParityFailed, match=r"The part that would train differs by .* `prefix=False`"):
        finetune(fresh, tmp_path / "a.keras", unfreeze="last", **HOW)
    assert not (tmp_path / "a.keras").exists()


def test_a_full_disk_leaves_what_was_there(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr("featcache.extraction.space.free_bytes", lambda out: 1000)
    with pytest.raises(DiskFault, match=r"prefix\.h5 would need .* MB"):
        finetune(fresh, tmp_path / "a.keras", unfreeze="last", **HOW)
    assert (tmp_path / "a.keras").exists() is False


@pytest.mark.slow
def test_large_activations_lie_on_the_disk(fresh, tmp_path, monkeypatch):
    expected = finetune(fresh, tmp_path / "a.keras", unfreeze="last", **HOW)
    made = []
    monkeypatch.setattr(prefix, "physical_memory", lambda: 1)
    monkeypatch.setattr(prefix.np, "memmap", lambda *a, **k: made.append(1) or _memmap(*a, **k))
    found = finetune(fresh, tmp_path / "b.keras", unfreeze="last", **HOW)
    assert made
    assert [one.val_loss for one in found.history] == [one.val_loss for one in expected.history]


_memmap = np.memmap


@pytest.mark.slow
def test_controls_train_on_the_same_images_for_as_many_epochs(fresh, tmp_path):
    tuned = finetune(fresh, tmp_path / "a.keras", unfreeze="last", controls="frozen,unfrozen,scratch", **HOW)
    assert list(tuned.controls) == ["frozen", "unfrozen", "scratch"]
    for name, control in tuned.controls.items():
        assert [one.epoch for one in control.history] == [0, 1, 2]
        assert [one.images for one in control.history] == [one.images for one in tuned.history]
        assert control.path is None
        assert (control.num_trainable == 0) == (name == "frozen")
    assert tuned.controls["frozen"].start.val_loss == pytest.approx(tuned.start.val_loss, rel=1e-4)
    record = record_of(fresh.run.path, tuned.path)
    before = json.loads(record.read_text())
    assert list(before["controls"]) == list(tuned.controls)
    finetune(fresh, tmp_path / "a.keras", unfreeze="last", **HOW)  # is shown again, without its controls
    assert json.loads(record.read_text())["controls"] == before["controls"]
    with pytest.raises(UsageError, match=r"`controls` takes frozen, unfrozen, scratch, own; got 'frozn'"):
        finetune(fresh, tmp_path / "b.keras", controls="frozn")


@pytest.mark.slow
def test_controls_that_were_stopped_go_on_and_give_the_same(fresh, tmp_path, monkeypatch):
    how = HOW | {"unfreeze": "last", "controls": "frozen,scratch"}
    whole = finetune(fresh, tmp_path / "w.keras", **how)

    def stopped(self, path):
        save(self, path)
        if path.name == "k.scratch.state":
            raise KeyboardInterrupt

    save = TrainingState.save
    monkeypatch.setattr(TrainingState, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        finetune(fresh, tmp_path / "k.keras", **how)
    trained = []
    monkeypatch.setattr(TrainingState, "save", lambda self, path: trained.append((path.name, len(self.history))))
    found = finetune(fresh, tmp_path / "k.keras", resume=True, **how)
    assert trained == [("k.scratch.state", 3)]  # two epochs and the start: only the last was missing
    for name, control in whole.controls.items():
        assert [one.val_loss for one in found.controls[name].history] == [one.val_loss for one in control.history]
        assert np.array_equal(found.controls[name].val_logits, control.val_logits)


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, pytest.param(False, marks=SLOW)])
def test_a_fine_tuning_that_was_killed_goes_on_bit_equal(cached, fresh, tmp_path):
    how = HOW | {"epochs": 4, "unfreeze": "last", "augment": "light", "views": 2, "prefix": cached, "lr_decay": 0.5}
    how |= {"head_lr": 1e-2}
    whole = finetune(fresh, tmp_path / "w.keras", **how)
    script = (
        "import os; from featcache.sweeps import Run; from featcache.tuning import finetune\n"
        "from featcache.tuning.state import TrainingState; save = TrainingState.save\n"
        "def dying(self, path):\n    save(self, path)\n    len(self.history) == 3 and os.kill(os.getpid(), 9)\n"
        f"TrainingState.save = dying; finetune(Run.open({str(fresh.run.path)!r})[{fresh.trial.trial}], "
        f"{str(tmp_path / 'k.keras')!r}, **{how!r})"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    found = finetune(fresh, tmp_path / "k.keras", resume=True, **how)
    assert [one.val_loss for one in found.history] == [one.val_loss for one in whole.history]
    for one, other in zip(whole.model.get_weights(), found.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_state_of_another_training_is_refused(fresh, tmp_path):
    path = tmp_path / "a.keras"
    with pytest.raises(UsageError, match=r"There is nothing to go on with at .*a\.state\. Leave `resume` out"):
        finetune(fresh, path, resume=True, **HOW)
    finetune(fresh, path, **HOW)
    path.unlink()
    with pytest.raises(UsageError, match=r"another training: its learning_rate is 0\.001, not 0\.1"):
        finetune(fresh, path, resume=True, **HOW | {"learning_rate": 0.1})
    (tmp_path / "a.state").write_bytes(b"PK no")
    with pytest.raises(Exception, match=r"a\.state cannot be read"):
        finetune(fresh, path, resume=True, **HOW)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("float16", marks=SLOW)])
def test_at_reduced_precision_it_trains_and_the_model_stays_float32(precision, fresh, tmp_path):
    tuned = finetune(fresh, tmp_path / "a.keras", unfreeze="last", precision=precision, **HOW)
    assert tuned.best.val.value >= tuned.start.val.value
    assert tuned.history[1].val_loss != tuned.start.val_loss
    assert {layer.dtype_policy.name for layer in tuned.model._flatten_layers()} == {"float32"}
    other = finetune(fresh, tmp_path / "b.keras", unfreeze="last", **HOW)
    # Half precision moves logits by up to 1e-2, so a loss near 0 by some thousandths.
    assert tuned.history[-1].val_loss == pytest.approx(other.history[-1].val_loss, rel=0.1, abs=0.005)


@pytest.mark.slow
def test_logs_are_what_tensorboard_reads(fresh, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tuned = finetune(fresh, tmp_path / "a.keras", logs=tmp_path / "logs", **HOW)
    events = EventAccumulator(str(tmp_path / "logs"), size_guidance={"tensors": 0})
    events.Reload()
    found = [float(one.tensor_proto.float_val[0]) for one in events.Tensors("accuracy/val")]
    np.testing.assert_allclose(found, [one.val.value for one in tuned.trained], rtol=1e-6)


@pytest.mark.slow
def test_the_parity_of_the_result_is_that_of_its_file(fresh, tmp_path):
    tuned = finetune(fresh, tmp_path / "a.keras", unfreeze="last", **HOW)
    facts = json.loads(__import__("zipfile").ZipFile(tuned.path).read("featcache.json"))
    assert facts["finetuned"]["unfreeze"] == "last"
    assert facts["certificate"] == vars(tuned.certificate)
    assert handoff(fresh).certificate.inference == pytest.approx(tuned.certificate.inference, abs=1e-5)
    assert finetuning.NUM_CHECKED >= 32


@pytest.mark.slow
def test_a_full_disk_while_training_leaves_model_and_state_of_the_epoch_before(fresh, tmp_path, monkeypatch):
    writes, write = [0], files.os.write

    def filling(descriptor, data):
        writes[0] += 1
        if (tmp_path / "a.state").exists():
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(files.os, "write", filling)
    with pytest.raises(DiskFault, match=r"No space left|full"):
        finetune(fresh, tmp_path / "a.keras", unfreeze="last", **HOW | {"epochs": 6})
    monkeypatch.undo()
    assert writes[0] > 1
    load_model(tmp_path / "a.keras")
    found = finetune(fresh, tmp_path / "a.keras", unfreeze="last", **HOW | {"epochs": 6})
    whole = finetune(fresh, tmp_path / "w.keras", unfreeze="last", **HOW | {"epochs": 6})
    assert [one.val_loss for one in found.history] == [one.val_loss for one in whole.history]


@pytest.mark.slow
def test_a_disk_without_room_for_them_is_named(fresh, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prefix, "physical_memory", lambda: 1)
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(
        DiskFault, match=r"no room for .* MB of activations \(No space left on device\)\. .*`prefix=False`"
    ):
        finetune(fresh, tmp_path / "a.keras", unfreeze="last", **HOW)


@pytest.mark.slow
def test_with_augmented_views_training_images_are_not_computed_as_they_are(fresh, tmp_path):
    finetune(fresh, tmp_path / "a.keras", augment="light", views=2, **HOW)
    val = fresh.run.rows(fresh.run.cache(), "val")
    assert {row.digest for row in Cache.open(fresh.run.path / "prefix.h5").rows} == {row.digest for row in val}


@pytest.mark.slow
def test_the_same_command_again_keeps_the_better_model_and_trains_nothing(fresh, tmp_path, monkeypatch):
    first = finetune(fresh, tmp_path / "a.keras", unfreeze="last", **HOW)
    (tmp_path / "a.keras").unlink()
    monkeypatch.setattr(keras.Model, "train_on_batch", lambda *args, **options: pytest.fail("it trains"))
    again = finetune(fresh, tmp_path / "a.keras", unfreeze="last", **HOW)
    assert [one.val_loss for one in again.history] == [one.val_loss for one in first.history]
    model, _ = load_model(tmp_path / "a.keras")
    for one, other in zip(model.get_weights(), first.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_the_state_of_another_run_of_the_same_name_is_none_of_this(fresh, toy, tmp_path):
    finetune(fresh, tmp_path / "a.keras", unfreeze="last", **HOW)
    (tmp_path / "a.keras").unlink()
    other = sweep(toy, "logreg", taps=["glyphnet:weights=none/top"], shots=5, out=tmp_path / "x" / "own.run")
    chosen = other[fresh.trial.trial] if fresh.trial.trial <= len(other.trials) else other.best
    with pytest.raises(UsageError, match=r"a\.state is the state of another training: its (start|trial)"):
        finetune(chosen, tmp_path / "a.keras", unfreeze="last", resume=True, **HOW)
    clean = finetune(chosen, tmp_path / "b.keras", unfreeze="last", **HOW)
    found = finetune(chosen, tmp_path / "a.keras", unfreeze="last", **HOW)
    assert [one.val_loss for one in found.history] == [one.val_loss for one in clean.history]


@pytest.mark.parametrize(
    "how", [pytest.param(one, marks=SLOW) for one in ({"prefix": False}, {"unfreeze": "all"}, {"augment": "light"})]
)
def test_at_reduced_precision_the_whole_trains_too(how, fresh, tmp_path):
    tuned = finetune(fresh, tmp_path / "a.keras", precision="bfloat16", **HOW | how)
    assert tuned.history[1].val_loss != tuned.start.val_loss


@pytest.mark.slow
def test_heads_of_other_layers_stay_in_float32_at_reduced_precision(toy, tmp_path):
    run = sweep(toy, "rbf,gnb", taps=["glyphnet:weights=none/top"], out=tmp_path / "run")
    for head in ("rbf", "gnb"):
        trial = next(one for one in run.ranked if one.head == head)
        tuned = finetune(run[trial.trial], tmp_path / f"{head}.keras", precision="bfloat16", **HOW | {"epochs": 1})
        assert tuned.trained
    twin = twin_of(logits_of(tuned.model), "bfloat16")
    heads = [layer for layer in twin.layers if layer.name.startswith(("head_", "logits"))]
    assert {layer.dtype_policy.name for layer in heads if isinstance(layer, keras.layers.Layer)} == {"float32"}
    assert "mixed_bfloat16" in {layer.dtype_policy.name for layer in twin._flatten_layers()}


@pytest.mark.slow
def test_a_model_with_normalisation_inside_a_model_inside_is_tuned(toy, tmp_path):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inner = keras.Sequential([keras.Input((16, 16, 4)), layers.Conv2D(4, 3), layers.BatchNormalization()], name="inner")
    image = keras.Input((16, 16, 3))
    x = inner(layers.Conv2D(4, 3, padding="same")(layers.Rescaling(1 / 255)(image)))
    x = layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(layers.Conv2D(5, 3, name="late")(x)))
    model = keras.Model(image, x)
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.1, 0.5, value.shape) for value in model.get_weights()])
    model.save(tmp_path / "mine.keras")
    cache = extract(toy.root, str(tmp_path / "mine.keras"), out=tmp_path / "c.h5")
    run = sweep(cache, "logreg", out=tmp_path / "run")
    for what in ("inner", "late", "all"):
        tuned = finetune(run.best, tmp_path / f"{what}.keras", unfreeze=what, **HOW | {"epochs": 1})
        assert tuned.certificate.passed
        assert tuned.num_trainable > 0
