"""A copy of a model that computes at reduced precision from float32 weights: it trains faster on an accelerator."""

from __future__ import annotations

from typing import Any

from featcache.models.assemble import HEAD


def twin_of(model: Any, precision: str) -> Any:
    """Return a copy of a logits model whose layers compute in `precision`; its head stays in float32."""
    import keras

    policy = f"mixed_{precision}"

    def layer_at_precision(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Layer):
            return layer  # a bare operation: it computes in the precision of its input
        is_of_head = layer.name.startswith(HEAD)
        return layer.__class__.from_config(layer.get_config() | {"dtype": "float32" if is_of_head else policy})

    twin = keras.models.clone_model(model, clone_function=layer_at_precision, recursive=True)
    twin.set_weights(model.get_weights())
    # What is frozen stays frozen in the copy, in nested models too.
    for copied, original in zip(twin._flatten_layers(), model._flatten_layers(), strict=True):
        copied.trainable = original.trainable
    return twin
