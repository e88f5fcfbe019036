"""SavedModel folders as frozen backbones: a graph of TensorFlow around variables, of which only the output is known.

Such a graph may read and write files when it is loaded or run, so it is code and needs to be trusted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featcache.backend import start_keras
from featcache.errors import NotAModel, UsageError
from featcache.files import file_digest
from featcache.spec import digest_of

GRAPH = "saved_model.pb"
SIGNATURE = "serving_default"
_UNUSED = ("fingerprint.pb", "keras_metadata.pb")  # with random numbers, or read by Keras 2 alone


def is_saved(path: Path) -> bool:
    """Tell whether a path is a folder with a SavedModel in it."""
    return (path / GRAPH).is_file()


def digests(folder: Path) -> tuple[str, str]:
    """Return the digest of everything but the graph (variables, assets), and that of the graph."""
    files = sorted(one for one in folder.rglob("*") if one.is_file() and one.name not in (GRAPH, *_UNUSED))
    values = [[one.relative_to(folder).as_posix(), file_digest(one)] for one in files]
    return digest_of(values), file_digest(folder / GRAPH)


def load(folder: Path, trust: bool) -> Any:
    """Return the Keras model of a SavedModel's serving signature, one layer around it.

    Raises NotAModel if it is not to be trusted or takes or gives several things, UsageError on another backend.
    """
    if not trust:
        raise NotAModel(
            f"{folder} is a SavedModel: a graph of TensorFlow, which can read and write files. featcache does not run "
            "it unless told to trust it: --trust (of extract, backbones import and show)"
        )
    start_keras()
    import keras

    if keras.backend.backend() != "tensorflow":
        raise UsageError(
            f"{folder} is a SavedModel, which runs on TensorFlow only; Keras is on {keras.backend.backend()}"
        )
    try:
        layer = keras.layers.TFSMLayer(str(folder), call_endpoint=SIGNATURE, trainable=False, name="saved_model")
        [taken] = layer.call_endpoint_fn.structured_input_signature[1].values()
        pixels = keras.Input(batch_shape=(None, *taken.shape.as_list()[1:]), dtype=taken.dtype.name)
        [given] = layer(pixels).values()
    except Exception as error:  # TensorFlow raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise NotAModel(f"{folder} cannot be used: its {SIGNATURE} must take and give one tensor ({reason})") from error
    return keras.Model(pixels, given, name="saved_model_of_" + "".join(c if c.isalnum() else "_" for c in folder.name))


def signature(model: Any, values: Any) -> Any:
    """Return what the serving signature itself gives for values, as TensorFlow runs it."""
    import keras

    layer = model.get_layer("saved_model")
    values = keras.ops.convert_to_tensor(values)
    [given] = layer.call_endpoint_fn(values).values()
    return keras.ops.convert_to_numpy(given)
