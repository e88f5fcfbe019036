"""Features equal the reference: the constructor, its own preprocess_input and model.predict on the same pixels."""

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tiny import TOY

from featcache.backbones.build import build, feature_model
from featcache.backbones.devices import devices, is_surely_cpu, on_cpu, on_device
from featcache.backbones.parse import requests
from featcache.errors import EnvironmentFault, UsageError
from featcache.extraction import engines, extract
from featcache.extraction.batches import Batched
from featcache.extraction.engines import (
    KerasEngine,
    PixelEngine,
    Rival,
    agree,
    choose,
    provenance,
    weights_source_of,
)
from featcache.images.decode import decode
from featcache.spec import BackboneSpec, Preprocess

from .counting import Killed

POOLS = {
    "avg": lambda maps: maps.mean(axis=(1, 2)),
    "max": lambda maps: maps.max(axis=(1, 2)),
    "flatten": lambda maps: maps.reshape(len(maps), -1),
}
MOBILENET = "mobilenet_v2:alpha=0.35:weights=none:size=32"


def pixels_of(cache, size, resize="stretch"):
    preprocess = Preprocess(size, resize)
    return np.stack([decode((cache.root / row.path).read_bytes(), preprocess) for row in cache.rows])


def largest_relative_difference(found, reference):
    return np.abs(found - reference).max() / np.abs(reference).max()


def test_glyphnet_gives_what_its_network_gives(toy):
    network = build(BackboneSpec("glyphnet", weights="none"), 32, "avg").network
    reference = POOLS["avg"](network.predict(pixels_of(toy, 32) / np.float32(127.5) - 1, verbose=0))
    assert largest_relative_difference(toy.features(toy.rows, f"{TOY}/top"), reference) < 1e-4


@pytest.mark.slow
def test_mobilenet_gives_what_its_constructor_and_preprocessing_give(photos, tmp_path):
    import keras

    cache = extract(photos, MOBILENET, out=tmp_path / "cache.h5", resize="crop")
    network = build(BackboneSpec("mobilenet_v2", (("alpha", 0.35),), "none"), 32, "flatten").network
    reference_network = keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=(32, 32, 3), alpha=0.35, pooling="avg"
    )
    reference_network.set_weights(network.get_weights())
    pixels = pixels_of(cache, 32, "crop").astype(np.float32)
    reference = reference_network.predict(keras.applications.mobilenet_v2.preprocess_input(pixels), verbose=0)
    assert largest_relative_difference(cache.features(cache.rows), reference) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_a_layer_inside_gives_its_own_pooled_maps_also_beside_others(photos, tmp_path, pool):
    import keras

    layers = ["block_1_relu", "block_3_relu", "top"]
    cache = extract(photos, TOY, out=tmp_path / "cache.h5", tap=layers, pool=pool)
    network = build(BackboneSpec("glyphnet", weights="none"), 32, "flatten").network
    inputs = pixels_of(cache, 32) / np.float32(127.5) - 1
    for tap, layer in zip(sorted(cache.taps), layers, strict=True):
        output = network.get_layer(layer).output if layer != "top" else network.output
        maps = keras.Model(network.input, output).predict(inputs, verbose=0)
        assert largest_relative_difference(cache.features(cache.rows, tap), POOLS[pool](maps)) < 1e-4


def test_pixels_are_the_pixels_between_0_and_1(toy):
    reference = pixels_of(toy, 8).reshape(90, -1) / 255
    assert np.allclose(toy.features(toy.rows, "pixels:size=8/top"), reference, atol=1e-7)


def test_pixels_come_as_float32_in_rows():
    (features,) = PixelEngine().forward(np.full((2, 4, 4, 3), 255, np.uint8))
    assert (features.shape, features.dtype, features.min()) == ((2, 48), np.float32, 1.0)


def test_an_image_has_the_same_features_in_every_batch_and_at_every_place():
    (request,) = requests(TOY)
    engine = KerasEngine(build(request.spec, 32, "avg"), request.taps("w"), batch=8)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    (whole,) = engine.forward(images)
    assert np.array_equal(engine.forward(images[3:5])[0], whole[3:5])
    assert np.array_equal(engine.forward(images[::-1])[0], whole[::-1])


def test_an_engine_gives_float32_of_the_images_alone():
    (request,) = requests(TOY)
    engine = KerasEngine(build(request.spec, 32, "avg"), request.taps("w"), batch=8)
    (features,) = engine.forward(np.zeros((3, 32, 32, 3), np.uint8))
    assert (features.shape, features.dtype) == ((3, 256), np.float32)


def test_provenance_remembers_where_the_weights_came_from():
    made_by = provenance(PixelEngine(), "random seed 4 keras 3.15.1 jax")
    assert weights_source_of(made_by).startswith("random seed 4 keras ")
    assert weights_source_of("{}") is None


# Memory that runs out


class ResourceExhaustedError(Exception):
    """As TensorFlow's."""


class Small(Batched):
    """Sums the pixels of at most `room` images at once."""

    def __init__(self, batch, room, error=None):
        super().__init__("small", batch)
        self.room, self.error, self.sizes = room, error or ResourceExhaustedError("OOM when allocating"), []

    def compute(self, batch):
        if len(batch) > self.room:
            raise self.error
        return [batch.reshape(len(batch), -1).sum(axis=1, keepdims=True).astype(np.float32)]

    def resized(self, batch):
        self.sizes.append(batch)


IMAGES = np.random.default_rng(0).integers(0, 256, (37, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    "error",
    [
        ResourceExhaustedError(),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"),
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_out_of_memory_halves_the_batch_and_loses_no_image(error):
    engine = Small(32, 7, error)
    assert np.array_equal(engine.forward(IMAGES)[0], Small(4, 7).forward(IMAGES)[0])
    assert (engine.batch, engine.sizes) == (4, [16, 8, 4])


def test_no_memory_for_one_image_is_one_line():
    with pytest.raises(EnvironmentFault, match=r"small has no memory for even one image. Use `device='cpu'`"):
        Small(32, 0).forward(IMAGES)


def test_other_errors_are_not_taken_for_it():
    with pytest.raises(RuntimeError, match="shapes"):
        Small(32, 7, RuntimeError("shapes do not match")).forward(IMAGES)


# Which engine


def of(factor, noise=0.0):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(16, 40)).astype(np.float32)
    return [features * factor + noise * rng.normal(size=features.shape).astype(np.float32)]


@pytest.mark.parametrize("other", [of(1.01), of(1, noise=0.01), of(-1), of(np.nan), [of(1)[0][::-1]]])
def test_an_engine_that_is_a_percent_off_is_refused(other):
    with pytest.raises(EnvironmentFault, match=r"OpenVINO does not agree with Keras: cosine .*, at most .* stan"):
        agree(of(1), other, "float32")


def test_rounding_is_agreement_and_reduced_precision_has_room():
    assert "cosine 1.000000" in agree(of(1), of(1, noise=1e-5), "float32")
    assert "cosine 0.9" in agree(of(1), of(1, noise=0.1), "bfloat16")
    with pytest.raises(EnvironmentFault, match="does not agree"):
        agree(of(1), of(1, noise=1.0), "bfloat16")


@pytest.fixture
def toy_taps():
    (request,) = requests(TOY)
    return request.taps("w")


def build_toy(precision="float32"):
    (request,) = requests(TOY)
    return build(request.spec, 32, "avg", precision)


SAMPLE = np.random.default_rng(2).integers(0, 256, (32, 32, 32, 3), np.uint8)


class Fake(Batched):
    """An OpenVINO that computes as Keras does, but for a factor."""

    factor = 1.0

    def __init__(self, backbone, taps, batch, precision):
        super().__init__("openvino fake", batch)
        self._keras = KerasEngine(backbone, taps, batch)

    def compute(self, batch):
        return [array * np.float32(self.factor) for array in self._keras.compute(batch)]


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(engines, "RIVALS", {"openvino": Rival("OpenVINO", 4, lambda: True, Fake)})
    return monkeypatch


@pytest.mark.parametrize(("times", "chosen"), [((2.0, 1.0), "openvino"), ((1.0, 1.0), "keras"), ((1.0, 2.0), "keras")])
def test_auto_takes_the_faster_engine(fake, toy_taps, times, chosen):
    said = []
    fake.setattr(engines, "seconds_per_image", lambda engine, sample: times[engine.name.startswith("openvino")])
    engine = choose(build_toy, toy_taps, SAMPLE, num_images=1000, say=said.append)
    assert engine.name.split()[0] == chosen
    assert f"OpenVINO is {times[0] / times[1]:.1f} times as fast as Keras" in said[0]


def test_auto_never_takes_an_engine_that_disagrees(fake, toy_taps):
    said = []
    fake.setattr(Fake, "factor", 1.02)
    fake.setattr(engines, "seconds_per_image", lambda engine, sample: 1.0 if "openvino" in engine.name else 9.0)
    assert choose(build_toy, toy_taps, SAMPLE, num_images=1000, say=said.append).name.startswith("keras")
    assert "does not agree with Keras" in said[0]
    with pytest.raises(EnvironmentFault, match="does not agree with Keras"):
        choose(build_toy, toy_taps, SAMPLE, engine="openvino")


@pytest.mark.parametrize("seconds_at_bfloat16", [0.5, 9.0])
def test_at_reduced_precision_the_rival_is_keras_at_that_precision(fake, seconds_at_bfloat16):
    (request,) = requests(TOY, precision="bfloat16")
    built = []

    def build_at(precision):
        built.append(precision)
        return build_toy(precision)

    def seconds(engine, sample):
        return 1.0 if "openvino" in engine.name else {"float32": 5.0, "bfloat16": seconds_at_bfloat16}[built[-1]]

    fake.setattr(engines, "seconds_per_image", seconds)
    engine = choose(build_at, request.taps("w"), SAMPLE, num_images=1000)
    assert built == ["float32", "bfloat16"]
    assert engine.name.startswith("keras" if seconds_at_bfloat16 < 1 else "openvino")


def test_of_two_rivals_auto_takes_the_faster(fake, toy_taps):
    class Faster(Fake):
        def __init__(self, *args):
            super().__init__(*args)
            self.name = "swift 1.0"

    fake.setitem(engines.RIVALS, "swift", Rival("Swift", 4, lambda: True, Faster))
    seconds = {"keras": 2.0, "openvino": 1.0, "swift": 0.5}
    fake.setattr(engines, "seconds_per_image", lambda engine, sample: seconds[engine.name.split()[0]])
    said = []
    assert choose(build_toy, toy_taps, SAMPLE, num_images=1000, say=said.append).name == "swift 1.0"
    assert [text.split(" is ")[0] for text in said] == ["OpenVINO", "Swift"]
    assert choose(build_toy, toy_taps, SAMPLE, engine="swift").name == "swift 1.0"


def test_for_a_few_seconds_nothing_is_tried(fake, toy_taps):
    fake.setattr(Fake, "__init__", None)
    fake.setattr(engines, "seconds_per_image", lambda engine, sample: 0.1)
    assert choose(build_toy, toy_taps, SAMPLE, num_images=150).name.startswith("keras")
    fake.setattr(engines, "seconds_per_image", None)
    assert choose(build_toy, toy_taps, SAMPLE, num_images=100).name.startswith("keras")


@pytest.mark.parametrize(("backbone", "tried"), [("glyphnet", True), (TOY, False)])
def test_where_networks_are_kept_less_work_is_worth_a_try_but_not_for_random_weights(fake, tmp_path, backbone, tried):
    fake.setenv("FEATCACHE_HOME", str(tmp_path))
    fake.setattr(engines, "seconds_per_image", lambda engine, sample: 0.1 if "keras" in engine.name else 0.01)
    (request,) = requests(backbone)

    def build_at(precision):
        return build(request.spec, 32, "avg", precision)

    engine = choose(build_at, request.taps("w"), SAMPLE, num_images=150)
    assert engine.name.startswith("openvino") is tried


def test_an_engine_that_is_not_installed_is_named(monkeypatch, toy_taps):
    monkeypatch.setattr("featcache.extraction.openvino_engine.is_installed", lambda: False)
    with pytest.raises(EnvironmentFault, match=r"OpenVINO is not installed. Install it: pip install 'featcache\[open"):
        choose(build_toy, toy_taps, SAMPLE, engine="openvino")


@pytest.mark.parametrize(
    ("device", "tool", "hidden", "expected"),
    [
        ("auto", None, None, True),
        ("auto", "/usr/bin/nvidia-smi", None, False),
        ("auto", "/usr/bin/nvidia-smi", "", True),
        ("auto", "/usr/bin/nvidia-smi", "-1", True),
        ("auto", "/usr/bin/nvidia-smi", "0", False),
        ("cpu", "/usr/bin/nvidia-smi", None, True),
        ("cpu:1", None, None, False),
        ("gpu", None, None, False),
        ("cpu,gpu", None, None, False),
    ],
)
def test_a_kept_network_is_taken_only_where_keras_would_find_no_accelerator(
    monkeypatch, device, tool, hidden, expected
):
    monkeypatch.setattr("shutil.which", lambda name: tool)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    if any(Path("/dev").glob("nvidia[0-9]*")) and device == "auto" and hidden is None:
        expected = False
    assert is_surely_cpu(device) is expected


def test_a_device_that_is_not_there_is_named(toy_taps, photos, tmp_path):
    with pytest.raises(EnvironmentFault, match=r"`device=gpu:7` is not there; Keras on .* sees cpu:0"):
        choose(build_toy, toy_taps, SAMPLE, device="gpu:7")
    with pytest.raises(EnvironmentFault, match=r"`device=gpu` is not there; Keras on .* sees cpu:0"):
        choose(build_toy, toy_taps, SAMPLE, device="gpu")
    with pytest.raises(UsageError, match=r"`device` takes auto, cpu, gpu, tpu; got 'gpuu' \(did you mean gpu"):
        choose(build_toy, toy_taps, SAMPLE, device="cpu:0,gpuu")
    with pytest.raises(UsageError, match=r"`device` takes auto, cpu, gpu, tpu; got 'gppu'"):
        extract(photos, "pixels:size=8", out=tmp_path / "c.h5", device="gppu")
    assert devices("auto") == ["auto"]
    assert devices("cpu,cpu:0") == ["cpu:0"]
    with on_device("cpu:0"):
        pass


def test_all_accelerators_are_used_where_there_are_several(monkeypatch):
    def listed(kind=None):
        there = {"cpu": ["cpu:0"], "gpu": ["gpu:0", "gpu:1"]}
        if kind == "tpu":
            raise RuntimeError("no such backend")
        return there["gpu"] if kind is None else there[kind]  # as JAX lists them

    monkeypatch.setattr("keras.distribution.list_devices", listed)
    assert devices("auto") == devices("gpu") == devices("gpu:0,gpu:1") == ["gpu:0", "gpu:1"]
    assert devices("gpu:1") == ["gpu:1"]
    assert devices("cpu") == ["cpu:0"]
    with pytest.raises(EnvironmentFault, match=r"`device=tpu` is not there"):
        devices("tpu")
    assert not on_cpu(["auto"])
    assert on_cpu(["cpu:0"])


SEVERAL_DEVICES = """
import sys, keras
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)
import featcache as fc
from featcache.extraction.engines import KerasEngine
shares, compute = {}, KerasEngine.compute
def counted(engine, batch):
    shares.setdefault(engine._device, []).append(len(batch))
    return compute(engine, batch)
KerasEngine.compute = counted
cache = fc.extract(sys.argv[1], "glyphnet", out=sys.argv[2], device="cpu", batch=5, tap="block_1_relu,top")
assert {one.engine.split(" on ")[1] for one in cache.report.taps} == {"3 devices"}, cache.report.taps
assert {name: len(calls) for name, calls in shares.items()} == {"cpu:0": 4, "cpu:1": 3, "cpu:2": 3}, shares
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_several_devices_share_every_batch(photos, tmp_path, backend):
    """36 images through three devices, five at once on each: 5 before the engine is known, then 15, 15 and 1."""
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    ours = extract(photos, "glyphnet", tap="block_1_relu,top", out=tmp_path / "ours.h5")
    flags = {"KERAS_BACKEND": backend, "XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    command = [sys.executable, "-c", SEVERAL_DEVICES, str(photos), str(tmp_path / "theirs.h5")]
    subprocess.run(command, check=True, env=os.environ | flags)
    theirs = type(ours).open(tmp_path / "theirs.h5")
    for name in ours.taps:
        found = theirs.features(ours.rows, name)
        assert largest_relative_difference(found, ours.features(ours.rows, name)) < 1e-4


needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize("tap", ["top", "block_1_relu,top"])
def test_openvino_agrees_with_keras_and_ran_in_float32(photos, tmp_path, tap):
    ours = extract(photos, TOY, tap=tap, out=tmp_path / "k.h5", engine="keras")
    theirs = extract(photos, TOY, tap=tap, out=tmp_path / "o.h5", engine="openvino")
    assert {one.engine.split()[0] for one in theirs.report.taps} == {"openvino"}
    assert ours.taps == theirs.taps
    for name in ours.taps:
        a, b = ours.features(ours.rows, name), theirs.features(theirs.rows, name)
        assert np.abs(a - b).max() < 1e-3 * a.std()


@needs_openvino
def test_openvino_gives_only_the_outputs_of_the_model(photos, tmp_path, monkeypatch):
    # Its converter also made an output of a size inside attention, which no image has a row of.
    (tmp_path / "attending.py").write_text(
        "import keras\n"
        "def network():\n"
        "    image = keras.Input((16, 16, 3))\n"
        "    tokens = keras.layers.Reshape((16, 48))(image)\n"
        "    return keras.Model(image, keras.layers.MultiHeadAttention(2, 8, name='attention')(tokens, tokens))\n"
    )
    monkeypatch.chdir(tmp_path)
    backbone = "attending:network:mode=unit"
    by_keras = extract(photos, backbone, out="keras.h5", engine="keras")
    by_openvino = extract(photos, backbone, out="openvino.h5", engine="openvino")
    rows = by_keras.rows
    assert np.allclose(by_openvino.features(rows), by_keras.features(rows), atol=1e-5)


@pytest.mark.slow
@needs_openvino
def test_openvino_gives_an_image_the_same_features_in_every_batch_and_place(toy_taps):
    from featcache.extraction.openvino_engine import OpenVINOEngine, convert

    network = convert(feature_model(build_toy(), toy_taps))
    whole = OpenVINOEngine(network, 32, "float32").forward(SAMPLE)[0]
    for batch in (1, 8, 32):
        engine = OpenVINOEngine(network, batch, "float32")
        assert np.array_equal(engine.forward(SAMPLE[::-1])[0], whole[::-1])
        assert np.array_equal(engine.forward(SAMPLE[3:5])[0], whole[3:5])


@needs_openvino
def test_reduced_precision_is_what_ran_or_is_refused(photos, tmp_path):
    import openvino

    out, asked = tmp_path / "c.h5", {"engine": "openvino", "precision": "bfloat16"}
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(EnvironmentFault, match="OpenVINO computes in f32 on this CPU, not in bfloat16"):
            extract(photos, TOY, out=out, **asked)
        return
    extract(photos, TOY, out=out, **asked)
    cache = extract(photos, TOY, out=out, engine="keras")
    rounded, exact = (cache.features(cache.rows, name) for name in (f"{TOY}/top:bfloat16", f"{TOY}/top"))
    assert 0 < np.abs(rounded - exact).max() < 0.2 * np.abs(exact).max()


@needs_openvino
@pytest.mark.slow
def test_openvino_reports_nothing_to_anybody():
    code = (
        "import sys; from featcache.extraction import openvino_engine as o;"
        "from featcache.backbones.build import build, feature_model;"
        "from featcache.backbones.parse import requests; [r] = requests('glyphnet:weights=none');"
        "o.OpenVINOEngine(o.convert(feature_model(build(r.spec, 32, 'avg'), r.taps('w'))), 4, 'float32');"
        "print(sys.modules['openvino_telemetry'], 'openvino.tools.ovc.telemetry_stub' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "True"]


def test_what_was_begun_goes_on_with_the_engine_it_has(fake, photos, tmp_path):
    out, calls = tmp_path / "c.h5", []

    def dying(engine, batch):
        calls.append(len(batch))
        if len(calls) > 3:
            raise Killed
        return engine._keras.compute(batch)

    with fake.context() as patched:
        patched.setattr(Fake, "compute", dying)
        with pytest.raises(Killed):
            extract(photos, TOY, out=out, engine="openvino", batch=5)
    assert extract(photos, TOY, out=out, batch=5).report.taps[0].engine == "openvino fake"


def test_rows_remember_which_engine_made_them(fake, photos, tmp_path):
    out = tmp_path / "c.h5"
    extract(photos, TOY, out=out, engine="openvino")
    (photos / "red" / "000.png").write_bytes((photos / "red" / "000.png").read_bytes() + b"more")
    cache = extract(photos, TOY, out=out, engine="keras")
    assert [one.split()[0] for one in cache.report.taps[0].engine.split(", ")] == ["keras", "openvino"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_of_keras_give_the_same_features(photos, tmp_path, backend):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    ours = extract(photos, "glyphnet", out=tmp_path / "ours.h5")
    code = f"import featcache as fc; fc.extract({str(photos)!r}, 'glyphnet', out={str(tmp_path / 'theirs.h5')!r})"
    environment = os.environ | {"KERAS_BACKEND": backend}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    theirs = type(ours).open(tmp_path / "theirs.h5")
    assert ours.taps == theirs.taps
    assert largest_relative_difference(theirs.features(ours.rows), ours.features(ours.rows)) < 1e-4


# Batches


def test_tiny_images_go_through_in_larger_batches_while_that_pays(monkeypatch, toy_taps):
    monkeypatch.setattr(engines, "seconds_per_image", lambda engine, sample: 1 / engine.batch + 0.0001)
    assert choose(build_toy, toy_taps, SAMPLE, engine="keras", num_images=100_000).batch == 1024
    monkeypatch.setattr(engines, "seconds_per_image", lambda engine, sample: 0.01)
    assert choose(build_toy, toy_taps, SAMPLE, engine="keras", num_images=100_000).batch == 32
    assert choose(build_toy, toy_taps, SAMPLE, engine="keras", num_images=100_000, batch=7).batch == 7


def test_taps_of_one_view_are_what_an_engine_computes(toy_taps):
    assert {tap.view for tap in toy_taps} == {"identity"}
    assert replace(toy_taps[0], view="hflip").fingerprint != toy_taps[0].fingerprint
