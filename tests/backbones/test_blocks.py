import re
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.backbones.blocks import block_ends, block_names, blocks, first_of
from featcache.errors import UnknownBlock

# Layer names as Keras 3.15.1 gives them, shortened; "|" opens the next block, which is named above it.
FAMILIES = {
    "mobilenet": (
        "stem block_1 block_2",
        "input_layer conv1 conv1_bn conv1_relu | conv_dw_1 conv_pw_1 | conv_pad_2 conv_dw_2_bn conv_pw_2",
    ),
    "mobilenet_v2": (
        "stem expanded_conv block_1 block_16",
        "input_layer Conv1 bn_Conv1 Conv1_relu | expanded_conv_depthwise expanded_conv_project_BN"
        " | block_1_expand block_1_pad | block_16_project_BN Conv_1 Conv_1_bn out_relu avg_pool",
    ),
    "mobilenet_v3": (
        "stem expanded_conv expanded_conv_1 expanded_conv_10",
        "input_layer rescaling conv conv_bn activation"
        " | expanded_conv_depthwise re_lu expanded_conv_squeeze_excite_conv_1 multiply expanded_conv_project"
        " | expanded_conv_1_expand re_lu_2 expanded_conv_1_depthwise_pad"
        " | expanded_conv_10_expand expanded_conv_10_add conv_1 conv_1_bn activation_17",
    ),
    "efficientnet": (
        "stem block1a block2a block7a",
        "input_layer rescaling normalization stem_conv | block1a_dwconv block1a_project_bn"
        " | block2a_expand_conv | block7a_project_bn top_conv top_bn top_activation avg_pool",
    ),
    "convnext": (
        "stem stage_0_block_0 downsampling_block_0 stage_1_block_0",
        "input_layer convnext_tiny_prestem_normalization convnext_tiny_stem"
        " | convnext_tiny_stage_0_block_0_depthwise_conv convnext_tiny_stage_0_block_0_identity"
        " | convnext_tiny_downsampling_block_0"
        " | convnext_tiny_stage_1_block_0_layer_scale layer_normalization",
    ),
    "resnet": (
        "stem conv2_block1 conv2_block2 conv5_block3",
        "input_layer conv1_pad conv1_conv conv1_bn pool1_pad pool1_pool"
        " | conv2_block1_1_conv conv2_block1_0_conv conv2_block1_out"
        " | conv2_block2_2_relu max_pooling2d conv2_block2_3_conv | conv5_block3_out post_bn post_relu",
    ),
    "densenet": (
        "stem conv2_block6 conv3_block1 conv5_block16",
        "input_layer zero_padding2d conv1_conv pool1 | conv2_block6_concat pool2_bn pool2_conv pool2_pool"
        " | conv3_block1_0_bn | conv5_block16_concat bn relu",
    ),
    "vgg": ("stem block1 block5", "input_layer | block1_conv1 block1_pool | block5_conv1 block5_pool"),
    "xception": (
        "stem block1 block2 block14",
        "input_layer | block1_conv1 block1_conv2_act"
        " | block2_sepconv2_bn conv2d block2_pool batch_normalization add"
        " | block14_sepconv1 block14_sepconv2_act",
    ),
    "nasnet": (
        "stem cell_stem_1 cell_0 cell_reduce_4 cell_12",
        "input_layer stem_conv1 stem_bn1 activation"
        " | reduction_conv_1_stem_1 activation_1 separable_conv_1_pad_reduction_left1_stem_1 add"
        " | adjust_conv_projection_0 separable_conv_2_bn_normal_left5_0 normal_add_1_0"
        " | adjust_relu_1_reduce_4 zero_padding2d_1 reduction_concat_reduce_4"
        " | adjust_bn_12 normal_left3_12 normal_concat_12 activation_187",
    ),
    "inception_v3": (
        "stem mixed0 mixed9 mixed10",
        "input_layer conv2d batch_normalization max_pooling2d conv2d_4 max_pooling2d_1"
        " | conv2d_8 average_pooling2d conv2d_5 mixed0"
        " | conv2d_77 max_pooling2d_3 mixed9_0 concatenate activation_84 mixed9"
        " | conv2d_89 mixed9_1 concatenate_1 mixed10 global_average_pooling2d",
    ),
    "inception_resnet_v2": (
        "stem mixed_5b block35_1 block35_2 mixed_6a block8_10",
        "input_layer conv2d max_pooling2d conv2d_4 max_pooling2d_1 | conv2d_8 average_pooling2d mixed_5b"
        " | conv2d_15 block35_1_mixed block35_1_conv custom_scale_layer block35_1_ac"
        " | conv2d_21 block35_2_mixed custom_scale_layer_1 block35_2_ac | conv2d_70 max_pooling2d_2 mixed_6a"
        " | conv2d_200 block8_10_mixed block8_10_conv custom_scale_layer_39 conv_7b conv_7b_bn conv_7b_ac",
    ),
    "glyphnet": (
        "stem block_1 block_3",
        "pixels stem_conv | block_1_conv block_1_pool | block_3_conv block_3",
    ),
}
AUTO_NAME = re.compile(
    r"(conv2d|batch_normalization|activation|(?:max|average)_pooling2d|concatenate|add|multiply|re_lu"
    r"|zero_padding2d|custom_scale_layer|rescaling|normalization|layer_normalization)(?:_\d+)?"
)


def _layers(family):
    return FAMILIES[family][1].replace("| ", "").split()


def _expected(family):
    names, runs = FAMILIES[family]
    return [name for name, run in zip(names.split(), runs.split("|"), strict=True) for _ in run.split()]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_given_its_block(family):
    assert block_names(_layers(family)) == _expected(family)
    assert blocks(_layers(family)) == FAMILIES[family][0].split()


@given(family=st.sampled_from(sorted(FAMILIES)), start=st.integers(0, 500))
def test_what_the_session_built_before_does_not_matter(family, start):
    renamed = [
        f"{match[1]}_{start + i}" if (match := AUTO_NAME.fullmatch(name)) else name
        for i, name in enumerate(_layers(family))
    ]
    assert block_names(renamed) == _expected(family)


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_a_block_is_one_run_of_layers_whatever_the_order(family, data):
    layer_names = data.draw(st.lists(st.sampled_from(_layers(family))))
    names = block_names(layer_names)
    assert len(names) == len(layer_names)
    assert [name for name, _ in groupby(names)] == blocks(layer_names)


def test_a_block_begins_after_the_one_before_it_has_ended():
    nasnet = [
        "stem_conv1", "reduction_conv_1_stem_1", "adjust_relu_1_stem_2", "zero_padding2d",
        "reduction_concat_stem_1", "adjust_conv_1_stem_2", "reduction_conv_1_stem_2",
    ]  # fmt: skip
    assert block_names(nasnet) == ["stem"] + 4 * ["cell_stem_1"] + 2 * ["cell_stem_2"]


def test_the_end_of_a_block_is_what_the_next_one_takes():
    assert block_ends(_layers("vgg")) == ["block1_pool"]
    assert block_ends(_layers("inception_v3")) == ["mixed0", "mixed9"]
    nasnet = ["stem_conv1", "normal_left5_0", "normal_concat_0", "activation_33", "adjust_bn_1", "normal_concat_1"]
    assert block_ends(nasnet) == ["normal_concat_0"]  # not the activation: the next cell's


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_but_the_last_has_an_end_and_the_stem_has_none(family):
    of_layer = dict(zip(_layers(family), block_names(_layers(family)), strict=True))
    assert [of_layer[end] for end in block_ends(_layers(family))] == blocks(_layers(family))[1:-1]
    assert block_ends(["input_layer", "conv2d_3", "dense"]) == []


def test_a_model_without_blocks_is_all_stem():
    assert block_names(["input_layer", "conv2d_3", "dense"]) == ["stem"] * 3


def test_without_a_max_pooling_nothing_tells_stem_from_first_inception_block():
    assert block_names(["input_layer", "conv2d_3", "mixed0"]) == ["mixed0"] * 3


def test_the_first_layer_of_a_block_is_found():
    layers = _layers("mobilenet_v2")
    assert layers[first_of(layers, "block_1")] == "block_1_expand"
    assert first_of(layers, "stem") == 0


def test_a_layer_is_found_by_its_exact_name():
    layers = _layers("mobilenet_v2")
    assert layers[first_of(layers, "Conv_1_bn")] == "Conv_1_bn"


def test_a_name_of_both_block_and_layer_means_the_block():
    layers = _layers("inception_v3")
    assert layers[first_of(layers, "mixed10")] == "conv2d_89"


def test_an_unknown_block_is_refused_with_near_names():
    with pytest.raises(UnknownBlock, match=r"No block or layer 'block_17' \(did you mean block_1, .+\?\)"):
        first_of(_layers("mobilenet_v2"), "block_17")


def test_an_unknown_block_that_is_near_to_none_is_told_the_range():
    message = r"No block or layer 'head'\. The 3 blocks run from stem to block5$"
    with pytest.raises(UnknownBlock, match=message):
        first_of(_layers("vgg"), "head")
