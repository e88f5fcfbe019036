"""A model once more, computing at reduced precision from float32 weights: what trains faster on an accelerator."""

from __future__ import annotations

from typing import Any

from featcache.models.assemble import HEAD


def twin_of(model: Any, precision: str) -> Any:
    """Return a copy of a logits model whose layers compute in `precision`; its head stays in float32."""
    import keras

    policy = f"mixed_{precision}"

    def again(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Layer):
            return layer  # a bare operation: it computes in the precision of what it gets
        is_of_head = layer.name.startswith(HEAD)
        return layer.__class__.from_config(layer.get_config() | {"dtype": "float32" if is_of_head else policy})

    found = keras.models.clone_model(model, clone_function=again, recursive=True)
    found.set_weights(model.get_weights())
    for one, other in zip(found._flatten_layers(), model._flatten_layers(), strict=True):
        one.trainable = other.trainable
    return found
