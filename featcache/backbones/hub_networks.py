"""Build the network of a keras-hub preset so that its parts can be taps and blocks.

keras-hub gives a transformer as one layer with all blocks inside. Here each block is a group of Keras' own layers,
`block_1` and so on, filled with the preset's weights: a tap can read every block, fine-tuning can unfreeze it, and a
model that was handed off loads in plain Keras, without keras-hub. Swin and MobileNetV5 keep the blocks of keras-hub.

The network takes pixels 0..255, which its first layer scales as the preset's image converter does. Dropout and drop
path are left out: cached features come from inference, and training must begin with the same.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from featcache.arrays import Floats
from featcache.backbones.hub import HubPreset, newer_version, too_new, weights_of
from featcache.backend import innermost_reason
from featcache.errors import FeatcacheError, NotAModel
from featcache.files import raise_if_of_the_system

CLS, PATCHES, BOTH = "cls", "patches", "cls_patches"  # taps of every network that has such tokens
NOISE = ("dropout_rate", "attention_dropout", "drop_path_rate", "drop_path")  # rates in the configuration of a backbone


class Tower(NamedTuple):
    """The tokens (N, T, D) that a transformer ends in. The first `num_prefix` of them are no patches."""

    tokens: Any
    num_prefix: int
    pooled: Any = None  # (N, D), where the family has a pooling of its own
    others: Sequence[Any] = ()  # further tensors that can be taps


def network_of(preset: HubPreset, size: int) -> Any:
    """Return the Keras model (N, size, size, 3) pixels 0..255 -> [top, other outputs that only a tap reads].

    Raises NotAModel if keras-hub cannot load the preset or featcache cannot take it apart.
    """
    import keras

    backbone = _backbone(preset, size)
    image = keras.Input((size, size, 3), name="image")
    scaled = keras.layers.Rescaling(preset.scale, preset.offset, name="scale_pixels")(image)
    outputs = _OUTPUTS[preset.class_name](scaled, backbone)
    name = re.sub(r"\W", "_", preset.name)
    return keras.Model(image, outputs, name=f"hub_{name}")


def _backbone(preset: HubPreset, size: int) -> Any:
    """Return keras-hub's own backbone with its weights, at float32 and without noise."""
    import keras
    import keras_hub

    _check_settings(preset, getattr(keras_hub.models, preset.class_name))
    rates = {name: 0.0 for name in NOISE if name in preset.settings}
    options: dict[str, Any] = {"image_shape": (size, size, 3)} if "image_shape" in preset.settings else {}
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        return keras_hub.models.Backbone.from_preset(str(preset.folder), dtype="float32", **rates, **options)
    except Exception as error:  # keras-hub, Keras and h5py raise many kinds
        raise _cannot_load(preset, error) from error
    finally:
        keras.config.set_dtype_policy(policy)


def _check_settings(preset: HubPreset, backbone_class: Any) -> None:
    """Raise NotAModel if a preset has a setting that the class does not have: Keras would ignore it in silence."""
    known = {"name", "trainable", "dtype", *inspect.signature(backbone_class.__init__).parameters}
    unknown = sorted(set(preset.settings) - known)
    if not unknown:
        return
    if newer := newer_version(preset.folder):
        raise too_new(preset.folder, newer)
    raise NotAModel(f"{preset.folder} has a setting that {preset.class_name} does not have: {', '.join(unknown)}")


def _cannot_load(preset: HubPreset, error: Exception) -> FeatcacheError:
    for file in weights_of(preset.folder):
        raise_if_of_the_system(file, error)
    if newer := newer_version(preset.folder):
        return too_new(preset.folder, newer)
    return NotAModel(f"keras-hub cannot load {preset.folder}: {innermost_reason(error)}")


def _token_outputs(tower: Tower) -> list[Any]:
    """Return the outputs of a network of tokens: first its top, then the other taps."""
    import keras

    layers = keras.layers
    num_tokens = tower.tokens.shape[1]
    patches = tower.tokens
    if tower.num_prefix:
        patches = layers.Cropping1D((tower.num_prefix, 0), name="patch_tokens")(patches)
    mean = layers.GlobalAveragePooling1D(name=PATCHES)(patches)
    outputs = [mean]
    if tower.num_prefix:
        first = layers.Cropping1D((0, num_tokens - 1), name="cls_token")(tower.tokens)
        cls = layers.Flatten(name=CLS)(first)
        both = layers.Concatenate(name=BOTH)([cls, mean])
        outputs = [cls, mean, both]
    if tower.pooled is not None:
        outputs.insert(0, tower.pooled)
    return [*outputs, *tower.others]


# One function for each family. Each takes the scaled image and keras-hub's backbone.


def _vit(image: Any, backbone: Any) -> list[Any]:
    embedding = backbone.get_layer("vit_patching_and_embedding")
    encoder = backbone.get_layer("vit_encoder")
    positions = _array(embedding.position_embedding.embeddings)
    # The class token never changes, so it and its position are one row.
    prefix = _array(embedding.class_token)[0] + positions[:1] if embedding.use_class_token else positions[:0]
    tokens = _embedded(image, embedding.patch_embedding, prefix, positions[len(prefix) :])
    for number, block in enumerate(encoder.encoder_layers, start=1):
        name = f"block_{number}"
        tokens = _attended(tokens, block.layer_norm_1, block.mha, name)
        tokens = _fed(tokens, block.layer_norm_2, _dense(block.mlp.dense_1, block.mlp.dense_2), name)
    return _token_outputs(Tower(_like(encoder.layer_norm, "norm", tokens), len(prefix)))


def _deit(image: Any, backbone: Any) -> list[Any]:
    embedding = backbone.get_layer("deit_patching_and_embedding")
    encoder = backbone.get_layer("deit_encoder")
    positions = _array(embedding.position_embedding)[0]
    special = np.concatenate([_array(embedding.class_token)[0], _array(embedding.distillation_token)[0]])
    prefix = special + positions[:2]
    tokens = _embedded(image, embedding.patch_embedding, prefix, positions[2:])
    for number, block in enumerate(encoder.encoder_layers, start=1):
        name = f"block_{number}"
        tokens = _attended(tokens, block.layer_norm_1, block.mha, name)
        tokens = _fed(tokens, block.layer_norm_2, _dense(block.mlp.dense, block.output_layer.dense), name)
    return _token_outputs(Tower(_like(encoder.layer_norm, "norm", tokens), len(prefix)))


def _dinov2(image: Any, backbone: Any) -> list[Any]:
    embedding = backbone.embeddings
    # keras-hub has interpolated the positions to the size of the image.
    positions = _array(embedding.interpolated_position_embeddings)[0]
    prefix = np.concatenate([_array(embedding.cls_token)[0] + positions[:1], _registers(embedding)])
    tokens = _embedded(image, embedding.patch_embeddings.projection, prefix, positions[1:])
    for number, block in enumerate(backbone.encoder.layers, start=1):
        name = f"block_{number}"
        tokens = _attended(tokens, block.norm1, block.attention.attention, name, scale=block.layer_scale1)
        mlp = _swiglu(block.mlp) if block.use_swiglu_ffn else _dense(block.mlp.fc1, block.mlp.fc2)
        tokens = _fed(tokens, block.norm2, mlp, name, scale=block.layer_scale2)
    return _token_outputs(Tower(_like(backbone.layernorm, "norm", tokens), len(prefix)))


def _dinov3(image: Any, backbone: Any) -> list[Any]:
    embedding = backbone.embeddings
    prefix = np.concatenate([_array(embedding.cls_token)[0], _registers(embedding)])
    tokens = _embedded(image, embedding.patch_embeddings.projection, prefix, None)
    rotation = _rotation(backbone.rope_embedding, image.shape[1], len(prefix), tokens)
    for number, block in enumerate(backbone.encoder.layers, start=1):
        name = f"block_{number}"
        attention = _rotating(block.attention, rotation)
        tokens = _attended(tokens, block.norm1, attention, name, scale=block.layer_scale1)
        mlp = _gated(block.mlp) if block.use_gated_mlp else _dense(block.mlp.up_proj, block.mlp.down_proj)
        tokens = _fed(tokens, block.norm2, mlp, name, scale=block.layer_scale2)
    return _token_outputs(Tower(_like(backbone.layernorm, "norm", tokens), len(prefix)))


def _clip(image: Any, backbone: Any) -> list[Any]:
    encoder = getattr(backbone, "vision_encoder", backbone)
    embedding = encoder.embedding
    positions = _array(embedding.position_embedding.embeddings)[_array(embedding.position_ids)[0].astype(int)]
    prefix = _array(embedding.class_embedding)[None] + positions[:1]
    tokens = _embedded(image, embedding.patch_embedding, prefix, positions[1:])
    tokens = _like(encoder.pre_layer_norm, "pre_norm", tokens)
    for number, block in enumerate(encoder.encoder_layers, start=1):
        name = f"block_{number}"
        tokens = _attended(tokens, block.layer_norm_1, block.attention, name)
        mlp = _dense(block.dense_1, block.dense_2, block.intermediate_activation)
        tokens = _fed(tokens, block.layer_norm_2, mlp, name)
    outputs = _token_outputs(Tower(_like(encoder.layer_norm, "norm", tokens), len(prefix)))
    if encoder is not backbone:
        outputs.append(_like(backbone.vision_projection, "projection", outputs[0]))
    return outputs


def _siglip(image: Any, backbone: Any) -> list[Any]:
    encoder = getattr(backbone, "vision_encoder", backbone)
    embedding = encoder.embedding
    positions = _array(embedding.position_embedding.embeddings)[_array(embedding.position_ids)[0].astype(int)]
    tokens = _embedded(image, embedding.patch_embedding, positions[:0], positions)
    for number, block in enumerate(encoder.encoder_layers, start=1):
        name = f"block_{number}"
        tokens = _attended(tokens, block.layer_norm1, block.self_attn, name)
        tokens = _fed(tokens, block.layer_norm2, _mlp_of_siglip(block.mlp), name)
    tokens = _like(encoder.post_layer_norm, "norm", tokens)
    return _token_outputs(Tower(tokens, 0, _attention_pooled(tokens, encoder.head)))


def _swin(image: Any, backbone: Any) -> list[Any]:
    import keras

    layers = keras.layers
    embedding = backbone.patch_embedding
    maps = _like(embedding.proj, "patches_of_pixels", image)
    side = maps.shape[1]
    tokens = layers.Reshape((side * side, maps.shape[-1]), name="tokens")(maps)
    if embedding.norm:
        tokens = _like(embedding.norm, "pre_norm", tokens)
    number = 0
    for stage in backbone.stages:
        for block in stage.blocks:
            number += 1
            if not block.attn.qkv_bias:
                raise NotAModel("a Swin transformer with qkv_bias=False, which keras-hub cannot save in a model")
            tokens = _like(block, f"block_{number}", tokens)
        if stage.downsample is not None:
            tokens = _like(stage.downsample, f"block_{number}_merge", tokens, H=side, W=side)
            side = (side + 1) // 2
            # keras-hub leaves the number of tokens open, which fine-tuning must know to store them.
            tokens = layers.Reshape((side * side, tokens.shape[-1]), name=f"block_{number}_merged")(tokens)
    tokens = _like(backbone.norm, "norm", tokens)
    return [layers.Reshape((side, side, tokens.shape[-1]), name="maps")(tokens)]


def _mobilenetv5(image: Any, backbone: Any) -> list[Any]:
    new_tensors = {id(backbone.inputs[0]): image}
    number = 0
    for layer in backbone.layers[1:]:
        name = layer.name
        if name not in ("conv_stem", "msfa"):
            number += 1
            name = f"block_{number}"
        [node] = layer._inbound_nodes
        inputs = [new_tensors[id(tensor)] for tensor in node.input_tensors]
        # The last layer takes a list of maps, of several stages.
        output = _like(layer, name, inputs if len(inputs) > 1 else inputs[0])
        new_tensors[id(node.output_tensors[0])] = output
    return [output]


_OUTPUTS: dict[str, Callable[[Any, Any], list[Any]]] = {
    "ViTBackbone": _vit,
    "DeiTBackbone": _deit,
    "DINOV2Backbone": _dinov2,
    "DINOV3Backbone": _dinov3,
    "CLIPBackbone": _clip,
    "CLIPVisionEncoder": _clip,
    "SigLIPBackbone": _siglip,
    "SigLIPVisionEncoder": _siglip,
    "SwinTransformerBackbone": _swin,
    "MobileNetV5Backbone": _mobilenetv5,
}


def _policy() -> Any:
    import keras

    return keras.config.dtype_policy().name


def _array(variable: Any) -> Floats:
    import keras

    values: Floats = np.asarray(keras.ops.convert_to_numpy(variable))
    return values


def _like(layer: Any, name: str, *inputs: Any, changes: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """Return the output of a new layer with the settings and weights of a layer, under another name."""
    config = layer.get_config() | {"name": name, "dtype": _policy()} | dict(changes or {})
    new_layer = type(layer).from_config(config)
    output = new_layer(*inputs, **options)
    new_layer.set_weights(layer.get_weights())
    return output


def _registers(embedding: Any) -> Floats:
    """Return the register tokens (R, D); R is 0 where there are none."""
    if not embedding.num_register_tokens:
        return np.zeros((0, embedding.hidden_dim), np.float32)
    tokens: Floats = _array(embedding.register_tokens)[0]
    return tokens


def _embedded(image: Any, projection: Any, prefix: Floats, positions: Floats | None) -> Any:
    """Return the tokens (N, K + P, D) of an image: K prefix tokens, and P patches with their positions."""
    import keras

    layers = keras.layers
    maps = _like(projection, "patches_of_pixels", image)
    side, width = maps.shape[1], maps.shape[-1]
    tokens = layers.Reshape((side * side, width), name="tokens")(maps)
    if positions is not None:
        tokens = layers.Add(name="positioned_tokens")([tokens, _rows(positions, image, "positions")])
    if len(prefix):
        tokens = layers.Concatenate(axis=1, name="all_tokens")([_rows(prefix, image, "prefix_tokens"), tokens])
    return tokens


def _rows(table: Floats, image: Any, name: str) -> Any:
    """Return a table (R, D), which can be trained, once for each image of the batch: (N, R, D)."""
    import keras

    # Keras has no layer for a constant that trains, but an Embedding looks its rows up by their numbers.
    corner = keras.layers.Flatten(name=f"{name}_corner")(image[:, :1, :1, :1])
    numbers = keras.ops.cast(keras.ops.zeros_like(corner), "int32") + np.arange(len(table), dtype="int32")
    embedding = keras.layers.Embedding(*table.shape, name=name)
    rows = embedding(numbers)
    embedding.set_weights([table])
    return rows


def _attended(tokens: Any, norm: Any, attention: Any, name: str, scale: Any = None) -> Any:
    """Return tokens + scale * attention(norm(tokens)). attention: a layer, or a function of tokens and a name."""
    import keras

    values = _like(norm, f"{name}_norm1", tokens)
    if isinstance(attention, keras.layers.MultiHeadAttention):
        values = _like(attention, f"{name}_attention", values, values, changes={"dropout": 0.0})
    else:
        values = attention(values, name)
    if scale is not None:
        values = _scaled(values, scale, f"{name}_scale1")
    return keras.layers.Add(name=f"{name}_attended")([values, tokens])


def _fed(tokens: Any, norm: Any, mlp: Callable[[Any, str], Any], name: str, scale: Any = None) -> Any:
    """Return tokens + scale * mlp(norm(tokens)), which is the output of the block: its layer has the block's name."""
    import keras

    values = mlp(_like(norm, f"{name}_norm2", tokens), name)
    if scale is not None:
        values = _scaled(values, scale, f"{name}_scale2")
    return keras.layers.Add(name=name)([values, tokens])


def _scaled(values: Any, scale: Any, name: str) -> Any:
    """Return values (N, T, D) times the weights (D,) of a LayerScale."""
    import keras

    # Of Keras' layers with one weight a channel, this is the one that every export can convert.
    layer = keras.layers.DepthwiseConv1D(1, use_bias=False, name=name)
    output = layer(values)
    layer.set_weights([_array(scale.lambda1)[None, :, None]])
    return output


def _dense(first: Any, second: Any, activation: str = "") -> Callable[[Any, str], Any]:
    """Return two dense layers as a function. activation: between them, where the first layer does not name it."""

    def mlp(values: Any, name: str) -> Any:
        values = _like(first, f"{name}_dense1", values, changes={"activation": "linear"})
        values = _activated(values, activation or first.get_config()["activation"], name)
        return _like(second, f"{name}_dense2", values)

    return mlp


def _activated(values: Any, activation: str, name: str) -> Any:
    import keras

    layers = keras.layers
    if activation == "gelu":
        # Written out, because TensorFlow's operation for it cannot be exported to ONNX: x / 2 (erf(x / sqrt 2) + 1).
        return values * 0.5 * (keras.ops.erf(values * math.sqrt(0.5)) + 1.0)
    if activation == "quick_gelu":
        gate = layers.Rescaling(1.702, name=f"{name}_steepened")(values)
        gate = layers.Activation("sigmoid", name=f"{name}_gate")(gate)
        return layers.Multiply(name=f"{name}_activation")([values, gate])
    if activation == "gelu_approximate":
        return keras.ops.gelu(values, approximate=True)
    return layers.Activation(activation, name=f"{name}_activation")(values)


def _mlp_of_siglip(mlp: Any) -> Callable[[Any, str], Any]:
    return _dense(mlp.fc1, mlp.fc2, mlp.activation)


def _swiglu(mlp: Any) -> Callable[[Any, str], Any]:
    def function(values: Any, name: str) -> Any:
        import keras

        both = _like(mlp.weights_in, f"{name}_dense1", values)
        gate, linear = keras.ops.split(both, 2, axis=-1)
        gate = keras.layers.Activation("silu", name=f"{name}_gate")(gate)
        values = keras.layers.Multiply(name=f"{name}_gated")([gate, linear])
        return _like(mlp.weights_out, f"{name}_dense2", values)

    return function


def _gated(mlp: Any) -> Callable[[Any, str], Any]:
    def function(values: Any, name: str) -> Any:
        import keras

        gate = _like(mlp.gate_proj, f"{name}_gate", values)
        linear = _like(mlp.up_proj, f"{name}_dense1", values)
        values = keras.layers.Multiply(name=f"{name}_gated")([gate, linear])
        return _like(mlp.down_proj, f"{name}_dense2", values)

    return function


def _rotation(rope: Any, size: int, num_prefix: int, tokens: Any) -> tuple[Any, Any]:
    """Return the cosines and sines (N, T, 1, D / heads) that rotate queries and keys by the place of their patch."""
    import keras

    cosines, sines = (_array(values) for values in rope(np.zeros((1, size, size, 3), np.float32)))
    # Prefix tokens have no place, so they are rotated by nothing.
    cosines = np.concatenate([np.ones((num_prefix, cosines.shape[1]), np.float32), cosines])
    sines = np.concatenate([np.zeros((num_prefix, sines.shape[1]), np.float32), sines])
    # One constant for all blocks: the configuration of the model holds it as text.
    nothing = keras.ops.zeros_like(tokens[:, :1, :1])
    nothing = keras.layers.Reshape((1, 1, 1), name="places")(nothing)
    return nothing + cosines[None, :, None], nothing + sines[None, :, None]


def _rotating(attention: Any, rotation: tuple[Any, Any]) -> Callable[[Any, str], Any]:
    """Return DINOv3's attention as a function: queries and keys are rotated by their places."""

    def function(values: Any, name: str) -> Any:
        import keras

        layers = keras.layers
        num_tokens = values.shape[1]
        heads = (num_tokens, attention.num_heads, attention.head_dim)

        def projected(layer: Any, kind: str) -> Any:
            flat = _like(layer, f"{name}_{kind}", values)
            return layers.Reshape(heads, name=f"{name}_{kind}_heads")(flat)

        queries = _rotated(projected(attention.query_dense, "query"), rotation)
        keys = _rotated(projected(attention.key_dense, "key"), rotation)
        mixed = keras.ops.dot_product_attention(queries, keys, projected(attention.value_dense, "value"))
        flat = layers.Reshape((num_tokens, heads[1] * heads[2]), name=f"{name}_mixed")(mixed)
        return _like(attention.output_dense, f"{name}_attention", flat)

    return function


def _rotated(values: Any, rotation: tuple[Any, Any]) -> Any:
    """Return (N, T, heads, d) with each pair (x_i, x_(i + d/2)) rotated."""
    import keras

    cosines, sines = (keras.ops.cast(factor, values.dtype) for factor in rotation)
    first, second = keras.ops.split(values, 2, axis=-1)
    turned = keras.ops.concatenate([-second, first], axis=-1)
    return values * cosines + turned * sines


def _attention_pooled(tokens: Any, head: Any) -> Any:
    """Return SigLIP's pooled output (N, D): a learnt query attends to all tokens."""
    import keras

    probe = _rows(_array(head.probe)[0], tokens[:, :, :, None], "pooling_probe")
    values = _like(head.attention, "pooling_attention", probe, tokens, tokens, changes={"dropout": 0.0})
    normed = _like(head.layer_norm, "pooling_norm", values)
    values = keras.layers.Add(name="pooling_add")([values, _mlp_of_siglip(head.mlp)(normed, "pooling")])
    return keras.layers.Flatten(name="pooled")(values)
