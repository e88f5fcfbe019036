"""Keras takes its settings from the user's own folder, and only those that give the features of Keras."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from featcache.backend import keras_backend, keras_home, start_keras
from featcache.errors import EnvironmentFault


@pytest.fixture
def settings():
    """Set Keras back to what it was."""
    before = keras.config.floatx(), keras.config.epsilon(), keras.config.image_data_format()
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_epsilon(before[1])
    keras.config.set_image_data_format(before[2])


@pytest.mark.parametrize(
    ("name", "value"), [("floatx", "float16"), ("epsilon", 0.1), ("image_data_format", "channels_first")]
)
def test_settings_that_change_features_are_refused(settings, name, value):
    getattr(keras.config, f"set_{name}")(value)
    with pytest.raises(EnvironmentFault, match=rf"^Keras is set to {name}={value}, .*keras.json, or call .*set_{name}"):
        start_keras()


@pytest.mark.slow
def test_settings_of_the_users_own_file_are_refused_in_one_line(tmp_path):
    (tmp_path / "keras.json").write_text('{"image_data_format": "channels_first"}')
    code = "from featcache.backend import start_keras; start_keras()"
    environment = os.environ | {"KERAS_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("featcache.errors.EnvironmentFault: Keras is set to image_data_format=channels_first")
    assert f"Change it in {tmp_path}/keras.json" in last


@pytest.mark.slow
def test_settings_are_never_those_of_a_folder_that_anybody_can_write_to(tmp_path):
    code = (
        "import os; os.access = lambda path, mode: False\n"
        "from featcache.backend import start_keras; start_keras()\n"
        "from keras.src.backend import config; print(config.keras_home(), os.environ.get('KERAS_HOME'))"
    )
    environment = os.environ | {"HOME": str(tmp_path)}
    environment.pop("KERAS_HOME", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/.keras None\n"


def test_the_folder_is_the_one_of_keras(monkeypatch):
    monkeypatch.setenv("KERAS_HOME", "~/weights")
    assert keras_home() == Path.home() / "weights"
    for unset in (lambda: monkeypatch.setenv("KERAS_HOME", ""), lambda: monkeypatch.delenv("KERAS_HOME")):
        unset()
        assert keras_home() == Path.home() / ".keras"


def test_without_a_home_folder_it_says_what_to_set(monkeypatch):
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(EnvironmentFault, match=r"^This user has no home folder .*Set KERAS_HOME"):
        keras_home()


@pytest.mark.parametrize(
    ("text", "backend"),
    [('{"backend": "jax"}', "jax"), (None, "tensorflow"), ("broken", "tensorflow"), ("[]", "tensorflow")],
)
def test_the_backend_is_the_one_that_keras_will_take(tmp_path, monkeypatch, text, backend):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    if text is not None:
        (tmp_path / "keras.json").write_text(text)
    assert keras_backend() == backend


# Starts Keras where the libraries of some backends cannot be found, whatever is installed here.
WITHOUT = """
import importlib.abc, importlib.machinery, importlib.util, sys
missing = sys.argv[1].split(",")

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in missing:
            raise ModuleNotFoundError(f"No module named {name!r}")

find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in missing else find(name)
sys.meta_path.insert(0, Missing())
from featcache.backend import start_keras
start_keras()
"""


def started_without(missing, **environment):
    """Return the last line of an attempt to start Keras without these libraries."""
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"} | environment
    command = [sys.executable, "-c", WITHOUT, missing]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("backend", "reason", "cure"),
    [
        ("torch", "ModuleNotFoundError: No module named 'torch'", ", or pip install torch"),
        ("theano", "featcache runs on tensorflow, jax, torch", ""),
        ("numpy", "featcache runs on tensorflow, jax, torch", ""),
        ("openvino", "featcache runs on tensorflow, jax, torch", ""),
    ],
)
def test_a_backend_that_is_not_there_is_one_line_that_says_where_it_is_set(tmp_path, backend, reason, cure):
    line = started_without("torch,jax", KERAS_BACKEND=backend)
    assert line == (
        f"featcache.errors.EnvironmentFault: Keras is set to the backend {backend} (KERAS_BACKEND), which cannot be "
        f"used: {reason}. Run on tensorflow, which is installed: KERAS_BACKEND=tensorflow featcache ..{cure}"
    )


def test_a_backend_of_an_old_settings_file_is_named_with_the_file(tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "theano"}')
    line = started_without("", KERAS_HOME=str(tmp_path))
    assert f"Keras is set to the backend theano ({tmp_path / 'keras.json'}), which" in line


def test_only_backends_that_are_installed_are_advised():
    line = started_without("tensorflow,jax,torch")
    assert line.endswith("No module named 'tensorflow'. pip install tensorflow")
