"""A user's own model computes in training what it computes in inference, whatever random layers it has inside."""

import keras
import numpy as np
import pytest

from featcache.backbones import own
from featcache.backbones.build import build
from featcache.backbones.noise import freeze_noise, without_noise
from featcache.backbones.parse import requests
from featcache.errors import NotAModel, ParityFailed
from featcache.extraction import extract
from featcache.models import handoff
from featcache.sweeps import sweep
from featcache.tuning import finetune
from featcache.tuning.stages import unfreeze

L = keras.layers
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3)).astype(np.float32)
# What a layer needs to be made, where it is not one factor.
ARGUMENTS = {
    "AugMix": {},
    "AutoContrast": {},
    "CutMix": {},
    "Equalization": {},
    "MixUp": {},
    "RandAugment": {},
    "RandomColorJitter": {"contrast_factor": 0.5},
    "RandomCrop": {"height": 12, "width": 12},
    "RandomFlip": {},
    "RandomPosterization": {"factor": 3},
    "RandomShear": {"x_factor": 0.3},
    "RandomTranslation": {"height_factor": 0.3, "width_factor": 0.3},
    "RandomZoom": {"height_factor": 0.3},
    "Solarization": {"threshold_factor": 0.3},
}
AUGMENTING = sorted({name for name in dir(L) if name.startswith("Random")} | ARGUMENTS.keys())


def augmenting(name):
    return getattr(L, name)(**ARGUMENTS.get(name, {"factor": 0.3}))


@keras.saving.register_keras_serializable("noise")
class DropPath(L.Layer):
    """Leaves paths out, as users write it."""

    def call(self, x, training=None):
        return x * keras.ops.cast(keras.random.uniform((len(PIXELS), 1, 1, 1)) > 0.5, x.dtype) if training else x


@keras.saving.register_keras_serializable("noise")
class Augmenting(L.Layer):
    """Several random layers in one, which hands `training` on without a word."""

    def __init__(self, **how):
        super().__init__(**how)
        self.flip, self.rotate = L.RandomFlip(), L.RandomRotation(0.2)

    def call(self, x):
        return self.rotate(self.flip(x))


@keras.saving.register_keras_serializable("noise")
class Block(L.Layer):
    """A block with dropout and batch normalisation inside."""

    def __init__(self, **how):
        super().__init__(**how)
        self.conv, self.norm, self.drop = L.Conv2D(8, 1), L.BatchNormalization(), L.Dropout(0.5)

    def build(self, shape):
        self.conv.build(shape)
        self.norm.build(shape)
        super().build(shape)

    def call(self, x):
        return x + self.drop(self.norm(self.conv(x)))


@keras.saving.register_keras_serializable("noise")
class Halving(L.Layer):
    """Crops in training, and in inference does something that is not nothing, so nothing stands for it."""

    def call(self, x, training=None):
        return x[:, :4, :4] if training else x / 2


def attended(x):
    tokens = L.Reshape((-1, 8))(x)
    return L.Reshape((7, 7, 8))(L.MultiHeadAttention(2, 4, dropout=0.5, name="noisy")(tokens, tokens))


def remembered(x):
    return L.Reshape((7, 7, 8))(L.LSTM(8, dropout=0.5, return_sequences=True, name="noisy")(L.Reshape((-1, 8))(x)))


def model_with(*, first=None, inside=None, dtype="float32"):
    keras.utils.set_random_seed(3)
    image = keras.Input((16, 16, 3), dtype=dtype)
    x = first(image) if first else image
    x = L.Conv2D(8, 3, strides=2, activation="relu", name="conv")(L.Rescaling(1 / 255)(x))
    x = inside(x) if inside else x
    pooled = L.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, L.Dense(3, activation="softmax", name="classes")(pooled), name="mine")


MODELS = {
    **{name: (lambda kind=name: model_with(first=augmenting(kind))) for name in AUGMENTING},
    "nested": lambda: model_with(first=keras.Sequential([L.RandomFlip(), L.RandomZoom(0.3)], name="noisy")),
    "whole numbers": lambda: model_with(first=L.RandomFlip(), dtype="uint8"),
    "GaussianNoise": lambda: model_with(inside=L.GaussianNoise(0.5, name="noisy")),
    "GaussianDropout": lambda: model_with(inside=L.GaussianDropout(0.5, name="noisy")),
    "AlphaDropout": lambda: model_with(inside=L.AlphaDropout(0.5, name="noisy")),
    "SpatialDropout": lambda: model_with(inside=L.SpatialDropout2D(0.5, name="noisy")),
    "SpectralNormalization": lambda: model_with(inside=L.SpectralNormalization(L.Conv2D(8, 3), name="noisy")),
    "attention": lambda: model_with(inside=attended),
    "recurrent": lambda: model_with(inside=remembered),
    "of the user's": lambda: model_with(inside=DropPath(name="noisy")),
    "several in one": lambda: model_with(first=Augmenting(name="noisy")),
    "sequential": lambda: keras.Sequential(
        [keras.Input((16, 16, 3)), L.RandomFlip(), L.Rescaling(1 / 255), L.Conv2D(4, 3), L.GaussianNoise(0.5)]
    ),
    "a list of inputs": lambda: keras.Model([(image := keras.Input((16, 16, 3)))], L.RandomFlip()(image)),
    "a block": lambda: model_with(inside=Block(name="noisy")),
}


def outputs(model, *, training):
    return keras.ops.convert_to_numpy(model(keras.ops.cast(PIXELS, model.inputs[0].dtype), training=training))


@pytest.mark.parametrize("name", MODELS)
def test_training_sees_what_inference_sees_whatever_is_random_inside(tmp_path, name):
    model = MODELS[name]()
    expected = outputs(model, training=False)
    quiet = without_noise(model)
    freeze_noise(quiet)
    unfreeze(quiet, "all")
    for training in (False, True):
        np.testing.assert_allclose(outputs(quiet, training=training), expected, atol=1e-5)
    assert [layer.name for layer in quiet.layers] == [layer.name for layer in model.layers]


@pytest.mark.slow
def test_what_is_saved_stays_quiet_in_plain_keras(photos, tmp_path):
    first = keras.Sequential([L.RandomFlip(), L.RandomContrast(0.5)], name="augmentation")
    model_with(first=first, inside=attended).save(tmp_path / "own.keras")
    cache = extract(photos, str(tmp_path / "own.keras"), tap="noisy,top", out=tmp_path / "c.h5")
    best = sweep(cache, "ridge", taps=["own/top"], out=tmp_path / "run").best
    assert handoff(best, tmp_path / "head.keras").certificate.passed
    tuned = finetune(best, tmp_path / "tuned.keras", unfreeze="all", epochs=1, patience=1)
    assert tuned.certificate.training < 1e-3
    for name in ("head.keras", "tuned.keras"):
        again = keras.saving.load_model(tmp_path / name)
        images = PIXELS.astype(np.uint8)
        np.testing.assert_allclose(again(images, training=True), again(images, training=False), atol=1e-5)


def test_features_are_known_by_the_model_as_it_is_in_the_file(tmp_path):
    model = model_with(first=L.RandomFlip(), inside=L.SpectralNormalization(L.Conv2D(8, 3)))
    model.save(tmp_path / "own.keras")
    [request] = requests(str(tmp_path / "own.keras"))
    backbone = build(request.spec, 16, "avg")
    assert backbone.architecture == own.architecture(model)
    assert len(backbone.full_model.weights) < len(model.weights)


def test_a_layer_that_changes_sizes_in_training_is_named(photos, tmp_path):
    model_with(inside=Halving(name="halving")).save(tmp_path / "own.keras")
    run = sweep(extract(photos, str(tmp_path / "own.keras"), out=tmp_path / "c.h5"), "ridge", out=tmp_path / "run")
    with pytest.raises(ParityFailed, match=r"The first that diverges: layer 'halving' of .*, in training"):
        handoff(run.best)


def test_layers_that_need_the_crop_are_refused_in_one_line(tmp_path):
    image = keras.Input((16, 16, 3))
    flat = L.Flatten()(L.RandomCrop(12, 12, name="crop")(L.Rescaling(1 / 255)(image)))
    keras.Model(image, L.Dense(3, activation="relu")(flat), name="mine").save(tmp_path / "own.keras")
    [request] = requests(str(tmp_path / "own.keras"))
    with pytest.raises(NotAModel, match=r"^The model 'mine' cannot be built without its random layers \(crop\), which"):
        build(request.spec, 16, "avg")
