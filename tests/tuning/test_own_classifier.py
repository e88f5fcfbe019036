"""The control `own`: the classifier in a model file of the user's is trained on, where its classes are the images'."""

import keras
import numpy as np
import pytest
from tiny import write_images

from featcache.backbones.noise import all_layers
from featcache.errors import UsageError
from featcache.extraction import extract
from featcache.models import Probe
from featcache.models.certificate import load_pixels
from featcache.sweeps import sweep
from featcache.tuning import finetune

layers = keras.layers
SIZE = 8
HOW = {"unfreeze": "none", "epochs": 8, "learning_rate": 0.05, "optimizer": "sgd", "patience": 8, "controls": "own"}


def classifier(*scores):
    """Return a small model that ends in these layers; its weights are the same each time."""
    model = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.AveragePooling2D(4),
            layers.Flatten(name="flatten_1"),
            layers.Dense(6, activation="relu", name="hidden"),
            layers.Dropout(0.5, seed=0),
            *scores,
        ]
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:
        layer.set_weights([rng.normal(0, 0.3, weight.shape) for weight in layer.get_weights()])
    return model


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("photos"), per_class=20)


@pytest.fixture(scope="module")
def trained():
    """Return the classifier, trained for a moment on other images than those of the tests."""
    model = classifier(layers.Dense(3, activation="softmax", name="scores"))
    rng = np.random.default_rng(1)
    labels = np.arange(300) % 3
    colours = np.array([(40, 60, 200), (50, 180, 60), (200, 40, 50)])[labels] / 255
    pixels = np.clip(colours[:, None, None] + rng.normal(0, 0.5, (300, SIZE, SIZE, 3)), 0, 1)
    model.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
    model.fit(pixels, labels, epochs=2, batch_size=30, shuffle=False, verbose=0)
    return model


def head_on(model, photos, folder, *, tap="flatten_1", options=""):
    """Save a model, fit a head on its features of the photos, and return it with the path of the model."""
    path = folder / "mine.keras"
    model.save(path)
    cache = extract(
        photos, f"{path}:mode=unit{options}", out=folder / "mine.h5", tap=tap, split="60/40", engine="keras"
    )
    return sweep(cache, "centroid", out=folder / "run").best, path


@pytest.fixture(scope="module")
def head(trained, photos, tmp_path_factory):
    """Return a head on the features before the classifier, and the path of the model. Do not change the run."""
    return head_on(trained, photos, tmp_path_factory.mktemp("own"))


@pytest.mark.slow
def test_it_starts_at_the_accuracy_of_the_file_and_trains_on(head, trained, tmp_path):
    chosen, path = head
    tuned = finetune(chosen, tmp_path / "tuned.keras", **HOW)
    own = tuned.controls["own"]

    probe = Probe.open(chosen)
    rows = probe.rows("val")
    labels, pixels = probe.labels(rows), load_pixels(probe.source, rows, probe.preprocess)
    outputs = trained.predict(pixels / 255, verbose=0)
    accuracy = float((outputs.argmax(axis=1) == labels).mean())
    loss = float(-np.log(outputs[np.arange(len(rows)), labels]).mean())
    assert 0.5 < accuracy < 1
    assert own.start.val.value == pytest.approx(accuracy)
    assert own.start.val_loss == pytest.approx(loss, rel=1e-4)
    assert own.best.epoch > 0
    assert own.best.val_loss < loss
    assert [epoch.images for epoch in own.history] == [epoch.images for epoch in tuned.history]
    assert own.prefix == "flatten_1"
    assert not list(chosen.run.path.glob("prefix*"))  # what enters the classifier is in the run's cache
    assert f"{path} states no class names: its outputs are taken in the order of the class names" in own.notes[0]
    assert own.model.predict(pixels, verbose=0).argmax(axis=1).tolist() == own.val_logits.argmax(axis=1).tolist()

    # Layers up to the tap stay as they are, and what is computed once changes nothing.
    whole = finetune(chosen, tmp_path / "whole.keras", prefix=False, **HOW).controls["own"]
    assert whole.prefix == ""
    np.testing.assert_allclose(
        [epoch.val_loss for epoch in own.history], [epoch.val_loss for epoch in whole.history], rtol=1e-4
    )


@pytest.mark.slow
def test_only_layers_behind_the_tap_train(trained, photos, tmp_path):
    chosen, _ = head_on(trained, photos, tmp_path, tap="top")
    own = finetune(chosen, tmp_path / "tuned.keras", prefix=False, **HOW).controls["own"]
    assert own.num_trainable == 6 * 3 + 3
    after = {layer.name: layer.get_weights() for layer in all_layers(own.model)}
    for name, trains in (("hidden", False), ("scores", True)):
        before = trained.get_layer(name).get_weights()
        assert np.array_equal(before[0], after[name][0]) is not trains, name


@pytest.mark.slow
def test_a_model_of_any_size_is_cut_behind_feature_maps(photos, tmp_path):
    conv = [layers.Conv2D(4, 3, activation="relu", name=f"conv_{number}") for number in (1, 2)]
    tail = [layers.GlobalAveragePooling2D(), layers.Dense(3, activation="softmax")]
    model = keras.Sequential([keras.Input((None, None, 3)), *conv, *tail])
    chosen, _ = head_on(model, photos, tmp_path, tap="conv_2", options=":size=8")
    how = HOW | {"unfreeze": "conv_2", "epochs": 1}
    tuned = finetune(chosen, tmp_path / "tuned.keras", **how)
    own = tuned.controls["own"]
    assert (tuned.prefix, own.prefix) == ("conv_1", "conv_2")
    whole = finetune(chosen, tmp_path / "whole.keras", prefix=False, **how).controls["own"]
    assert own.history[-1].val_loss == pytest.approx(whole.history[-1].val_loss, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([5, "softmax"], "the classifier of {} tells 5 classes apart, the images have 3"),
        ([3, "sigmoid"], "{} does not end in one softmax over its classes"),
        ([], "{} ends in no classifier that featcache finds"),
    ],
)
def test_it_is_left_out_with_the_reason(scores, reason, photos, tmp_path):
    model = classifier(*([layers.Dense(*scores)] if scores else []))
    chosen, path = head_on(model, photos, tmp_path)
    tuned = finetune(chosen, tmp_path / "tuned.keras", **HOW | {"epochs": 1})
    assert tuned.controls == {}
    assert tuned.notes == (f"The control 'own' is left out: {reason.format(path)}.",)


def test_it_is_refused_for_a_backbone_that_brings_no_classifier(toy_run, tmp_path):
    with pytest.raises(UsageError, match="`controls='own'` trains the classifier in a model file of yours, so"):
        finetune(toy_run.best, tmp_path / "tuned.keras", **HOW)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_it_is_left_out_where_a_path_leads_around_the_tap(photos, tmp_path):
    """What lies on that path is not behind the tap, and would train, too."""
    pixels = keras.Input((SIZE, SIZE, 3))
    tapped = layers.GlobalAveragePooling2D(name="flatten_1")(layers.Conv2D(4, 3)(pixels))
    around = layers.GlobalMaxPooling2D()(layers.Conv2D(4, 3)(pixels))
    scores = layers.Dense(3, activation="softmax")(layers.Concatenate()([tapped, around]))
    chosen, path = head_on(keras.Model(pixels, scores), photos, tmp_path)
    tuned = finetune(chosen, tmp_path / "tuned.keras", **HOW | {"epochs": 1})
    assert tuned.controls == {}
    [note] = tuned.notes
    assert f"a path in {path} leads around tap 'mine/flatten_1' to the classifier" in note
