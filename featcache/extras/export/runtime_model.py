"""Write a model as TensorFlow's graph, from which the converters of other runtimes start."""

from __future__ import annotations

from typing import Any

from featcache.models.assemble import INPUT

OUTPUT = "probabilities"


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
