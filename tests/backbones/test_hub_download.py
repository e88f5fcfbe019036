"""Presets are downloaded whole or not at all, and whatever is in the way is said in one line. There is no network."""

import json
import shutil
from pathlib import Path

import hub_presets
import keras_hub
import numpy as np
import pytest
from keras_hub.src.utils.preset_utils import BUILTIN_PRESETS_FOR_BACKBONE
from safetensors.numpy import save_file

from featcache.backbones import hub
from featcache.backbones.build import build
from featcache.backbones.fetch import fetch
from featcache.backbones.hub_download import convert_by_keras_hub, image_converter, provide
from featcache.backbones.hub_families import FAMILIES, all_published
from featcache.errors import NotAModel, UnknownBackbone, WeightsMismatch, WeightsMissing
from featcache.extraction import extract
from featcache.images.decode import decode


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    return hub_presets.save_preset("dinov2", tmp_path_factory.mktemp("kaggle") / "dinov2_small")


class Hub:
    """A hub that has the files of one folder, and remembers what it was asked for."""

    def __init__(self, folder):
        self.folder = folder
        self.asked = []

    def __call__(self, address, name):
        self.asked.append((address, name))
        if not (self.folder / name).exists():
            raise FileNotFoundError(f"`{name}` doesn't exist in preset directory `{address}`.")
        return self.folder / name


def never(*arguments):
    raise AssertionError("nothing was to be downloaded")


def spec_of(text):
    spec, _ = hub.parse(text)
    return spec


def test_a_preset_is_fetched_once_and_then_extracted_by_its_name(preset, home, photos, tmp_path):
    kaggle = Hub(preset)
    notes = []
    [fetched] = fetch("hub:dinov2_small", lambda tick: notes.append(tick.note), kaggle)
    assert (fetched.backbone, fetched.downloaded) == ("hub:dinov2_small", True)
    assert fetched.file == str(home / "models" / "hub" / "dinov2_small")
    assert fetched.bytes == (preset / "model.weights.h5").stat().st_size
    assert notes == ["Downloading hub:dinov2_small, once"]
    assert {address for address, _ in kaggle.asked} == {"kaggle://keras/dinov2/keras/dinov2_small/1"}

    [again] = fetch("hub:dinov2_small", download=never)
    assert not again.downloaded
    cache = extract(photos, "hub:dinov2_small", out=tmp_path / "c.h5")
    assert list(cache.taps) == ["dinov2_small/top"]


def test_licences_are_shown_before_a_download(preset, home):
    notes = []
    provide(spec_of("hub:dinov3_vit_small_lvd1689m"), notes.append, Hub(preset))
    assert notes[0].endswith("dinov3-license, which you accept on the page of the model")
    assert notes[0].startswith("Downloading hub:dinov3_vit_small_lvd1689m, once. Its weights are under the DINOv3 Lice")


def test_a_first_extraction_says_what_it_downloads_before_it_does(preset, home, caplog):
    provide(spec_of("hub:dinov3_vit_small_plus_lvd1689m"), download=Hub(preset))
    [record] = [record for record in caplog.records if record.name == "featcache.backbones.hub_download"]
    assert record.levelname == "WARNING"  # which is shown without asking for a log
    assert "Its weights are under the DINOv3 License" in record.getMessage()


def test_large_presets_come_in_several_files(preset, home, tmp_path):
    shutil.copytree(preset, tmp_path / "large")
    (tmp_path / "large" / "model.weights.h5").unlink()
    index = {"weight_map": {"a": "model_00000.weights.h5", "b": ["model_00001.weights.h5"]}}
    (tmp_path / "large" / "model.weights.json").write_text(json.dumps(index))
    for number in range(2):
        (tmp_path / "large" / f"model_0000{number}.weights.h5").write_bytes(b"x")
    provide(spec_of("hub:hf://someone/large"), download=Hub(tmp_path / "large"))
    folder = home / "models" / "hub" / "hf" / "someone" / "large"
    assert [file.name for file in hub.weights_of(folder)] == [
        "model.weights.json",
        "model_00000.weights.h5",
        "model_00001.weights.h5",
    ]


def test_an_index_cannot_reach_outside_of_the_folder(preset, home, tmp_path):
    shutil.copytree(preset, tmp_path / "bad")
    (tmp_path / "bad" / "model.weights.h5").unlink()
    (tmp_path / "bad" / "model.weights.json").write_text(json.dumps({"weight_map": {"a": "../../../evil.h5"}}))
    with pytest.raises(WeightsMissing, match="names a file outside of its folder"):
        provide(spec_of("hub:hf://someone/bad"), download=Hub(tmp_path / "bad"))
    assert not hub.is_here(spec_of("hub:hf://someone/bad"))


def test_checkpoints_of_other_libraries_are_converted_once(preset, home, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({"model_type": "dinov2"}))
    converted = []

    def convert(address, folder):
        converted.append(address)
        shutil.copytree(preset, folder, dirs_exist_ok=True)

    spec = spec_of("hub:hf://facebook/dinov2-small")
    assert provide(spec, download=Hub(tmp_path / "theirs"), convert=convert)
    assert not provide(spec, download=never, convert=never)
    assert converted == ["hf://facebook/dinov2-small"]
    assert hub.read(spec).class_name == "DINOV2Backbone"


def vit_of_transformers(folder):
    """Write a tiny ViT as transformers writes one, with the settings of its image processor."""
    rng = np.random.default_rng(0)
    width, hidden, patch, positions = 16, 24, 8, 17

    def array(*shape):
        return rng.normal(0, 0.3, shape).astype(np.float32)

    weights = {
        "vit.embeddings.patch_embeddings.projection.weight": array(width, 3, patch, patch),
        "vit.embeddings.patch_embeddings.projection.bias": array(width),
        "vit.embeddings.cls_token": array(1, 1, width),
        "vit.embeddings.position_embeddings": array(1, positions, width),
        "vit.layernorm.weight": array(width),
        "vit.layernorm.bias": array(width),
    }
    denses = {
        "attention.attention.query": (width, width),
        "attention.attention.key": (width, width),
        "attention.attention.value": (width, width),
        "attention.output.dense": (width, width),
        "intermediate.dense": (hidden, width),
        "output.dense": (width, hidden),
    }
    for name, shape in denses.items():
        weights[f"vit.encoder.layer.0.{name}.weight"] = array(*shape)
        weights[f"vit.encoder.layer.0.{name}.bias"] = array(shape[0])
    for name in ("layernorm_before", "layernorm_after"):
        weights[f"vit.encoder.layer.0.{name}.weight"] = array(width)
        weights[f"vit.encoder.layer.0.{name}.bias"] = array(width)
    config = {
        "model_type": "vit",
        "architectures": ["ViTModel"],
        "image_size": 32,
        "patch_size": patch,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "hidden_size": width,
        "intermediate_size": hidden,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "qkv_bias": True,
    }
    settings = {"do_normalize": True, "do_resize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}
    settings |= {"resample": 3, "size": 32}
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_a_checkpoint_of_transformers_becomes_a_preset(home, photos, tmp_path):
    theirs = vit_of_transformers(tmp_path / "theirs")

    def convert(address, folder):
        convert_by_keras_hub(str(theirs), folder)

    spec = spec_of("hub:hf://someone/tiny-vit")
    provide(spec, download=Hub(theirs), convert=convert)
    cache = extract(photos, "hub:hf://someone/tiny-vit", tap="cls", out=tmp_path / "c.h5")
    [tap] = cache.taps.values()
    assert (tap.preprocess.size, tap.preprocess.resize, tap.preprocess.interpolation) == (32, "stretch", "bicubic")

    images = np.stack([decode((photos / row.path).read_bytes(), tap.preprocess) for row in cache.rows])
    normalised = (images / np.float32(255) - np.float32([0.5, 0.4, 0.3])) / np.float32([0.5, 0.6, 0.7])
    backbone = keras_hub.models.Backbone.from_preset(str(theirs))
    expected = np.asarray(backbone(normalised))[:, 0]
    assert np.abs(cache.features(cache.rows) - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("settings", "size", "crops"),
    [
        (
            {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 256}},
            224,
            True,
        ),
        ({"size": {"shortest_edge": 336}}, 336, True),
        ({"size": {"height": 384, "width": 384}}, 384, False),
        ({"size": 224}, 224, False),
    ],
)
def test_settings_of_image_processors_are_read(settings, size, crops):
    settings |= {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "rescale_factor": 0.004, "resample": 2}
    config = image_converter(settings)["config"]
    assert config["image_size"] == [size, size]
    assert config["crop_to_aspect_ratio"] == crops
    assert config["scale"] == pytest.approx([0.016] * 3)
    assert config["offset"] == pytest.approx([-2.0] * 3)
    assert config["interpolation"] == "bilinear"


def test_a_folder_of_another_library_is_named_as_such(tmp_path):
    with pytest.raises(NotAModel, match=r"is a checkpoint of transformers or timm.*hub:hf://OWNER/NAME"):
        extract(tmp_path, f"hub:{vit_of_transformers(tmp_path / 'theirs')}", out=tmp_path / "c.h5")


class LocalEntryNotFoundError(FileNotFoundError):
    """As huggingface_hub calls it."""


def fails_with(error, cause=None):
    def download(address, name):
        raise error from cause

    return download


@pytest.mark.parametrize(
    ("error", "cause", "message"),
    [
        (
            ConnectionError("Max retries exceeded"),
            OSError("Name or service not known"),
            r"No network, and the preset hub:dinov2_small is not on this machine \(Name or service not known\)\. "
            r"On one with network run featcache backbones fetch hub:dinov2_small, then put its folder at .*small",
        ),
        (
            FileNotFoundError("`config.json` doesn't exist"),
            LocalEntryNotFoundError("check your connection"),
            "No network, and the preset hub:dinov2_small",
        ),
        (
            FileNotFoundError("`config.json` is not accessible. If this model is gated, accept its terms"),
            None,
            r"not given to everybody .* log in with your token: .*Or put the folder of the preset, with config.json",
        ),
        (PermissionError("401 Client Error: Unauthorized"), None, "not given to everybody"),
        (ValueError("500 Server Error"), None, r"cannot be downloaded: 500 Server Error\. Or put"),
    ],
)
def test_what_is_in_the_way_is_said_in_one_line(home, error, cause, message):
    with pytest.raises(WeightsMissing, match=message) as caught:
        fetch("hub:dinov2_small", download=fails_with(error, cause))
    assert "\n" not in str(caught.value)
    assert not (home / "models" / "hub" / "dinov2_small").exists()


def test_a_network_that_fails_halfway_leaves_nothing(preset, home):
    files = Hub(preset)

    def download(address, name):
        if name == "image_converter.json":
            raise FileNotFoundError("no such file") from LocalEntryNotFoundError("check your connection")
        return files(address, name)

    with pytest.raises(WeightsMissing, match="No network"):
        provide(spec_of("hub:dinov2_small"), download=download)
    assert not (home / "models" / "hub" / "dinov2_small").exists()


def test_a_damaged_preset_is_noticed(preset, home, tmp_path):
    shutil.copytree(preset, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.weights.h5").write_bytes(b"not HDF5")
    with pytest.raises(WeightsMismatch, match=r"keras-hub cannot load .* Remove .*dinov2_small and fetch it again"):
        fetch("hub:dinov2_small", download=Hub(tmp_path / "damaged"))


def test_a_preset_that_only_a_cache_names_is_not_downloaded(home):
    with pytest.raises(WeightsMissing, match=r"hub:dinov2_small is not on this machine\. .* fetch hub:dinov2_small"):
        build(spec_of("hub:dinov2_small"), 224, "avg")


def test_names_are_checked_before_the_first_download(home):
    with pytest.raises(UnknownBackbone):
        fetch("hub:dinov2_small,resnet51", download=never)


def test_published_presets_are_those_of_keras_hub():
    known = {}
    for presets in BUILTIN_PRESETS_FOR_BACKBONE.values():
        for name, facts in presets.items():
            known[name] = (facts["kaggle_handle"], facts["metadata"]["params"])
    for family, preset in all_published():
        handle, params = known[preset.name]
        assert handle == f"kaggle://keras/{family.handle}/keras/{preset.name}/{preset.version}"
        assert params == preset.params


def test_no_preset_of_these_families_is_missing():
    listed = {preset.name for _, preset in all_published()}
    classes = {name for family in FAMILIES for name in family.classes}
    for backbone_class, presets in BUILTIN_PRESETS_FOR_BACKBONE.items():
        if backbone_class.__name__ in classes:
            assert listed >= set(presets), backbone_class


def test_the_folder_of_the_user_is_never_downloaded(tmp_path):
    spec = spec_of(f"hub:{tmp_path}")
    assert hub.folder_of(spec) == Path(tmp_path)
    assert not provide(spec, download=never, convert=never)
