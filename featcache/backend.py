"""Start Keras: quietly, with the settings of the user's own folder, and only if those give the features of Keras.

Where the home folder cannot be written to, Keras takes settings and weights from /tmp/.keras, which anybody can write.
featcache never reads from there.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from featcache.errors import EnvironmentFault

log = logging.getLogger(__name__)

# GPUs would compute float32 in TF32, with 10 bits of mantissa, without a word: cuBLAS and cuDNN, and JAX
TRUE_FLOAT32 = {"NVIDIA_TF32_OVERRIDE": "0", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}

# Keras has others, which only infer: featcache trains on what it runs
BACKENDS = ("tensorflow", "jax", "torch")
_UNKNOWN_CODE = re.compile(r"(?:Could not locate \w+|Unknown [\w ]+:) '(?P<name>[^']+)'")
_NEEDED = f"featcache runs on {', '.join(BACKENDS)}"

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


def keras_backend() -> str:
    """Return the name of the backend that Keras will run on."""
    return _backend_setting()[0]


def _backend_setting() -> tuple[str, str]:
    """Return the name of Keras' backend and where it is set, as Keras itself looks it up."""
    if backend := os.environ.get("KERAS_BACKEND"):
        return backend, "KERAS_BACKEND"
    file = keras_home() / "keras.json"
    try:
        return str(json.loads(file.read_text())["backend"]), str(file)
    except (OSError, ValueError, KeyError, TypeError):
        return "tensorflow", "default"


def installed_backends() -> list[str]:
    """Return the backends that featcache can run on and that are installed; imports none of them."""
    return [name for name in BACKENDS if find_spec(name)]


def start_keras() -> None:
    """Import Keras, without TensorFlow's greeting unless TF_CPP_MIN_LOG_LEVEL asks for it (0 or 1).

    Call it before anything else of featcache imports Keras. Raises EnvironmentFault if Keras is set to a backend that
    is not there, or to compute something else than its defaults.
    """
    # Also where the user has imported Keras before: libraries of GPUs read these at their first computation.
    for name, value in TRUE_FLOAT32.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # it greets with four lines, and logs what does not matter
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of every new model that it traces
    # Swin of keras-hub calls an argument "mask", which Keras takes for another kind of mask, and is built when called.
    warnings.filterwarnings("ignore", message="Layer 'attn' .of type WindowAttention. was passed an input with a mask")
    warnings.filterwarnings("ignore", message=r".build\(\). was called on layer 'block_\d+(_merge)?'")
    if "keras" not in sys.modules:
        _import_keras()
    elif (backend := sys.modules["keras"].backend.backend()) not in BACKENDS:
        raise EnvironmentFault(_other_backend(backend, "imported before featcache", _NEEDED))
    _check_settings()


def start_keras_hub() -> None:
    """Import Keras and keras-hub. Raises EnvironmentFault if keras-hub is missing or cannot be imported."""
    start_keras()
    if sys.modules.get("keras_hub") is not None:
        return
    log.info("Starting keras-hub")
    try:
        with quietly():
            import keras_hub  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "keras_hub":
            raise _broken_keras_hub(error) from error
        raise EnvironmentFault("Presets of keras-hub need keras-hub: pip install 'featcache[hub]'") from error
    except Exception as error:  # a library that is broken raises what it likes
        raise _broken_keras_hub(error) from error


def _broken_keras_hub(error: Exception) -> EnvironmentFault:
    reason = " ".join(str(error).split())[:200]
    return EnvironmentFault(f"keras-hub cannot be imported: {reason}. pip install --force-reinstall keras-hub")


def _import_keras() -> None:
    backend, place = _backend_setting()
    if backend not in BACKENDS:
        raise EnvironmentFault(_other_backend(backend, place, _NEEDED))
    log.info("Starting %s takes 5 to 20 s", backend)
    try:
        with _settings_from(keras_home()), quietly():
            import keras  # noqa: F401
    except Exception as error:  # a library that is missing or broken raises what it likes
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise EnvironmentFault(_other_backend(backend, place, reason)) from error


def _other_backend(backend: str, place: str, reason: str) -> str:
    """Return the line for a backend that cannot be used: where it is set, and which could be used instead."""
    others = [name for name in installed_backends() if name != backend]
    cures = [f"Run on {name}, which is installed: KERAS_BACKEND={name} featcache .." for name in others[:1]]
    if backend in BACKENDS:
        is_missing = find_spec(backend) is None
        cures.append(f"pip install {backend}" if is_missing else f"pip install --force-reinstall keras {backend}")
    return f"Keras is set to the backend {backend} ({place}), which cannot be used: {reason}. {', or '.join(cures)}"


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


def unknown_code(error: Exception) -> str | None:
    """Return the class or function that Keras lacks to load a model; None if it is not that."""
    match = _UNKNOWN_CODE.search(str(error))
    return match["name"] if match else None


def innermost_reason(error: Exception) -> str:
    """Return why Keras cannot load a model, in one line: the last of the reasons that it nests."""
    reason = str(error).rpartition("Exception encountered:")[2]
    return " ".join(reason.split())[:200]


@contextmanager
def quietly() -> Iterator[None]:
    """Have what native code prints on stderr lost, if TF_CPP_MIN_LOG_LEVEL asks for silence (2 or more)."""
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0") < "2":
        yield
        return
    # Native code writes to handle 2 itself, so replacing sys.stderr would not reach it.
    sys.stderr.flush()
    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
