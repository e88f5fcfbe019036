"""Where weights come from, and one clear line where they do not come. No test touches the network."""

import hashlib
import shutil
import sys
from pathlib import Path

import keras
import pytest

from featcache.backbones import weights
from featcache.backbones.build import build
from featcache.errors import UsageError, WeightsMismatch, WeightsMissing
from featcache.extraction import extract
from featcache.spec import BackboneSpec

FILE = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96_no_top.h5"
SMALL = BackboneSpec("mobilenet_v2", (("alpha", 0.35),))


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path / "keras"


@pytest.fixture
def no_network(home, monkeypatch):
    """Let Keras fail as it does without network."""

    def refused(fname=None, origin=None, **options):
        raise Exception(f"URL fetch failure on {origin}: None -- [Errno -2] Name or service not known")

    monkeypatch.setattr(sys.modules[keras.applications.MobileNetV2.__module__].file_utils, "get_file", refused)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "mine.weights.h5"
    keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(32, 32, 3), alpha=0.35).save_weights(
        path
    )
    return path


def test_without_network_the_message_says_which_file_to_put_where(home, no_network):
    message = (
        rf"^No network, and the ImageNet weights of 'mobilenet_v2' are not on this machine. .*put {FILE} into "
        rf"{home}/models \(KERAS_HOME is {home}\); "
        r"or use -b glyphnet \(needs no download\) or --weights none \(random\)$"
    )
    with pytest.raises(WeightsMissing, match=message):
        build(SMALL, 96, "avg")


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
    built = build(BackboneSpec(SMALL.name, SMALL.options, str(mine)), 32, "avg").network
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
        build(BackboneSpec(SMALL.name, SMALL.options, str(short)), 32, "avg")


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
        assert weights.source(BackboneSpec(SMALL.name, SMALL.options, str(path)), 32) == f"sha256 {digest}"
    assert weights.source(SMALL, 96) is None
    (home / "models").mkdir(parents=True)
    shutil.copy(mine, home / "models" / FILE)
    assert weights.source(SMALL, 96) == f"sha256 {digest}"


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
        home.mkdir()
        (home / "keras.json").write_text(text)
    assert weights.keras_backend() == backend
