"""8-bit features come from one network, which is judged, kept, and never mixed with another."""

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from tiny import TOY, write_images

from featcache import home
from featcache.backbones.build import build, feature_model
from featcache.backbones.parse import requests
from featcache.cache.reader import Cache
from featcache.errors import CalibrationFailed, EnvironmentFault, TooFewImages, UsageError
from featcache.extraction import calibration, engines, estimate, extract, quantizing
from featcache.extraction.batches import Batched
from featcache.extraction.loss import compared, loss_of
from featcache.extraction.recheck import lacking, recompute
from featcache.files import read_arrays, write_arrays
from featcache.spec import ImageRow

from .counting import Killed

TOP = f"{TOY}/top:int8"
OPTIONS = {"backbone": TOY, "precision": "int8"}
RNG = np.random.default_rng(0)


def never(*arguments):
    raise AssertionError("calibrated again")


@pytest.fixture(scope="module")
def first_day(tmp_path_factory):
    """Return a folder after the first 8-bit extraction: photos, first.h5, notes.txt, home/."""
    pytest.importorskip("nncf", reason="NNCF is not installed")
    folder = tmp_path_factory.mktemp("first")
    notes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATCACHE_HOME", str(folder / "home"))
        photos = write_images(folder / "photos")
        extract(photos, **OPTIONS, out=folder / "first.h5", progress=lambda tick: notes.append(tick.note))
    (folder / "notes.txt").write_text("\n".join(filter(None, notes)))
    return folder


@pytest.fixture
def day(first_day, tmp_path, monkeypatch):
    """Return a copy of that folder, whose home is in use."""
    folder = shutil.copytree(first_day, tmp_path / "day")
    monkeypatch.setenv("FEATCACHE_HOME", str(folder / "home"))
    return folder


def test_features_are_near_those_of_float32_and_the_figures_are_reported(day):
    cache = Cache.open(day / "first.h5")
    assert list(cache.taps) == [TOP]
    exact = extract(day / "photos", TOY, out=day / "exact.h5", engine="keras")
    loss = compared(exact.features(exact.rows), cache.features(cache.rows), [row.label for row in cache.rows])
    assert 0.99 < loss.cosine < 1
    assert not loss.is_real
    [line] = [line for line in (day / "notes.txt").read_text().splitlines() if "Calibrated" in line]
    assert "an 8-bit network on 25 images in " in line
    assert "times as fast as OpenVINO at float32: leave-one-out accuracy " in line


@pytest.mark.slow
def test_the_same_images_find_the_network_and_other_names_do_not_matter(day, monkeypatch):
    monkeypatch.setattr(calibration, "quantized", never)
    monkeypatch.setattr(engines, "convert", never)
    (day / "photos" / "red").rename(day / "photos" / "crimson")
    second = extract(day / "photos", **OPTIONS, out=day / "second.h5")
    first = Cache.open(day / "first.h5")
    assert [tap.fingerprint for tap in second.taps.values()] == [tap.fingerprint for tap in first.taps.values()]
    assert second.report.taps[0].engine.startswith("openvino")
    assert second.report.taps[0].engine.endswith("int8")


def test_new_images_go_through_the_network_that_the_cache_names(day, monkeypatch):
    before = Cache.open(day / "first.h5")
    fingerprint = before.tap().fingerprint
    write_images(day / "photos", per_class=6, first=12)
    monkeypatch.setattr(calibration, "quantized", never)
    cache = extract(day / "photos", **OPTIONS, out=day / "first.h5")
    assert (cache.report.computed, cache.report.hits) == (18, 36)
    assert list(cache.taps) == [TOP]
    assert cache.tap().fingerprint == fingerprint
    assert [row.difference for row in recompute(cache, 4)] == pytest.approx([0], abs=1e-5)


@pytest.mark.slow
def test_all_layers_and_views_of_a_network_share_it_and_more_layers_get_another(day, monkeypatch, capfd):
    options = OPTIONS | {"out": day / "layers.h5", "views": "flip"}
    both = extract(day / "photos", **options, tap="top,block_2_relu")
    digests = {tap.calibration for tap in both.taps.values()}
    assert (len(both.taps), len(digests)) == (4, 1)
    assert capfd.readouterr().out == ""  # NNCF draws bars there, where nobody keeps it from it
    with monkeypatch.context() as patched:
        patched.setattr(calibration, "quantized", never)
        write_images(day / "photos", per_class=1, first=12)
        one = extract(day / "photos", **options, tap="block_2_relu")  # one of its outputs alone
        again = extract(day / "photos", **options, tap="block_2_relu,top")
    assert (one.report.computed, again.report.computed) == (3, 3)
    name = f"{TOY}/block_2_relu:int8"
    assert np.array_equal(one.features(one.rows, name), again.features(again.rows, name))
    more = extract(day / "photos", **options, tap="top,block_1_relu")
    assert len({tap.calibration for tap in more.taps.values()}) == 2
    assert more.report.computed == 39


@pytest.mark.slow
def test_an_interrupted_extraction_goes_on_with_the_same_network(day, monkeypatch):
    undisturbed = extract(day / "photos", **OPTIONS, out=day / "undisturbed.h5", batch=5)
    forward = calibration.SomeLayers.forward
    calls = []

    def dying(engine, batch):
        calls.append(len(batch))
        if len(calls) > 1:
            raise Killed
        return forward(engine, batch)

    with monkeypatch.context() as patched:
        patched.setattr(calibration.SomeLayers, "forward", dying)
        with pytest.raises(Killed):
            extract(day / "photos", **OPTIONS, out=day / "killed.h5", batch=5)
    monkeypatch.setattr(calibration, "quantized", never)
    cache = extract(day / "photos", **OPTIONS, out=day / "killed.h5", batch=5)
    assert 0 < cache.report.computed < 36
    assert cache.path.read_bytes() == undisturbed.path.read_bytes()


@pytest.mark.slow
def test_a_network_that_is_gone_comes_back_from_the_same_images_only(day):
    before = Cache.open(day / "first.h5")
    home.prune()
    (day / "photos" / "red" / "000.png").unlink()
    write_images(day / "photos", per_class=1, seed=5, first=50)
    with pytest.raises(UsageError, match=r"The 8-bit network of tap '.*' in .* is not on this machine any more"):
        extract(day / "photos", **OPTIONS, out=day / "first.h5")
    with pytest.raises(EnvironmentFault, match=r"The 8-bit network of tap '.*' is not on this machine any more"):
        recompute(before, 1)
    home.prune()
    shutil.rmtree(day / "photos")
    photos = write_images(day / "photos")
    assert extract(photos, **OPTIONS, out=day / "again.h5").tap().fingerprint == before.tap().fingerprint


def flipped(folder):
    [file] = [file for file in (folder / "networks").iterdir() if b'"layers"' in file.read_bytes()]
    arrays = read_arrays(file)
    write_arrays(file, {**arrays, "weights": arrays["weights"] ^ np.uint8(1)})


def of_another_network(folder):
    [record] = (folder / "calibrations").iterdir()
    record.write_text(record.read_text().replace('"network": "', '"network": "0'))


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flipped, of_another_network])
def test_a_damaged_network_or_record_is_made_again(day, damage):
    damage(day / "home")
    cache = extract(day / "photos", **OPTIONS, out=day / "again.h5")
    assert cache.tap().fingerprint == Cache.open(day / "first.h5").tap().fingerprint


@pytest.mark.slow
def test_a_dry_run_tells_what_is_missing(day):
    assert estimate(day / "photos", **OPTIONS, out=day / "first.h5").missing == 0
    assert estimate(day / "photos", **OPTIONS, out=day / "new.h5").missing == 36
    assert not (day / "new.h5").exists()


@pytest.mark.slow
def test_why_compares_8_bit_taps_whatever_their_network(day):
    cache = Cache.open(day / "first.h5")
    [wanted] = requests(TOY, precision="int8")
    assert lacking(wanted, cache) == []
    [sentence] = lacking(replace(wanted, precision="float32"), cache)
    assert f"'{TOP}' differs in precision (int8, asked for float32)" in sentence


@pytest.mark.slow
def test_nncf_reports_nothing_to_anybody(day):
    code = (
        "import featcache as fc; fc.extract('photos', 'TOY', tap='block_1_relu', precision='int8', out='c.h5');"
        "import nncf.telemetry.wrapper as theirs; print(type(theirs.telemetry).__name__)"
    )
    command = [sys.executable, "-c", code.replace("TOY", TOY)]
    done = subprocess.run(command, cwd=day, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["MagicMock"]


# What cannot be computed in 8 bits


def test_nncf_is_named_where_it_is_missing(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(quantizing, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match=r"NNCF is not installed\. Install it: pip install 'featcache\[int8\]'"):
        extract(photos, **OPTIONS, out=tmp_path / "c.h5")


def test_too_few_images_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "check_installed", lambda: None)
    photos = write_images(tmp_path / "photos", per_class=6)
    with pytest.raises(TooFewImages, match=r"needs 16 training images to calibrate on, and 12 can be used"):
        extract(photos, **OPTIONS, out=tmp_path / "c.h5")


@pytest.mark.slow
def test_a_network_that_nncf_does_not_understand_is_one_line(day, monkeypatch):
    nncf = pytest.importorskip("nncf", reason="NNCF is not installed")

    def refusing(*arguments, **options):
        raise RuntimeError("no\npatterns")

    monkeypatch.setattr(nncf, "quantize", refusing)
    with pytest.raises(EnvironmentFault, match=r"^NNCF cannot quantise this network: no patterns\. Use `precision"):
        extract(day / "photos", **OPTIONS, out=day / "c.h5", tap="block_1_relu")


@pytest.mark.slow
def test_a_network_that_does_not_run_in_8_bits_is_refused():
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from featcache.extraction.openvino_engine import OpenVINOEngine, convert

    [request] = requests(TOY)
    network = convert(feature_model(build(request.spec, 32, "avg"), request.taps("w")))
    with pytest.raises(EnvironmentFault, match=r"OpenVINO computes 0 of \d+ layers in 8 bits on this CPU"):
        OpenVINOEngine(network, 4, "int8")


# What 8 bits lose


def features_of_classes(noise, num_images=300, num_classes=3):
    labels = [f"class {index % num_classes}" for index in range(num_images)]
    centres = np.repeat(np.eye(num_classes), 4, axis=1)
    exact = np.stack([centres[index % num_classes] for index in range(num_images)])
    exact = exact + RNG.normal(0, 0.2, exact.shape)
    return exact.astype(np.float32), (exact + RNG.normal(0, noise, exact.shape)).astype(np.float32), labels


def test_a_small_difference_is_no_loss_and_a_large_one_is():
    small = compared(*features_of_classes(noise=0.01))
    assert not small.is_real
    assert small.accuracies == pytest.approx((1, 1), abs=0.02)
    large = compared(*features_of_classes(noise=1.0))
    assert large.is_real
    assert large.difference[1] < 0
    assert large.accuracies[1] < large.accuracies[0] - 0.05
    assert f"leave-one-out accuracy {large.accuracies[1]:.1%}, in float32 {large.accuracies[0]:.1%}" in str(large)


@pytest.mark.parametrize("labels", ["", "alike", "alone", "by chance", "rare"])
def test_without_labels_that_can_tell_the_cosine_decides(labels):
    exact, rounded, _ = features_of_classes(noise=0.01, num_images=30)
    names = {
        "": [""] * 30,
        "alike": ["a"] * 30,
        "alone": [str(number) for number in range(30)],
        "by chance": list("abbaabababbbaababaabbabaabbaab"),
        "rare": ["a"] * 28 + ["b"] * 2,
    }[labels]
    loss = compared(exact, rounded, names)
    assert (loss.accuracies, loss.is_real) == (None, False)
    assert compared(exact, -exact, names).is_real
    assert str(loss) == "cosine to float32 at least 0.999 on 30 images"


@pytest.mark.parametrize("labels", [[""] * 30, ["a", "b"] * 15])
def test_features_that_are_no_numbers_are_a_loss(labels):
    exact, _, _ = features_of_classes(noise=0, num_images=30)
    rounded = exact.copy()
    rounded[3] = np.nan
    assert compared(exact, rounded, labels).is_real


class Features(Batched):
    def __init__(self, features):
        super().__init__("features", 300)
        self.features = features

    def compute(self, batch):
        return [self.features, self.features]


def test_a_loss_in_one_layer_is_refused_with_its_figures():
    exact, rounded, labels = features_of_classes(noise=1.0)
    rows = [ImageRow("", label, "", "train", str(number)) for number, label in enumerate(labels)]
    batches = [(rows, np.zeros((300, 1, 1, 3), np.uint8))]
    with pytest.raises(CalibrationFailed, match=r"The 8-bit network loses too much at 'deep': leave-one-out accuracy"):
        loss_of(Features(exact), Features(rounded), batches, ["deep", "top"])
    assert "accuracy" in loss_of(Features(exact), Features(exact), batches, ["deep", "top"])
