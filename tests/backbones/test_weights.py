"""Where weights come from, and one clear line where they do not come. No test touches the network."""

import errno
import hashlib
import os
import shutil
from http.client import IncompleteRead
from pathlib import Path

import h5py
import keras
import pytest
from backbones.conftest import FILE, MODULE, NAME, SPEC, save

from featcache.backbones import weights
from featcache.backbones.build import build
from featcache.errors import DiskFault, UsageError, WeightsMismatch, WeightsMissing
from featcache.extraction import extract
from featcache.spec import BackboneSpec


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
        r"^No network, and the ImageNet weights of 'mobilenet_v2' are not on this machine \(.*not known\). .*"
        rf"put {FILE} into "
        rf"{home}/models \(KERAS_HOME is {home}\); "
        r"or use -b glyphnet \(needs no download\) or --weights none \(random\)$"
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
    with pytest.raises(WeightsMissing, match=r"--weights takes imagenet, none or a file; there is no file nowhere.h5"):
        build(BackboneSpec("mobilenet_v2", (), "nowhere.h5"), 32, "avg")


def test_an_efficientnet_takes_no_file_because_keras_would_build_another_graph(mine, home):
    message = rf"EfficientNetB0 builds another graph .* Put the file at {home}/models/efficientnetb0_notop.h5 and use"
    with pytest.raises(UsageError, match=message):
        build(BackboneSpec("efficientnet_b0", (), str(mine)), 32, "avg")


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


@pytest.mark.parametrize(
    ("text", "backend"),
    [('{"backend": "jax"}', "jax"), (None, "tensorflow"), ("broken", "tensorflow"), ("[]", "tensorflow")],
)
def test_the_backend_is_the_one_that_keras_will_take(home, monkeypatch, text, backend):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    if text is not None:
        (home / "keras.json").write_text(text)
    assert weights.keras_backend() == backend
