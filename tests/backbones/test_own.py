"""A user's own model is a backbone, its pixels enter as it says or as the user says, and code in a file is not run."""

import importlib
import json
import linecache
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from tiny import write_images

from featcache.backbones import own
from featcache.backbones.build import build, entering
from featcache.backbones.parse import requests
from featcache.cache.reader import Cache
from featcache.errors import NotAModel, UnknownBlock, UsageError
from featcache.extraction import extract
from featcache.images.decode import decode
from featcache.models import handoff
from featcache.spec import Preprocess
from featcache.sweeps import sweep
from featcache.tuning import finetune


def network(size=16, *, rescaling=False, dtype="float32", classes=3):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Rescaling(1 / 255)] if rescaling else []
    layers += [
        keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="early"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Conv2D(12, 3, activation="relu", name="late"),
        keras.layers.GlobalAveragePooling2D(name="pool"),
        keras.layers.Dense(10, activation="relu", name="hidden"),
        keras.layers.Dropout(0.5, name="drop"),
        keras.layers.Dense(classes, activation="softmax", name="classifier"),
    ]
    return keras.Sequential([keras.Input((size, size, 3), dtype=dtype), *layers], name="mine")


@pytest.fixture
def path(tmp_path):
    keras.backend.clear_session()
    network().save(tmp_path / "mine.keras")
    return tmp_path / "mine.keras"


def built(text, precision="float32", **flags):
    [request] = requests(text, **flags)
    return build(request.spec, request.preprocess.size, request.pooling, precision)


def expected(photos, cache, layer, scale):
    """Return what plain Keras says of these images."""
    model = network()
    cut = keras.Model(model.inputs, model.get_layer(layer).output)
    preprocess = cache.tap(f"mine/{layer}" if f"mine/{layer}" in cache.taps else None).preprocess
    pixels = np.stack([decode((photos / row.path).read_bytes(), preprocess) for row in cache.rows])
    return cut.predict(scale(pixels.astype(np.float32)), verbose=0)


def test_the_features_are_what_enters_the_classifier(photos, path, tmp_path):
    cache = extract(photos, f"{path}:mode=tf", out=tmp_path / "c.h5")
    assert list(cache.taps) == ["mine/top"]
    found = cache.features(cache.rows)
    assert np.allclose(found, expected(photos, cache, "hidden", lambda x: x / 127.5 - 1), atol=1e-5)


def test_named_layers_are_taps(photos, path, tmp_path):
    cache = extract(photos, f"{path}:mode=unit", tap="early,late", out=tmp_path / "c.h5")
    late = cache.features(cache.rows, "mine/late")
    assert np.allclose(late, expected(photos, cache, "late", lambda x: x / 255).mean(axis=(1, 2)), atol=1e-5)
    with pytest.raises(UnknownBlock, match=r"has no layer 'lat' \(did you mean late.*show .*mine.keras --layers"):
        extract(photos, f"{path}:mode=unit", tap="lat", out=tmp_path / "d.h5")


def test_a_last_dense_layer_that_is_an_embedding_is_named(photos, tmp_path):
    """Nothing tells it from a classifier, so "top" is what enters it."""
    model = network(rescaling=True)
    embedding = keras.layers.Dense(5, name="embedding")(model.get_layer("hidden").output)
    keras.Model(model.inputs, embedding).save(tmp_path / "mine.keras")
    cache = extract(photos, str(tmp_path / "mine.keras"), tap="top,embedding", out=tmp_path / "c.h5")
    top, found = (cache.features(cache.rows, f"mine/{layer}") for layer in ("top", "embedding"))
    kernel, bias = keras.saving.load_model(tmp_path / "mine.keras").get_layer("embedding").get_weights()
    assert np.allclose(found, top @ kernel + bias, atol=1e-5)
    run = sweep(cache, "ridge", taps=["mine/embedding"], out=tmp_path / "run")
    assert handoff(run.best).certificate.passed


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".hdf5"])
def test_every_file_format_of_keras_is_read_and_a_second_run_computes_nothing(photos, tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    network(rescaling=True).save(path)
    first = extract(photos, str(path), out=tmp_path / "c.h5")
    assert first.report.computed == 36
    assert first.tap().preprocess.mode == "inside"
    assert extract(photos, str(path), out=tmp_path / "c.h5").report.computed == 0


def test_other_weights_in_the_same_file_are_another_tap(photos, tmp_path):
    path, model = tmp_path / "mine.keras", network(rescaling=True)
    model.save(path)
    extract(photos, str(path), out=tmp_path / "c.h5")
    model.get_layer("late").kernel.assign(model.get_layer("late").kernel * 2)
    model.save(path)
    cache = extract(photos, str(path), out=tmp_path / "c.h5")
    assert cache.report.computed == 36
    assert len(cache.taps) == 2


def test_another_architecture_of_the_same_weights_is_another_tap(photos, tmp_path):
    path = tmp_path / "mine.keras"
    network(rescaling=True).save(path)
    extract(photos, str(path), out=tmp_path / "c.h5")
    model = network(rescaling=True)
    model.get_layer("early").activation = keras.activations.tanh
    model.save(path)
    assert extract(photos, str(path), out=tmp_path / "c.h5").report.computed == 36


def test_a_function_is_a_backbone(photos, tmp_path, monkeypatch):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "networks.py").write_text(
        "import keras\n"
        "def small():\n"
        "    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3), keras.layers.ReLU()]\n"
        "    return keras.Sequential([keras.Input((None, None, 3)), *layers])\n"
        "def of(size):\n"
        "    return keras.Sequential([keras.Input((size, size, 3)), keras.layers.Rescaling(1 / 255)])\n"
        "def deep(depth):\n"
        "    return None\n"
        "def nothing():\n"
        "    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    cache = extract(photos, "shop.networks:small:size=12", out="c.h5")
    assert (list(cache.taps), cache.arrays()[0].shape) == (["small:size=12/top"], (36, 4))
    assert extract(photos, "shop.networks:small:size=12", out="c.h5").report.computed == 0
    assert extract(photos, "shop.networks:of:size=12", out="e.h5").tap().preprocess.size == 12
    with pytest.raises(UsageError, match=r"shop.networks:of takes images of any size; choose one: shop.networks:of"):
        requests("shop.networks:of")
    assert str(tmp_path) not in sys.path
    for name, error, reason in [
        ("deep", UsageError, "takes a function that returns a Keras model, without arguments or with size="),
        ("nothing", NotAModel, "is not a Keras model with a known input"),
        ("none", UsageError, "has no attribute 'none'. Name a function"),
    ]:
        with pytest.raises(error, match=reason):
            extract(photos, f"shop.networks:{name}:size=12", out="d.h5")


def test_integer_input_needs_no_mode(tmp_path):
    inputs = keras.Input((16, 16, 3), dtype="uint8")
    outputs = keras.layers.Conv2D(4, 3)(keras.ops.cast(inputs, "float32"))
    keras.Model(inputs, outputs).save(tmp_path / "bytes.keras")
    photos = write_images(tmp_path / "photos", 2)
    cache = extract(photos, str(tmp_path / "bytes.keras"), out=tmp_path / "c.h5")
    assert cache.arrays()[0].shape == (6, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"How do pixels enter 'mine'\? Add it to the name: mode=tf"),
        (":mode=imagenet", r"`mode` takes tf, caffe, torch, inside, unit; got 'imagenet'"),
        (":mode=tf:size=20", r"'mine' takes images of 16 pixels; got size 20"),
        (":alpha=1", r"'mine' takes the options mode=.., size=..; got 'alpha=1'"),
        (":tf", r"'mine' takes the options mode=.., size=..; got 'tf'"),
    ],
)
def test_what_a_model_does_not_say_the_user_must(path, text, message):
    with pytest.raises(UsageError, match=message):
        requests(f"{path}{text}")


def test_a_model_for_any_size_needs_one(tmp_path):
    network(None).save(tmp_path / "any.keras")
    with pytest.raises(UsageError, match=r"'any' takes images of any size; choose one: any:size=224"):
        requests(f"{tmp_path / 'any.keras'}:mode=tf")
    [request] = requests(f"{tmp_path / 'any.keras'}:mode=tf", size=24)
    assert request.preprocess.size == 24


def save(tmp_path, shapes, lambda_layer=False):
    inputs = [keras.Input(shape) for shape in shapes]
    outputs = [keras.layers.Conv2D(2, 1)(one) for one in inputs]
    if lambda_layer:
        outputs = [keras.layers.Lambda(lambda x: x * 2)(one) for one in outputs]
    keras.Model(inputs, outputs).save(tmp_path / "odd.keras")
    return f"{tmp_path / 'odd.keras'}:mode=tf"


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(16, 16, 3), (16, 16, 3)], r"takes .* and .*; a backbone takes one batch of RGB images"),
        ([(16, 16, 1)], r"takes \(None, 16, 16, 1\); a backbone takes one batch of RGB images"),
        ([(16, 20, 3)], r"takes images of 16 x 20; featcache makes them square"),
    ],
)
def test_models_that_take_something_else_are_refused(tmp_path, shapes, message):
    with pytest.raises(NotAModel, match=message):
        requests(save(tmp_path, shapes))


def test_code_in_a_file_is_not_run(tmp_path):
    with pytest.raises(NotAModel, match=r"odd.keras carries code \(a Lambda layer or the like\), which"):
        built(save(tmp_path, [(16, 16, 3)], lambda_layer=True))


@pytest.mark.parametrize("content", [b"", b"no model"])
def test_a_file_that_is_no_model_is_named(tmp_path, content):
    (tmp_path / "odd.keras").write_bytes(content)
    with pytest.raises(NotAModel, match=r"Keras cannot load .*odd.keras"):
        requests(str(tmp_path / "odd.keras"))


def test_a_missing_file_is_named():
    with pytest.raises(UsageError, match=r"There is no model file .*nowhere.keras"):
        requests("nowhere.keras:mode=tf")


def test_weights_of_its_own_are_kept(path):
    with pytest.raises(UsageError, match=r"`weights` is for backbones by name; 'mine' has its own weights"):
        requests(f"{path}:mode=tf", weights="imagenet")


@pytest.mark.parametrize(
    ("text", "path", "options"),
    [
        ("C:\\models\\a.keras:mode=tf", "C:\\models\\a.keras", ["mode=tf"]),
        ("a.b.keras", "a.b.keras", []),
        ("a.H5:size=3", "a.H5", ["size=3"]),
        ("pkg.mod:make:size=3", "pkg.mod:make", ["size=3"]),
    ],
)
def test_a_path_ends_where_its_suffix_does(text, path, options):
    spec, rest = own.parse(text)
    assert spec.weights.endswith(path)
    assert rest == options


def test_a_model_goes_the_whole_way(photos, path, tmp_path):
    cache = extract(photos, f"{path}:mode=tf", out=tmp_path / "c.h5")
    model = handoff(sweep(cache, "logreg", out=tmp_path / "run").best, tmp_path / "head.keras")
    assert model.certificate.inference < 1e-3
    assert model.certificate.training < 1e-3
    again = extract(photos, str(tmp_path / "head.keras"), out=tmp_path / "again.h5")
    assert again.tap().preprocess.size == 16
    assert np.allclose(again.features(cache.rows), cache.features(cache.rows), atol=1e-4)


def test_building_leaves_the_model_as_it_was_loaded(path):
    [request] = requests(f"{path}:mode=tf")
    one, two = (build(request.spec, 16, "avg") for _ in range(2))
    assert (one.weights_digest, one.architecture) == (two.weights_digest, two.architecture)


def test_weights_of_a_registered_backbone_are_not_taken_for_a_model(tmp_path):
    for text in ("glyphnet:weights=mine.h5", f"glyphnet:weights={tmp_path}/a.keras:size=40"):
        assert own.parse(text) is None
        assert requests(text)[0].spec.origin == "registry"


def test_a_second_run_on_a_keras_file_needs_no_keras(photos, path, tmp_path):
    extract(photos, f"{path}:mode=tf", out=tmp_path / "c.h5")
    code = (
        "import sys; from featcache.extraction import extract\n"
        f"assert extract({str(photos)!r}, {f'{path}:mode=tf'!r}, out={str(tmp_path / 'c.h5')!r}).report.computed == 0\n"
        "sys.exit('keras' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_precision_is_what_is_asked_for_whatever_the_file_was_saved_in(path, tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        keras.backend.clear_session()  # or the layers would be called otherwise
        network().save(tmp_path / "half.keras")
    finally:
        keras.config.set_dtype_policy("float32")
    exact, half, reduced = (
        built(f"{path}:mode=tf"), built(f"{tmp_path / 'half.keras'}:mode=tf"), built(f"{path}:mode=tf", "bfloat16")
    )  # fmt: skip
    assert exact.architecture == half.architecture == reduced.architecture
    assert exact.weights_digest == reduced.weights_digest
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.float32) / 127.5 - 1
    one, two, three = (keras.ops.convert_to_numpy(each.network(pixels)) for each in (exact, half, reduced))
    assert two.dtype == np.float32
    assert not np.array_equal(one, three)
    assert np.allclose(one, three.astype(np.float32), atol=0.02 * np.abs(one).max())


def test_an_own_model_computes_in_the_precision_that_is_asked_for(photos, path, tmp_path):
    exact = extract(photos, f"{path}:mode=tf", out=tmp_path / "c.h5", engine="keras")
    cache = extract(photos, f"{path}:mode=tf", out=tmp_path / "c.h5", engine="keras", precision="bfloat16")
    assert list(cache.taps) == ["mine/top", "mine/top:bfloat16"]
    one, two = exact.features(exact.rows), cache.features(exact.rows, "mine/top:bfloat16")
    assert 0 < np.abs(one - two).max() < 0.05 * np.abs(one).max()


def layered(*layers, size=16):
    return keras.Sequential([keras.Input((size, size, 3)), *layers])


@pytest.mark.parametrize(
    ("beginning", "mode"),
    [
        ([keras.layers.Rescaling(1 / 127.5, -1)], "inside"),
        ([keras.layers.RandomFlip(), keras.layers.Rescaling(1 / 255)], "inside"),
        ([layered(keras.layers.RandomFlip()), keras.layers.Rescaling(1 / 255)], "inside"),
        ([layered(keras.layers.Rescaling([1 / 255, 1 / 255, 1 / 255]))], "inside"),
        ([keras.layers.Normalization(mean=[120.0], variance=[60.0])], "inside"),
        ([keras.layers.Normalization(mean=[0.485, 0.456, 0.406], variance=[0.05, 0.05, 0.05])], None),  # fed with 0..1
        ([keras.layers.Normalization()], None),  # adapted to something
        ([keras.layers.Rescaling(2, -1)], None),  # fed with 0..1
        ([keras.layers.Conv2D(3, 1), keras.layers.Rescaling(1 / 255)], None),
    ],
)
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_how_pixels_enter_is_known_only_where_the_model_begins_with_it(tmp_path, beginning, mode, suffix):
    path = tmp_path / f"m{suffix}"
    layered(*beginning, keras.layers.Conv2D(4, 3)).save(path)
    spec, _ = own.parse(str(path))
    assert own.facts_of(spec, None) == own.Facts(16, mode, None)


@pytest.mark.parametrize(
    ("ending", "layer"),
    [
        ([keras.layers.Dense(3, activation="softmax")], "features"),
        ([keras.layers.Dense(1, activation="sigmoid")], "features"),
        ([keras.layers.Dense(3)], "features"),
        ([keras.layers.Dropout(0.5), keras.layers.Dense(3), keras.layers.Softmax()], "features"),
        ([keras.layers.Dense(3), keras.layers.Activation("softmax"), keras.layers.Dropout(0.5)], "features"),
        ([keras.layers.Dense(3, activation="relu", name="last")], "last"),
        ([keras.layers.Dense(3), keras.layers.Activation("relu", name="last")], "last"),
        ([], "features"),
    ],
)
@pytest.mark.parametrize("functional", [True, False])
def test_top_is_what_enters_the_classifier(ending, layer, functional):
    ending = [one.__class__.from_config(one.get_config()) for one in ending]
    model = layered(keras.layers.Flatten(), keras.layers.Dense(5, activation="relu", name="features"), *ending)
    model = keras.Model(model.inputs[0], model.outputs[0]) if functional else model
    reference = keras.Model(model.inputs[0], model.get_layer(layer).output)
    pixels = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    assert np.allclose(own.headless(model)(pixels), reference(pixels))


def classifying(*layers, taking=(7, 7, 8), name="head"):
    return keras.Sequential([keras.Input(taking), *layers], name=name)


L = keras.layers
SCORES = {
    "nested": lambda: [classifying(L.GlobalAveragePooling2D(name="features"), L.Dense(3, "softmax"))],
    "nested twice": lambda: [
        classifying(classifying(L.GlobalAveragePooling2D(name="features"), L.Dense(3, "softmax"), name="inner"))
    ],
    "nested logits": lambda: [classifying(L.GlobalAveragePooling2D(name="features"), L.Dense(3)), L.Softmax()],
    "convolution": lambda: [L.Activation("relu", name="features"), L.Conv2D(3, 1, activation="softmax")],
    "SqueezeNet": lambda: [
        L.Dropout(0.5, name="features"),
        L.Conv2D(3, 1),
        L.ReLU(),
        L.GlobalAveragePooling2D(),
        L.Activation("softmax"),
    ],
    "pooled map": lambda: [
        L.Activation("relu", name="features"),
        L.Conv2D(3, 1, activation="softmax"),
        L.GlobalAveragePooling2D(),
    ],
    "pooled map, nested": lambda: [
        classifying(L.Activation("relu", name="features"), L.Conv2D(3, 1, activation="softmax")),
        L.GlobalAveragePooling2D(),
    ],
    "another type": lambda: [L.Flatten(name="features"), L.Dense(3, "softmax"), L.Activation("linear")],
    "map": lambda: [L.Activation("relu", name="features"), L.Conv2D(3, 1), L.Softmax()],
    "temperature": lambda: [L.Flatten(name="features"), L.Dense(3), L.Rescaling(2.0), L.Softmax()],
}


@pytest.mark.parametrize("name", SCORES)
def test_top_is_never_the_old_probabilities(name):
    ending = SCORES[name]()
    model = layered(L.Conv2D(8, 3, strides=2, name="conv"), *ending)
    before = model.get_layer("conv").output
    for layer in ending:
        while isinstance(layer, keras.Sequential):
            layer = layer.layers[0]
        before = layer(before)
        if layer.name == "features":
            break
    reference = keras.Model(model.inputs[0], before)
    pixels = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    assert np.allclose(own.headless(model)(pixels), reference(pixels))


def test_a_nested_classifier_is_a_tap_by_its_name(photos, tmp_path):
    model = layered(L.Rescaling(1 / 255), L.Conv2D(8, 3, strides=2), *SCORES["nested"]())
    model.save(tmp_path / "mine.keras")
    cache = extract(photos, str(tmp_path / "mine.keras"), tap="top,head", out=tmp_path / "c.h5")
    top, head = (cache.features(cache.rows, f"mine/{layer}") for layer in ("top", "head"))
    assert (top.shape[1], head.shape[1]) == (8, 3)
    assert np.allclose(head.sum(axis=1), 1, atol=1e-5)
    assert handoff(sweep(cache, "ridge", taps=["mine/top"], out=tmp_path / "run").best).certificate.passed


def test_scores_that_nothing_known_makes_are_refused_with_the_layers_to_choose(tmp_path):
    image = keras.Input((16, 16, 3))
    pooled = L.GlobalAveragePooling2D(name="pool")(L.Conv2D(6, 3, name="conv")(L.Rescaling(1 / 255)(image)))
    scores = L.Maximum(name="most")([L.Dense(3)(pooled), L.Dense(3)(pooled)])
    keras.Model(image, L.Softmax()(scores)).save(tmp_path / "mine.keras")
    with pytest.raises(
        UsageError, match=r"^'mine' ends in probabilities, .* one of: `tap='rescaling.*,conv,pool,most'`$"
    ):
        built(str(tmp_path / "mine.keras")).cut("top")
    assert built(str(tmp_path / "mine.keras")).cut("pool").outputs[0].shape == (None, 6)


def test_a_mode_that_would_scale_pixels_twice_is_refused(tmp_path):
    network(rescaling=True).save(tmp_path / "mine.keras")
    message = (
        r"^'mine' takes pixels of 0 to 255, .*got mode=tf, which would scale them twice. Leave it out, or use mode=in"
    )
    with pytest.raises(UsageError, match=message):
        requests(f"{tmp_path / 'mine.keras'}:mode=tf")
    assert requests(f"{tmp_path / 'mine.keras'}:mode=inside")[0].preprocess.mode == "inside"


@pytest.mark.filterwarnings("ignore:Layer .* does not have")
def test_a_quantized_model_is_refused_as_what_it_is(tmp_path):
    model = network(rescaling=True)
    model.quantize("int8")
    model.save(tmp_path / "mine.keras")
    with pytest.raises(NotAModel, match=r"mine.keras is quantized \(int8\), .*Save .* before model.quantize\(\)"):
        built(str(tmp_path / "mine.keras"))


@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_model_that_was_never_built_is_refused_with_how_to_build_it(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    model = keras.Sequential([keras.layers.Conv2D(4, 3)])
    model.save(path)
    with pytest.raises(NotAModel, match=r"was never built, .*model.build\(\(None, 224, 224, 3\)\)$"):
        requests(f"{path}:mode=tf")


@keras.saving.register_keras_serializable("shop")
class Swish(keras.layers.Layer):
    """A layer of the user's."""


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_layer_that_keras_does_not_find_is_named_with_what_to_do(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"mine{suffix}"
    layered(keras.layers.Rescaling(1 / 255), Swish()).save(path)
    monkeypatch.delitem(keras.saving.get_custom_objects(), "shop>Swish")
    with pytest.raises(NotAModel, match=r"has code of yours in it, .*Swish, .*: `backbone='package.module:function'`$"):
        built(str(path))


def test_a_path_may_have_a_comma(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mo,dels", "mo,dels/more,"):
        Path(name).mkdir()
        network(rescaling=True).save(f"{name}/mine.keras")
    network(rescaling=True).save("one.keras")
    asked = requests("one.keras,mo,dels/mine.keras:mode=inside,glyphnet,mo,dels/more,/mine.keras:size=16,pixels:size=8")
    assert [Path(one.spec.weights).parent.name for one in asked if one.spec.origin == "file"] == [
        tmp_path.name,
        "mo,dels",
        "more,",
    ]
    assert [one.spec.name for one in asked if one.spec.origin == "registry"] == ["glyphnet", "pixels"]


def test_a_file_of_weights_is_no_model(tmp_path):
    network().save_weights(tmp_path / "w.weights.h5")
    with pytest.raises(
        NotAModel,
        match=r"w.weights.h5 holds weights but no model. .*: `backbone=NAME`, `weights='.*'`$",
    ):
        requests(f"{tmp_path / 'w.weights.h5'}:mode=tf")


def test_a_model_of_two_outputs_has_no_top(tmp_path):
    inputs = keras.Input((16, 16, 3))
    keras.Model(inputs, [keras.layers.Conv2D(2, 1, name=name)(inputs) for name in "ab"]).save(tmp_path / "two.keras")
    with pytest.raises(NotAModel, match=r"two.keras has 2 outputs \(.*\). Save a part with only one output"):
        built(f"{tmp_path / 'two.keras'}:mode=tf")


@pytest.mark.slow
def test_fine_tuning_a_model_leaves_the_next_one_as_the_file_says(photos, path, tmp_path):
    best = sweep(extract(photos, f"{path}:mode=tf", out=tmp_path / "c.h5"), "logreg", out=tmp_path / "run").best
    finetune(best, unfreeze="all", out=tmp_path / "tuned.keras", epochs=1, learning_rate=0.1)
    assert handoff(best, tmp_path / "head.keras").certificate.inference < 1e-3


def test_whole_numbers_are_rounded_not_cut_off(tmp_path):
    inputs = keras.Input((4, 4, 3), dtype="uint8")
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(keras.ops.cast(inputs, "float32")))
    pixels = np.full((1, 4, 4, 3), 7.6, np.float32)
    assert np.allclose(model(entering(model, pixels, Preprocess(4, mode="inside"))), 8)


def test_rows_say_which_model_they_come_from(photos, path, tmp_path):
    Image.new("RGB", (4, 4)).save(photos / "red" / "one.png")
    tap = Cache.open(extract(photos, f"{path}:mode=tf", out=tmp_path / "c.h5").path).tap()
    assert (tap.backbone.origin, tap.backbone.weights) == ("file", str(path.resolve()))
    assert len(json.loads(tap.to_json())["architecture"]) == 64


def test_a_function_that_gives_other_weights_when_called_twice_is_refused(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("dice.py").write_text(
        "import keras, numpy as np\n"
        "def net():\n"
        "    layers = [keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3)]\n"
        "    model = keras.Sequential(layers)\n"
        "    model.set_weights([np.random.default_rng().random(one.shape) for one in model.get_weights()])\n"
        "    return model\n"
    )
    assert extract(photos, "dice:net", out="c.h5").report.computed == 36
    with pytest.raises(NotAModel, match=r"'net' has other weights each time it is built. Save the model and name its"):
        extract(photos, "dice:net", out="c.h5", precision="bfloat16")


def test_a_function_that_raises_is_refused_in_one_line(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("raising.py").write_text("def net():\n    raise ValueError('boom\\nand more')\n")
    with pytest.raises(NotAModel, match=r"^`backbone='raising:net'`: the function raised ValueError: boom and more$"):
        extract(photos, "raising:net", out="c.h5")


@pytest.mark.filterwarnings("always")
def test_what_a_function_prints_and_keras_warns_of_does_not_mix_with_results(
    photos, tmp_path, monkeypatch, capsys, recwarn
):
    monkeypatch.chdir(tmp_path)
    Path("talking.py").write_text(
        "import keras\n"
        "def net():\n"
        "    print('hello')\n"
        "    return keras.Sequential([keras.layers.Rescaling(1 / 255, input_shape=(8, 8, 3))])\n"
    )
    extract(photos, "talking:net", out="c.h5")
    assert capsys.readouterr().out == ""
    assert [str(one.message) for one in recwarn if "input_shape" in str(one.message)] == []


def test_other_code_of_a_layer_is_another_tap(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for factor in (2, 3):
        Path("factors.py").write_text(
            "import keras\n"
            "class Times(keras.layers.Layer):\n"
            "    def call(self, x):\n"
            f"        return x * {factor}\n"
            "def net():\n"
            "    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), Times()])\n"
        )
        linecache.clearcache()
        sys.modules.pop("factors", None)
        importlib.invalidate_caches()
        shutil.rmtree("__pycache__", ignore_errors=True)
        cache = extract(photos, "factors:net", out="c.h5")
        assert cache.report.computed == 36
    one, two = (cache.features(cache.rows, name) for name in cache.taps)
    assert np.allclose(two / one, 1.5) or np.allclose(one / two, 1.5)
