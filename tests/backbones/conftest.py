"""A KERAS_HOME of one's own, and files such as Keras downloads: of random weights, in its old format."""

import sys

import h5py
import keras
import pytest
from keras.src.backend import config
from keras.src.legacy.saving import legacy_h5_format

from featcache.spec import BackboneSpec

collect_ignore = ["golden/make_keras2.py"]  # needs Keras 2

FILE = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96_no_top.h5"
NAME = "mobilenet_v2:alpha=0.35:size=96"
SPEC = BackboneSpec("mobilenet_v2", (("alpha", 0.35),))
MODULE = sys.modules[keras.applications.MobileNetV2.__module__]


def save(path, **options):
    """Write the weights of a random MobileNetV2 as those of ImageNet are written."""
    model = keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=(96, 96, 3), **{"alpha": 0.35, **options}
    )
    return save_as_keras_2(path, model)


def save_as_keras_2(path, model):
    """Write weights as those of ImageNet are written."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    return path


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """Return the bytes of a file that fits SPEC."""
    return save(tmp_path_factory.mktemp("weights") / FILE).read_bytes()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return an empty KERAS_HOME, which Keras uses too, although it has started already."""
    folder = tmp_path / "keras"
    folder.mkdir()
    monkeypatch.setenv("KERAS_HOME", str(folder))
    monkeypatch.setattr(config, "keras_home", lambda: str(folder))
    return folder


@pytest.fixture
def place(home):
    """Return where the file belongs; its folder is there."""
    (home / "models").mkdir()
    return home / "models" / FILE
