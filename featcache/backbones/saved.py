"""Run SavedModel folders as frozen backbones. Only the output of such a graph of TensorFlow can be read.

The graph may read and write files when it is loaded or run. So it counts as code, which the user must trust.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from featcache.backend import start_keras
from featcache.errors import NotAModel, UsageError
from featcache.files import file_digest
from featcache.spec import digest_of

GRAPH = "saved_model.pb"
SIGNATURE = "serving_default"
_UNUSED = ("fingerprint.pb", "keras_metadata.pb")  # random numbers; read only by Keras 2


def is_saved(path: Path) -> bool:
    """Return whether a path is a folder with a SavedModel in it."""
    return (path / GRAPH).is_file()


def digests(folder: Path) -> tuple[str, str]:
    """Return the digest of variables and assets, and the digest of the graph."""
    values: list[list[str]] = []
    # Sorted, since systems list files in different orders.
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (GRAPH, *_UNUSED):
            name = path.relative_to(folder).as_posix()
            values.append([name, file_digest(path)])
    return digest_of(values), file_digest(folder / GRAPH)


def load(folder: Path, trust: bool) -> Any:
    """Return a Keras model with one layer, which runs the SavedModel's serving signature.

    Raises NotAModel if it is not trusted, or has several inputs or outputs; UsageError on another backend.
    """
    if not trust:
        raise NotAModel(
            f"{folder} is a SavedModel: a graph of TensorFlow, which can read and write files. featcache does not run "
            "it unless told to trust it: `trust=True` (of extract, backbones import and show)"
        )
    start_keras()
    import keras

    if keras.backend.backend() != "tensorflow":
        raise UsageError(
            f"{folder} is a SavedModel, which runs on TensorFlow only; Keras is on {keras.backend.backend()}"
        )
    try:
        layer = keras.layers.TFSMLayer(str(folder), call_endpoint=SIGNATURE, trainable=False, name="saved_model")
        [image] = layer.call_endpoint_fn.structured_input_signature[1].values()
        pixels = keras.Input(batch_shape=(None, *image.shape.as_list()[1:]), dtype=image.dtype.name)
        [output] = layer(pixels).values()
    except Exception as error:  # TensorFlow raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise NotAModel(f"{folder} cannot be used: its {SIGNATURE} must take and give one tensor ({reason})") from error
    name = re.sub(r"[\W_]", "_", folder.name)
    return keras.Model(pixels, output, name=f"saved_model_of_{name}")


def signature(model: Any, values: Any) -> Any:
    """Return the output of the serving signature itself for values, without the Keras layer around it."""
    import keras

    layer = model.get_layer("saved_model")
    values = keras.ops.convert_to_tensor(values)
    [output] = layer.call_endpoint_fn(values).values()
    return keras.ops.convert_to_numpy(output)
