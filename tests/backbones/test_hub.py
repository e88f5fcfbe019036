"""A preset of keras-hub is a backbone, with taps, blocks and sizes; a bad preset is refused in one line."""

import json
import shlex
import shutil
import subprocess
import sys

import hub_presets
import keras
import keras_hub
import numpy as np
import pytest
from hub_presets import SIZE
from PIL import Image
from tiny import write_images

from featcache.backbones import hub, own
from featcache.backbones.blocks import blocks
from featcache.backbones.build import build, feature_model
from featcache.backbones.describe import layers_of
from featcache.backbones.parse import requests
from featcache.errors import EnvironmentFault, NotAModel, UnknownBackbone, UsageError, WeightsMissing
from featcache.extraction import extract
from featcache.extras.export import export
from featcache.extras.report.commands import flags_of
from featcache.images.decode import decode
from featcache.models import handoff, load_model
from featcache.models.certificate import TOLERANCE
from featcache.prediction import predict
from featcache.sweeps import sweep
from featcache.tuning import finetune

# `start_keras` hides these warnings about Swin, but pytest sets its own filters for each test.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Layer 'attn' .* was passed an input with a mask"),
    pytest.mark.filterwarnings(r"ignore:.build\(\). was called on layer 'block_"),
]

QUICK = "dinov2"
FAMILIES = [pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in hub_presets.BACKBONES]
WITH_CLS = {"vit", "deit", "dinov2", "dinov2_registers", "dinov3", "dinov3_gated", "clip"}
NUM_PREFIX = {"vit": 1, "deit": 2, "dinov2": 1, "dinov2_registers": 4, "dinov3": 5, "dinov3_gated": 5, "clip": 1}


@pytest.fixture(scope="session")
def presets(tmp_path_factory):
    """Return a function that gives the folder of a family's preset, which is made once."""
    root = tmp_path_factory.mktemp("presets")

    def folder(name):
        if not (root / name).exists():
            hub_presets.save_preset(name, root / name)
        return root / name

    return folder


@pytest.fixture
def preset(presets, tmp_path):
    """Return a copy of the preset of DINOv2, to change."""
    return shutil.copytree(presets(QUICK), tmp_path / "mine")


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


def built(text, tap="top", precision="float32", **options):
    [request] = requests([text], tap=tap, **options)
    backbone = build(request.spec, request.preprocess.size, request.pooling, precision)
    return backbone, request


def features(text, tap, pixels, **options):
    backbone, request = built(text, tap, **options)
    taps = request.taps(backbone.weights_digest, backbone.architecture, backbone.layers(request.layers))
    return feature_model(backbone, taps[:1]).predict_on_batch(pixels)


def output_of(backbone, images):
    """Return what a backbone gives, whatever it calls its input."""
    inputs = {name: images for name in backbone.input} if isinstance(backbone.input, dict) else images
    return np.asarray(backbone(inputs))


def reference(name, folder, pixels):
    """Return {tap: features} as keras-hub's own converter and backbone give them."""
    images = keras_hub.layers.ImageConverter.from_preset(str(folder))(pixels)
    backbone = keras_hub.models.Backbone.from_preset(str(folder))
    if name == "siglip":
        return {"top": np.asarray(backbone.get_vision_embeddings(images))}
    if name in ("swin", "mobilenetv5"):
        maps = output_of(backbone, images)
        return {"top": maps.reshape(len(maps), -1, maps.shape[-1]).mean(axis=1)}
    tokens = output_of(backbone.vision_encoder if name == "clip" else backbone, images)
    cls, patches = tokens[:, 0], tokens[:, NUM_PREFIX[name] :].mean(axis=1)
    expected = {"top": cls, "cls": cls, "patches": patches, "cls+patches": np.concatenate([cls, patches], axis=1)}
    if name == "clip":
        expected["projection"] = np.asarray(backbone.get_vision_embeddings(images))
    return expected


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_those_of_keras_hub(name, presets, pixels):
    for tap, expected in reference(name, presets(name), pixels).items():
        actual = features(f"hub:{presets(name)}", tap, pixels)
        assert actual.shape == expected.shape
        assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max(), tap


@pytest.mark.parametrize("name", FAMILIES)
def test_images_of_the_right_size_enter_bit_for_bit_as_in_keras_hub(name, presets, pixels, tmp_path):
    backbone, request = built(f"hub:{presets(name)}")
    Image.fromarray(pixels[0]).save(tmp_path / "photo.png")
    decoded = decode((tmp_path / "photo.png").read_bytes(), request.preprocess)
    converter = keras_hub.layers.ImageConverter.from_preset(str(presets(name)))
    expected = np.asarray(converter(pixels[:1]))
    scaling = backbone.network.get_layer("scale_pixels")
    assert np.array_equal(np.asarray(scaling(decoded[None].astype("float32"))), expected)
    # Size, interpolation and shape are the converter's, too.
    assert (request.preprocess.size,) * 2 == converter.image_size
    assert request.preprocess.interpolation == converter.interpolation
    assert request.preprocess.resize == ("crop" if converter.crop_to_aspect_ratio else "stretch")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_whole_path(name, presets, tmp_path):
    photos = write_images(tmp_path / "photos", per_class=20)
    cache = extract(photos, f"hub:{presets(name)}", tap="auto", out=tmp_path / "c.h5")
    assert next(iter(cache.taps)) == f"{name}/block_1"
    assert list(cache.taps)[-1] == f"{name}/top"
    run = sweep(cache, "logreg", taps=[f"{name}/top"], out=tmp_path / "run")
    model = handoff(run.best, tmp_path / "m.keras")
    assert model.certificate.inference <= TOLERANCE
    assert model.certificate.training <= TOLERANCE
    tuned = finetune(run.best, out=tmp_path / "t.keras", unfreeze="block_2", epochs=1)
    assert tuned.best.val >= tuned.start.val
    with pytest.raises(UsageError, match=f"takes a network of Keras by its name.*'{name}' comes with its weights"):
        finetune(run.best, tmp_path / "u.keras", controls="scratch")
    rows = list(predict(tmp_path / "t.keras", photos))
    assert len(rows) == 60
    _, facts = load_model(tmp_path / "m.keras")
    assert json.loads(facts["tap"])["preprocess"]["size"] == SIZE
    # As a backbone, the model gets its images as they were made for it.
    [of_preset], [of_model] = requests(f"hub:{presets(name)}"), requests(str(tmp_path / "m.keras"))
    assert of_model.preprocess == of_preset.preprocess


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "deit", "dinov2_registers", "dinov3", "clip", "siglip"])
def test_models_are_exported_and_computed_in_8_bits(name, presets, tmp_path):
    photos = write_images(tmp_path / "photos", per_class=30)
    cache = extract(photos, f"hub:{presets(name)}", out=tmp_path / "c.h5")
    handoff(sweep(cache, "logreg", out=tmp_path / "run").best, tmp_path / "m.keras")
    for to, file in (("litert", "m.tflite"), ("onnx", "m.onnx"), ("openvino", "m.xml"), ("savedmodel", "saved")):
        assert export(tmp_path / "m.keras", to=to, out=tmp_path / file).difference < 1e-3
    extract(photos, f"hub:{presets(name)}", out=tmp_path / "c.h5", precision="int8")


@pytest.mark.slow
def test_what_cannot_run_in_8_bits_is_refused(presets, photos, tmp_path):
    with pytest.raises(EnvironmentFault, match=r"OpenVINO cannot convert this network.*any precision but int8"):
        extract(photos, f"hub:{presets('swin')}", out=tmp_path / "c.h5", precision="int8")


def test_the_report_names_a_preset_so_that_the_same_features_are_made_again(presets):
    [request] = requests(f"hub:{presets(QUICK)}:resize=stretch", tap="cls", size=48)
    words = shlex.split(flags_of(request.taps("w", "a")))
    assert words[::2] == ["-b", "--size", "--tap"]
    [again] = requests(words[1], tap=words[5], size=int(words[3]))
    assert again == request


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_of_the_transformer_are_blocks(name, presets):
    backbone, request = built(f"hub:{presets(name)}")
    names = [operation.name for operation in backbone.network.operations]
    assert blocks(names)[:3] == ["stem", "block_1", "block_2"]
    listed = {layer.name for layer in layers_of(request)}
    assert {"block_1", "top"} <= listed
    assert ({"cls", "patches", "cls_patches"} <= listed) == (name in WITH_CLS)


def test_the_network_is_of_keras_layers_only(presets):
    backbone, _ = built(f"hub:{presets(QUICK)}")
    assert {type(layer).__module__.partition(".")[0] for layer in backbone.network.layers} == {"keras"}
    assert not own.has_code(backbone.network)


def test_a_second_extraction_needs_neither_keras_nor_keras_hub(preset, photos, tmp_path):
    extract(photos, f"hub:{preset}", out=tmp_path / "c.h5")
    code = (
        "import sys; sys.modules['keras'] = sys.modules['keras_hub'] = None\n"
        "from featcache.extraction import extract\n"
        f"cache = extract({str(photos)!r}, 'hub:{preset}', out={str(tmp_path / 'c.h5')!r})\n"
        "print(list(cache.taps))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout == "['mine/top']\n", process.stderr


def test_other_weights_are_another_tap(preset, photos, tmp_path):
    cache = extract(photos, f"hub:{preset}", out=tmp_path / "c.h5")
    [before] = [tap.fingerprint for tap in cache.taps.values()]
    backbone = keras_hub.models.Backbone.from_preset(str(preset))
    backbone.layernorm.gamma.assign(backbone.layernorm.gamma * 2)
    backbone.save_to_preset(preset)
    cache = extract(photos, f"hub:{preset}", out=tmp_path / "d.h5")
    assert [tap.fingerprint for tap in cache.taps.values()] != [before]


def test_dinov2_takes_other_sizes_as_keras_hub_does(presets):
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    folder = str(presets(QUICK))
    converter = keras_hub.layers.ImageConverter.from_preset(folder, image_size=(48, 48))
    backbone = keras_hub.models.Backbone.from_preset(folder, image_shape=(48, 48, 3))
    expected = output_of(backbone, converter(images))[:, 0]
    assert np.allclose(features(f"hub:{folder}:size=48", "cls", images), expected, atol=1e-4)


@pytest.mark.slow
def test_dinov3_and_swin_take_other_sizes_as_keras_hub_does(presets):
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    for name in ("dinov3", "swin", "mobilenetv5"):
        folder = str(presets(name))
        converter = keras_hub.layers.ImageConverter.from_preset(folder, image_size=(64, 64))
        backbone = keras_hub.models.Backbone.from_preset(folder, image_shape=(64, 64, 3))
        outputs = output_of(backbone, converter(images))
        expected = outputs[:, 0] if name == "dinov3" else outputs.reshape(2, -1, outputs.shape[-1]).mean(axis=1)
        assert np.allclose(features(f"hub:{folder}:size=64", "top", images), expected, atol=1e-4), name


def test_low_precision_computes_nearly_the_same(presets, pixels):
    text = f"hub:{presets(QUICK)}"
    exact = features(text, "cls", pixels)
    backbone, request = built(text, "cls", "bfloat16")
    low = feature_model(backbone, request.taps("w")).predict_on_batch(pixels)
    assert 0 < np.abs(low - exact).max() < 0.1


def test_a_preset_keeps_how_its_images_are_resized_unless_told_otherwise(presets):
    [request] = requests(f"hub:{presets(QUICK)}")
    assert request.taps("")[0].name == "dinov2/top"
    assert (request.preprocess.resize, request.preprocess.interpolation) == ("crop", "bicubic")
    for [other] in (requests(f"hub:{presets(QUICK)}", resize="pad"), requests(f"hub:{presets(QUICK)}:resize=stretch")):
        assert other.taps("")[0].name == f"dinov2:resize={other.preprocess.resize}/top"
    assert other.preprocess.resize == "stretch"


def change(folder, file, **changes):
    content = json.loads((folder / file).read_text())
    content["config"] |= changes
    (folder / file).write_text(json.dumps(content))


def test_converters_of_earlier_versions_are_read(preset, pixels):
    content = json.loads((preset / "image_converter.json").read_text())
    old = {"height": 48, "width": 48, "scale": 1 / 255, "mean": [0.5, 0.4, 0.3], "variance": [0.04, 0.05, 0.06]}
    content["config"] = {"name": "old", **old}
    (preset / "image_converter.json").write_text(json.dumps(content))
    backbone, request = built(f"hub:{preset}")
    converter = keras_hub.layers.ImageConverter.from_preset(str(preset))
    assert converter.image_size == (request.preprocess.size,) * 2 == (48, 48)
    images = np.zeros((1, 48, 48, 3), np.uint8) + 77
    scaled = backbone.network.get_layer("scale_pixels")(images.astype("float32"))
    assert np.array_equal(np.asarray(scaled), np.asarray(converter(images)))


def test_a_preset_without_converter_must_be_told_how_pixels_enter(preset):
    (preset / "image_converter.json").unlink()
    with pytest.raises(UsageError, match=r"How do pixels enter 'mine'\? Its folder has no image_converter.json"):
        requests(f"hub:{preset}")
    [request] = requests(f"hub:{preset}:mode=torch")
    assert (request.preprocess.mode, request.preprocess.size) == ("torch", SIZE)


def test_the_converter_may_be_part_of_a_preprocessor(preset):
    converter = json.loads((preset / "image_converter.json").read_text())
    (preset / "image_converter.json").rename(preset / "kept.json")
    preprocessor = {"module": "keras_hub", "class_name": "Any", "config": {"image_converter": converter}}
    (preset / "preprocessor.json").write_text(json.dumps(preprocessor))
    [request] = requests(f"hub:{preset}")
    assert request.preprocess.interpolation == "bicubic"


def test_a_preset_that_names_foreign_code_is_not_loaded(preset):
    change(preset, "config.json", extra={"module": "os", "class_name": "function", "config": "system"})
    with pytest.raises(NotAModel, match="names code of the module 'os', which featcache does not run"):
        requests(f"hub:{preset}")


def test_settings_of_another_kind_are_refused_in_one_line(preset):
    original = {file: (preset / file).read_text() for file in ("config.json", "image_converter.json")}
    damages = [
        ("config.json", {"config": None}),
        ("config.json", {"class_name": "CLIPBackbone", "config": {"vision_encoder": None}}),
        ("config.json", {"config": {"image_shape": [SIZE, SIZE, 3]}}),  # without patch_size
        ("config.json", {"config": {"image_shape": 32}}),
        ("config.json", {"config": {"image_shape": [SIZE, SIZE, 3], "patch_size": 0}}),
        ("image_converter.json", {"config": []}),
        ("image_converter.json", {"config": {"scale": "1/255"}}),
        ("image_converter.json", {"config": {"scale": [1, 2]}}),
        ("image_converter.json", {"config": {"image_size": 32}}),
        ("image_converter.json", {"config": {"mean": [0.5], "variance": [1, 1, 1], "scale": 1}}),
    ]
    for file, damage in damages:
        (preset / file).write_text(json.dumps(json.loads(original[file]) | damage))
        with pytest.raises(NotAModel, match="mine has no settings of a preset as keras-hub writes them") as caught:
            requests(f"hub:{preset}")
        assert "\n" not in str(caught.value)
        (preset / file).write_text(original[file])
    (preset / "config.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(NotAModel, match=r"config.json cannot be read as JSON"):
        requests(f"hub:{preset}")


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), NotAModel, "mine has no config.json, so it is no preset"),
        (lambda folder: (folder / "config.json").write_text("{"), NotAModel, "config.json cannot be read as JSON"),
        (lambda folder: (folder / "model.weights.h5").unlink(), WeightsMissing, "but no model.weights.h5"),
        (lambda folder: shutil.rmtree(folder), NotAModel, "There is no folder .*mine with a preset"),
        (lambda folder: change(folder, "image_converter.json", interpolation="lanczos5"), NotAModel, "by lanczos5"),
        (lambda folder: change(folder, "config.json", image_shape=[32, 64, 3]), NotAModel, "images of 32 x 64"),
    ],
)
def test_broken_presets_are_refused_in_one_line(preset, break_it, error, message):
    break_it(preset)
    with pytest.raises(error, match=message) as caught:
        requests(f"hub:{preset}")
    assert "\n" not in str(caught.value)


def test_a_preset_that_is_no_image_backbone_is_refused(preset):
    content = json.loads((preset / "config.json").read_text()) | {"class_name": "BertBackbone"}
    (preset / "config.json").write_text(json.dumps(content))
    with pytest.raises(NotAModel, match="is a BertBackbone, which is no image backbone that featcache takes"):
        requests(f"hub:{preset}")
    (preset / "metadata.json").write_text(json.dumps({"keras_hub_version": "99.1"}))
    with pytest.raises(NotAModel, match=r"written by keras-hub 99.1, which is newer .* pip install -U keras-hub"):
        requests(f"hub:{preset}")


def test_settings_of_a_newer_keras_hub_are_named(preset):
    change(preset, "config.json", flux_capacitor=True)
    (preset / "metadata.json").write_text(json.dumps({"keras_hub_version": "99.1"}))
    with pytest.raises(NotAModel, match=r"written by keras-hub 99.1, which is newer .* pip install -U keras-hub"):
        built(f"hub:{preset}")


def test_weights_that_do_not_fit_are_named(preset):
    change(preset, "config.json", hidden_dim=32)
    with pytest.raises(NotAModel, match=r"keras-hub cannot load .*mine: "):
        built(f"hub:{preset}")


def test_sizes_that_the_positions_cannot_take_are_refused(presets):
    with pytest.raises(UsageError, match=r"multiple of 8 pixels; got `size=50`\. The nearest is 48"):
        requests(f"hub:{presets(QUICK)}", size=50)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "deit", "clip", "siglip"])
def test_networks_for_one_size_are_refused_at_others(name, presets):
    with pytest.raises(UsageError, match=f"'{name}' takes images of 32 pixels only.*got `size=64`"):
        requests(f"hub:{presets(name)}", size=64)


def test_names_of_presets_are_checked():
    with pytest.raises(UnknownBackbone, match=r"no preset 'dinov2_smal' .*did you mean dinov2_small"):
        requests("hub:dinov2_smal")
    with pytest.raises(UsageError, match="Addresses of presets are hub:hf://OWNER/NAME"):
        requests("hub:s3://bucket/preset")


def test_a_published_name_is_never_a_folder_of_the_same_name(tmp_path, monkeypatch):
    (tmp_path / "dinov2_small").mkdir()
    monkeypatch.chdir(tmp_path)
    [spec, _] = hub.parse("hub:dinov2_small")
    assert spec.weights == "hub:dinov2_small"
    with pytest.raises(UnknownBackbone, match="no preset ''"):
        hub.parse("hub:")


def test_options_of_a_preset_are_checked(presets):
    text = f"hub:{presets(QUICK)}"
    with pytest.raises(UsageError, match=r"takes the options size=.., resize=.., mode=..; got 'alpha=2'"):
        requests(f"{text}:alpha=2")
    with pytest.raises(UsageError, match="leave mode=tf out"):
        requests(f"{text}:mode=tf")
    with pytest.raises(UsageError, match="the preset 'dinov2' has its own weights"):
        requests(text, weights="none")


def test_without_keras_hub_one_line_names_the_extra(presets, monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'featcache\[hub\]'"):
        built(f"hub:{presets(QUICK)}")


def test_a_model_with_layers_of_keras_hub_says_what_it_needs(tmp_path, monkeypatch):
    image = keras.Input((SIZE, SIZE, 3))
    keras.Model(image, keras_hub.layers.ImageConverter(scale=0.5)(image)).save(tmp_path / "m.keras")
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match=r"m.keras has layers of keras-hub: pip install 'featcache\[hub\]'"):
        built(f"{tmp_path / 'm.keras'}:mode=inside")
