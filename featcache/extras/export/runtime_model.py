"""Prepare a model for other runtimes: they take images of one size, because only TensorFlow has the resizing layer."""

from __future__ import annotations

from typing import Any

from featcache.models.assemble import RESIZE
from featcache.spec import Preprocess

INPUT, OUTPUT = "image", "probabilities"


def of_one_size(model: Any, preprocess: Preprocess, batch: int | None = None) -> Any:
    """Return the model for (batch, size, size, 3) uint8, which shares all weights. batch: None for any number."""
    import keras

    rest = keras.Model(model.get_layer(RESIZE).output, model.output, name="rest")
    shape = (batch, preprocess.size, preprocess.size, 3)
    image = keras.Input(batch_shape=shape, dtype="uint8", name=INPUT)
    # The model casts before it resizes, so the rest takes float32.
    probabilities = rest(keras.ops.cast(image, "float32"))
    return keras.Model(image, probabilities, name="featcache")


def write_saved_model(model: Any, folder: str) -> None:
    """Write a SavedModel whose signature is image -> probabilities."""
    import keras

    def serve(image: Any) -> dict[str, Any]:
        return {OUTPUT: model(image, training=False)}

    spec = keras.InputSpec(shape=tuple(model.inputs[0].shape), dtype="uint8", name=INPUT)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", serve, input_signature=[spec])
    archive.write_out(folder, verbose=False)
