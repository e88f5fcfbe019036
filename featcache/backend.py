"""Start Keras: quietly, with the settings of the user's own folder, and only if those give the features of Keras.

Where the home folder cannot be written to, Keras takes settings and weights from /tmp/.keras, which anybody can write.
featcache never reads from there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featcache.errors import EnvironmentFault

# GPUs would compute float32 in TF32, with 10 bits of mantissa, without a word: cuBLAS and cuDNN, and JAX
TRUE_FLOAT32 = {"NVIDIA_TF32_OVERRIDE": "0", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}


# Settings of keras.json that change features without changing weights: floatx and epsilon the numbers,
# image_data_format the axes
SETTINGS = {"floatx": "float32", "epsilon": 1e-7, "image_data_format": "channels_last"}


def keras_home() -> Path:
    """Return the folder of Keras' settings and weights: KERAS_HOME, or .keras in the user's home.

    Raises EnvironmentFault if there is neither.
    """
    home = os.path.expanduser(os.environ.get("KERAS_HOME") or "~/.keras")
    if home.startswith("~"):
        raise EnvironmentFault("This user has no home folder (HOME is not set). Set KERAS_HOME to a folder for weights")
    return Path(home)


def start_keras() -> None:
    """Import Keras; if TF_CPP_MIN_LOG_LEVEL asks for silence (2 or more), with stderr closed meanwhile.

    An import that fails still raises, so nothing that matters is lost. Raises EnvironmentFault if Keras is set to
    compute something else than its defaults.
    """
    if "keras" not in sys.modules:
        for name, value in TRUE_FLOAT32.items():
            os.environ.setdefault(name, value)
        with _settings_from(keras_home()), quietly():
            import keras  # noqa: F401
    _check_settings()


@contextmanager
def _settings_from(home: Path) -> Iterator[None]:
    """Have Keras, which is being imported, take this folder even where it cannot write to it."""
    before = os.environ.get("KERAS_HOME")
    os.environ["KERAS_HOME"] = str(home)
    try:
        yield
    finally:
        if before is None:
            del os.environ["KERAS_HOME"]
        else:
            os.environ["KERAS_HOME"] = before


def _check_settings() -> None:
    import keras

    for name, needed in SETTINGS.items():
        value = getattr(keras.config, name)()
        if value != needed:
            raise EnvironmentFault(
                f"Keras is set to {name}={value}, with which the same weights give other features; featcache needs "
                f"{needed}. Change it in {keras_home() / 'keras.json'}, or call keras.config.set_{name}({needed!r})"
            )


@contextmanager
def quietly() -> Iterator[None]:
    """Have what native code prints on stderr lost, if TF_CPP_MIN_LOG_LEVEL asks for silence (2 or more)."""
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0") < "2":
        yield
        return
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
