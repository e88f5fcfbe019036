"""What a model file consists of: its layers, their shapes and parameters, and which parameters train."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.backbones import own
from featcache.errors import NotAModel
from featcache.models.modelfile import is_ours, load_model


@dataclass(frozen=True)
class LayerSummary:
    """One layer. The entry of a nested model counts the layers inside it, whose entries follow."""

    name: str
    kind: str
    shape: tuple[int | None, ...] | None  # of its output, without the batch; None if it has several outputs
    parameters: int
    trainable: int  # parameters that train
    depth: int  # number of nested models around it


@dataclass(frozen=True)
class ModelSummary:
    """A model file, layer by layer."""

    model: str
    classes: tuple[str, ...]  # as the file names them; empty if it does not
    parameters: int
    trainable: int
    layers: tuple[LayerSummary, ...]


def summarize(text: str) -> ModelSummary:
    """Return what a model file of featcache, or of any Keras model, consists of. Raises NotAModel."""
    parsed = own.parse(text)
    if parsed is None or not Path(parsed[0].weights).exists():
        raise NotAModel(f"No model at {text}. Give a Keras file: featcache show MODEL.keras")
    path = Path(text)
    classes: tuple[str, ...] = ()
    if path.is_file() and is_ours(path):
        model, facts = load_model(path)
        classes = tuple(facts["classes"])
    else:
        model = own.load(parsed[0], None)
    return ModelSummary(
        model=text,
        classes=classes,
        parameters=_count(model.weights),
        trainable=_count(model.trainable_weights),
        layers=tuple(_layers(model, depth=0)),
    )


def _layers(model: Any, depth: int) -> Iterator[LayerSummary]:
    import keras

    for layer in model.layers:
        yield LayerSummary(
            name=layer.name,
            kind=type(layer).__name__,
            shape=_shape(layer),
            parameters=_count(layer.weights),
            trainable=_count(layer.trainable_weights),
            depth=depth,
        )
        if isinstance(layer, keras.Model):
            yield from _layers(layer, depth + 1)


def _shape(layer: Any) -> tuple[int | None, ...] | None:
    output = getattr(layer, "output", None)
    if output is None or isinstance(output, (list, tuple, dict)):
        return None
    return tuple(output.shape[1:])


def _count(weights: list[Any]) -> int:
    return sum(math.prod(weight.shape) for weight in weights)
