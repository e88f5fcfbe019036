"""Tiny random presets of keras-hub, one for each family, saved to folders as real ones are."""

from __future__ import annotations

from pathlib import Path

import keras
import keras_hub
import numpy as np

SIZE = 32
IMAGENET = {
    "scale": [1 / 255 / 0.229, 1 / 255 / 0.224, 1 / 255 / 0.225],
    "offset": [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
}
HALVES = {"scale": 1 / 127.5, "offset": -1.0}

models = keras_hub.models
layers = keras_hub.layers


def vit():
    return models.ViTBackbone((SIZE, SIZE, 3), 8, 2, 2, 16, 24, dropout_rate=0.1, attention_dropout=0.1)


def deit():
    return models.DeiTBackbone((SIZE, SIZE, 3), 8, 2, 2, 16, 24, dropout_rate=0.1, attention_dropout=0.1)


def dinov2(**options):
    options = {"position_embedding_shape": (56, 56), "layer_scale_init_value": 0.7, **options}
    return models.DINOV2Backbone(
        patch_size=8,
        num_layers=2,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=24,
        dropout_rate=0.1,
        drop_path_rate=0.1,
        image_shape=(SIZE, SIZE, 3),
        **options,
    )


def dinov2_registers():
    return dinov2(num_register_tokens=3, use_swiglu_ffn=True, antialias_in_interpolation=True)


def dinov3(**options):
    return models.DINOV3Backbone(
        patch_size=8,
        num_layers=2,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=24,
        layer_scale_init_value=0.7,
        num_register_tokens=4,
        attention_dropout=0.1,
        drop_path_rate=0.1,
        use_key_bias=False,
        image_shape=(SIZE, SIZE, 3),
        **options,
    )


def dinov3_gated():
    return dinov3(use_gated_mlp=True, hidden_activation="silu")


def clip():
    vision = models.CLIPVisionEncoder(8, 16, 2, 2, 24, image_shape=(SIZE, SIZE, 3), name="clip_vision_encoder")
    text = models.CLIPTextEncoder(20, 12, 16, 1, 2, 24, name="clip_text_encoder")
    backbone = models.CLIPBackbone(vision, text, projection_dim=12)
    # A new CLIP has the position 0 everywhere; trained ones count.
    position_ids = vision.embedding.position_ids
    position_ids.assign(np.arange(position_ids.shape[1])[None])
    return backbone


def siglip():
    vision = models.SigLIPVisionEncoder(8, 16, 2, 2, 24, image_shape=(SIZE, SIZE, 3), name="siglip_vision_encoder")
    text = models.SigLIPTextEncoder(20, 16, 16, 1, 2, 24, max_sequence_length=12, name="siglip_text_encoder")
    return models.SigLIPBackbone(vision, text)


def swin():
    # Two windows a side in the first stage, so that its second block shifts them.
    return models.SwinTransformerBackbone(
        image_shape=(SIZE, SIZE, 3), embed_dim=8, depths=(2, 1), num_heads=(2, 2), window_size=4, patch_size=4
    )


def mobilenetv5():
    return models.MobileNetV5Backbone(
        stackwise_block_types=[["er"], ["uir", "mqa"]],
        stackwise_num_blocks=[1, 2],
        stackwise_num_filters=[[8], [16, 16]],
        stackwise_strides=[[2], [2, 1]],
        stackwise_act_layers=[["relu"], ["relu", "relu"]],
        stackwise_exp_ratios=[[4], [4, 4]],
        stackwise_se_ratios=[[0], [0, 0]],
        stackwise_dw_kernel_sizes=[[0], [5, 0]],
        stackwise_dw_start_kernel_sizes=[[0], [0, 0]],
        stackwise_dw_end_kernel_sizes=[[0], [0, 0]],
        stackwise_exp_kernel_sizes=[[3], [0, 0]],
        stackwise_pw_kernel_sizes=[[1], [0, 0]],
        stackwise_num_heads=[[0], [0, 2]],
        stackwise_key_dims=[[0], [0, 8]],
        stackwise_value_dims=[[0], [0, 8]],
        stackwise_kv_strides=[[0], [0, 1]],
        stackwise_use_cpe=[[False], [False, False]],
        num_features=16,
        msfa_output_resolution=4,
        drop_path_rate=0.1,
        layer_scale_init_value=0.7,
        image_shape=(SIZE, SIZE, 3),
    )


BACKBONES = {
    "vit": (vit, layers.ViTImageConverter, HALVES),
    "deit": (deit, layers.DeiTImageConverter, {**IMAGENET, "interpolation": "bicubic"}),
    "dinov2": (dinov2, layers.DINOV2ImageConverter, {**IMAGENET, "interpolation": "bicubic"}),
    "dinov2_registers": (dinov2_registers, layers.DINOV2ImageConverter, IMAGENET),
    "dinov3": (dinov3, layers.DINOV3ImageConverter, {**IMAGENET, "crop_to_aspect_ratio": False}),
    "dinov3_gated": (dinov3_gated, layers.DINOV3ImageConverter, IMAGENET),
    "clip": (clip, layers.CLIPImageConverter, {**IMAGENET, "interpolation": "bicubic"}),
    "siglip": (siglip, layers.SigLIPImageConverter, {**HALVES, "crop_to_aspect_ratio": False}),
    "swin": (swin, layers.SwinTransformerImageConverter, IMAGENET),
    "mobilenetv5": (mobilenetv5, layers.MobileNetV5ImageConverter, {"scale": 1 / 255}),
}


def save_preset(name: str, folder: Path) -> Path:
    """Write the preset of a family, with its image converter, and return its folder."""
    keras.utils.set_random_seed(3)
    make, converter, settings = BACKBONES[name]
    backbone = make()
    rng = np.random.default_rng(3)
    # Many weights of a new network are 0 or 1, which would hide a mistake.
    for variable in backbone.trainable_variables:
        values = np.asarray(variable)
        variable.assign(values + rng.normal(0, 0.05, values.shape))
    backbone.save_to_preset(folder)
    converter(image_size=(SIZE, SIZE), **settings).save_to_preset(folder)
    return folder
