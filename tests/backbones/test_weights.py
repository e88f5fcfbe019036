"""Where weights come from, and one clear line where they do not come. No test touches the network."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import warnings
from http.client import IncompleteRead
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from backbones.conftest import FILE, MODULE, NAME, SPEC, save, save_as_keras_2
from PIL import Image

from featcache.backbones import inventory, weights
from featcache.backbones.build import build
from featcache.backbones.registry import get
from featcache.errors import DiskFault, UsageError, WeightsMismatch, WeightsMissing
from featcache.extraction import extract
from featcache.spec import BackboneSpec


def refuse(*args, **options):
    raise AssertionError("Keras looks for a file by itself")


@pytest.fixture
def no_network(home, monkeypatch):
    """Let Keras fail as it does without network."""

    def refused(fname=None, origin=None, **options):
        raise Exception(f"URL fetch failure on {origin}: None -- [Errno -2] Name or service not known")

    monkeypatch.setattr(MODULE.file_utils, "get_file", refused)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "mine.weights.h5"
    keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(32, 32, 3), alpha=0.35).save_weights(
        path
    )
    return path


def test_without_network_the_message_says_which_file_to_put_where(home, no_network):
    message = (
        r"^No network, and the ImageNet weights of 'mobilenet_v2' are not on this machine "
        r"\(\[Errno -2\] Name or service not known\)\. .*"
        rf"put {FILE} into "
        rf"{home}/models \(KERAS_HOME is {home}\); or use efficientnet_lite0, whose weights are installed$"
    )
    with pytest.raises(WeightsMissing, match=message):
        build(SPEC, 96, "avg")


def test_without_network_an_extraction_leaves_nothing_behind(photos, tmp_path, no_network):
    ticks = []
    with pytest.raises(WeightsMissing, match=r"No network"):
        extract(photos, "mobilenet_v2:alpha=0.35", size=96, out=tmp_path / "cache.h5", progress=ticks.append)
    assert not (tmp_path / "cache.h5").exists()
    assert "downloading the ImageNet weights of mobilenet_v2, once" in [tick.note for tick in ticks]


def test_untrained_options_have_no_imagenet_weights():
    with pytest.raises(UsageError, match=r"'mobilenet_v2' cannot be built as asked: .*alpha"):
        build(BackboneSpec("mobilenet_v2", (("alpha", 0.36),)), 96, "avg")


def test_a_file_of_weights_is_loaded(mine):
    reference = keras.applications.MobileNetV2(
        include_top=False, weights=str(mine), input_shape=(32, 32, 3), alpha=0.35
    )
    built = build(BackboneSpec(SPEC.name, SPEC.options, str(mine)), 32, "avg").network
    assert all((one == other).all() for one, other in zip(built.get_weights(), reference.get_weights(), strict=True))


def test_weights_of_another_network_do_not_fit(mine):
    with pytest.raises(WeightsMismatch, match=r"The weights .*mine.weights.h5 do not fit backbone 'mobilenet_v2': "):
        build(BackboneSpec("mobilenet_v2", (("alpha", 0.5),), str(mine)), 32, "avg")


@pytest.mark.parametrize("name", ["mobilenet_v2", "glyphnet"])
@pytest.mark.parametrize("suffix", [".weights.h5", ".npz", ".txt"])
def test_a_file_that_holds_no_weights_does_not_fit(tmp_path, name, suffix):
    (tmp_path / f"notes{suffix}").write_text("no weights")
    with pytest.raises(WeightsMismatch, match=rf"notes{suffix} do not fit backbone '{name}'"):
        build(BackboneSpec(name, (), str(tmp_path / f"notes{suffix}")), 32, "avg")


@pytest.mark.parametrize("cut", [100, 100_000])
def test_a_file_that_was_cut_off_does_not_fit(mine, tmp_path, cut):
    short = tmp_path / "short.weights.h5"
    short.write_bytes(mine.read_bytes()[:-cut])
    with pytest.raises(WeightsMismatch, match=r"short.weights.h5 do not fit"):
        build(BackboneSpec(SPEC.name, SPEC.options, str(short)), 32, "avg")


def damaged(place):
    with pytest.raises(WeightsMismatch, match=r"^The weights .* are damaged \(a broken download\?\)") as raised:
        build(SPEC, 96, "avg")
    [said] = str(raised.value).splitlines()
    assert str(place) in said
    assert said.endswith(f"Delete it or run featcache backbones fetch {NAME}")
    return said


@pytest.mark.parametrize("length", [1, 51, 52, 100_000, -1])
def test_what_a_broken_download_left_is_called_damaged(place, good, length):
    place.write_bytes(good[:length])
    size = len(good[:length])
    known = f"has {size} of {len(good)} bytes" if size >= 52 else f"has {size} bytes, which are no HDF5"
    assert f": the file {known}. " in damaged(place)


@pytest.mark.parametrize(
    ("content", "known"),
    [
        (b"", "is empty"),
        (bytes(4096), "has 4096 bytes, which are no HDF5"),
        (b"<!DOCTYPE html><html><body>Please log in to the network of the hotel</body></html>", "which are no HDF5"),
    ],
)
def test_a_file_that_is_no_download_at_all_is_called_damaged(place, content, known):
    place.write_bytes(content)
    assert known in damaged(place)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_every_version_of_hdf5_says_how_long_it_is(tmp_path, libver):
    path = tmp_path / "some.h5"
    with h5py.File(path, "w", libver=libver) as file:
        file["x"] = range(1000)
    whole = path.read_bytes()
    assert weights.damage(path) is None
    path.write_bytes(whole[:-1])
    assert weights.damage(path) == f"has {len(whole) - 1} of {len(whole)} bytes"


def test_whole_weights_of_another_width_under_that_name_are_not_called_damaged(place):
    save(place, alpha=0.5)
    with pytest.raises(WeightsMismatch, match=rf"^The weights {place} do not fit backbone 'mobilenet_v2': "):
        build(SPEC, 96, "avg")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_takes_no_download_is_not_taken_for_a_missing_network(home, monkeypatch, number):
    def full(*args, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(MODULE.file_utils, "urlretrieve", full)
    with pytest.raises(DiskFault, match=rf"cannot be written to {home}/models/{FILE}: {os.strerror(number)}"):
        build(SPEC, 96, "avg")


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), IncompleteRead(b"x"), TimeoutError()])
def test_a_connection_that_breaks_is_a_missing_network(home, monkeypatch, error):
    def broken(*args, **options):
        raise error

    monkeypatch.setattr(MODULE.file_utils, "urlretrieve", broken)
    with pytest.raises(WeightsMissing, match=rf"No network, .*put {FILE} into"):
        build(SPEC, 96, "avg")


def test_a_pickle_is_not_loaded_as_weights(tmp_path):
    import pickle

    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "evil.npz").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(WeightsMismatch, match=r"evil.npz do not fit backbone 'glyphnet'"):
        build(BackboneSpec("glyphnet", (), str(tmp_path / "evil.npz")), 32, "avg")
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(WeightsMissing, match=r"`weights` takes imagenet, none or a file; there is no file nowhere.h5"):
        build(BackboneSpec("mobilenet_v2", (), "nowhere.h5"), 32, "avg")


def test_an_efficientnet_takes_no_file_because_keras_would_build_another_graph(mine, home):
    message = (
        rf"EfficientNetB0 builds another graph .* Put the file at {home}/models/efficientnetb0_notop.h5 and use .*, "
        r"if it is Keras' own; otherwise save the whole network \(model.save\) and use `backbone='MODEL.keras'`$"
    )
    with pytest.raises(UsageError, match=message):
        build(BackboneSpec("efficientnet_b0", (), str(mine)), 32, "avg")


# The file that is digested is the file that is loaded

SMALL = {"mobilenet_v2": {"alpha": 0.35}, "mobilenet_v3_small": {}, "efficientnet_b0": {}}


@pytest.fixture(params=SMALL)
def official(request, home, monkeypatch):
    """Return a backbone and the file that stands for its ImageNet weights, whose digest Keras would expect."""
    entry = get(request.param)
    spec = BackboneSpec(entry.name, tuple(SMALL[entry.name].items()))
    file = weights.file_of(spec, 32)
    file.parent.mkdir()
    network = getattr(keras.applications, entry.constructor)(
        include_top=False, weights=None, input_shape=(32, 32, 3), **SMALL[entry.name]
    )
    for layer in network.layers:
        if isinstance(layer, keras.layers.Normalization):
            mean, variance = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
            layer.set_weights([mean, variance, np.array(1)])
    save_as_keras_2(file, network)
    digest = hashlib.md5(file.read_bytes()).hexdigest()
    monkeypatch.setattr(inventory, "keras_digest", lambda name: digest if name == file.name else None)
    return spec, file


@pytest.mark.slow
def test_a_network_computes_what_keras_computes_with_the_same_file(official, monkeypatch):
    spec, file = official
    monkeypatch.setattr(MODULE.file_utils, "get_file", lambda name, *rest, **options: str(file.parent / name))
    constructor = getattr(keras.applications, get(spec.name).constructor)
    with warnings.catch_warnings(action="ignore"):
        reference = constructor(
            include_top=False, weights="imagenet", input_shape=(32, 32, 3), pooling="avg", **dict(spec.options)
        )
    monkeypatch.setattr(MODULE.file_utils, "get_file", refuse)
    built = build(spec, 32, "avg")
    pixels = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    expected = reference.predict(pixels, verbose=0)
    assert np.array_equal(built.network.predict(pixels, verbose=0), expected)
    assert expected.std() > 0
    assert built.source == f"sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}"


@pytest.mark.slow
def test_weights_in_a_folder_that_cannot_be_written_to_are_loaded_from_there(official, monkeypatch):
    spec, _ = official
    written = build(spec, 32, "avg").weights_digest
    monkeypatch.setattr(MODULE.file_utils, "get_file", refuse)
    monkeypatch.setattr(os, "access", lambda folder, mode: False)
    assert build(spec, 32, "avg").weights_digest == written


def test_a_file_that_was_placed_by_hand_stays_as_it_is(official, no_network):
    spec, file = official
    expected = inventory.keras_digest(file.name)
    with h5py.File(file, "a") as content:
        content.attrs["repaired"] = "by hand"
    mine = file.read_bytes()
    message = (
        rf"^{file} has other bytes than Keras' own file: its MD5 is {hashlib.md5(mine).hexdigest()}, Keras expects "
        rf"{expected}. It was left as it is. To use it: `.*`.* featcache backbones fetch {spec.name}.*$"
    )
    with pytest.raises(WeightsMismatch, match=message):
        build(spec, 32, "avg")
    assert file.read_bytes() == mine
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.slow
def test_the_command_line_leaves_a_file_that_was_placed_by_hand(photos, tmp_path, home):
    file = home / "models" / "efficientnetb0_notop.h5"
    file.parent.mkdir()
    with h5py.File(file, "w") as content:
        content["mine"] = [1, 2, 3]
    mine = file.read_bytes()
    command = [sys.executable, "-m", "featcache_cli.app", "extract", str(photos), "-b", "efficientnet_b0:size=32"]
    command += ["-o", "cache.h5", "-q"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    [line] = [line for line in done.stderr.splitlines() if line.startswith("featcache: ")]
    assert hashlib.md5(mine).hexdigest() in line
    assert inventory.keras_digest(file.name) in line
    assert file.read_bytes() == mine


def test_a_folder_that_cannot_be_written_to_takes_no_download(home, monkeypatch):
    monkeypatch.setattr(MODULE.file_utils, "get_file", refuse)
    monkeypatch.setattr(os, "access", lambda folder, mode: False)
    with pytest.raises(DiskFault, match=rf"^{home}/models/{FILE} is missing, and {home} cannot be written to. Set K"):
        build(SPEC, 96, "avg")


def test_keras_does_not_download_to_the_folder_that_it_was_imported_with(home, tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE.file_utils, "get_file", refuse)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "later"))
    message = rf"later/models/{FILE} is missing, and Keras would download it to {home}: .* Set KERAS_HOME before"
    with pytest.raises(WeightsMissing, match=message):
        build(SPEC, 96, "avg")


@pytest.mark.parametrize("change", ["own", "imagenet"])
def test_a_file_that_changes_while_it_is_read_is_not_taken(place, good, mine, tmp_path, monkeypatch, change):
    place.write_bytes(good)
    file = shutil.copy(mine, tmp_path / "own.weights.h5") if change == "own" else place
    load = keras.Model.load_weights

    def load_and_change(model, path):
        load(model, path)
        with file.open("ab") as stream:
            stream.write(b"more")

    monkeypatch.setattr(keras.Model, "load_weights", load_and_change)
    spec = SPEC if change == "imagenet" else BackboneSpec(SPEC.name, SPEC.options, str(file))
    with pytest.raises(WeightsMismatch, match=rf"^{file} changed while it was read"):
        build(spec, 96, "avg")


def test_layers_have_the_same_names_after_a_download(place, good, monkeypatch):
    def download(name, *rest, **options):
        place.write_bytes(good)
        return str(place)

    monkeypatch.setattr(MODULE.file_utils, "get_file", download)
    first, second = (build(SPEC, 96, "avg") for _ in range(2))
    assert first.network.get_config() == second.network.get_config()
    assert first.weights_digest == second.weights_digest


@pytest.mark.slow
def test_new_images_do_not_join_rows_of_other_weights_under_the_same_source(photos, tmp_path, place, good, monkeypatch):
    save(place)
    poisoned = f"sha256 {hashlib.sha256(good).hexdigest()}"
    with monkeypatch.context() as patch:
        patch.setattr(weights, "source", lambda spec, size: poisoned)
        extract(photos, "mobilenet_v2:alpha=0.35:size=96", out=tmp_path / "cache.h5")
    place.write_bytes(good)
    Image.new("RGB", (9, 9), "orange").save(next(photos.iterdir()) / "new.png")
    with pytest.raises(WeightsMismatch, match=r"was made with other weights than the file that it names holds"):
        extract(photos, "mobilenet_v2:alpha=0.35:size=96", out=tmp_path / "cache.h5")


def test_a_source_determines_the_values(mine, tmp_path, home):
    digest = hashlib.sha256(mine.read_bytes()).hexdigest()
    shutil.copy(mine, tmp_path / "copy.h5")
    for path in (mine, tmp_path / "copy.h5"):
        assert weights.source(BackboneSpec(SPEC.name, SPEC.options, str(path)), 32) == f"sha256 {digest}"
    assert weights.source(SPEC, 96) is None
    (home / "models").mkdir()
    shutil.copy(mine, home / "models" / FILE)
    assert weights.source(SPEC, 96) == f"sha256 {digest}"


def test_random_weights_are_known_by_seed_version_and_backend(monkeypatch):
    one, two = (weights.source(BackboneSpec("glyphnet", weights="none", seed=seed), 32) for seed in (1, 2))
    assert one != two
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert weights.source(BackboneSpec("glyphnet", weights="none", seed=1), 32) != one
    monkeypatch.setattr(weights, "version", lambda package: "9.9")
    assert "keras 9.9 jax" in weights.source(BackboneSpec("glyphnet", weights="none", seed=1), 32)


def test_the_embedded_weights_come_with_the_package(monkeypatch):
    spec = BackboneSpec("glyphnet", weights="embedded")
    assert weights.source(spec, 32).startswith("sha256 ")
    assert weights.file_of(spec, 32).stat().st_size < 2_000_000
