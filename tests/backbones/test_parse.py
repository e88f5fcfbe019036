import pytest

from featcache.backbones.parse import requests
from featcache.errors import UnknownBackbone, UsageError


def one(text, **flags):
    (request,) = requests(text, **flags)
    return request


def names(text, **flags):
    return [tap.name for request in requests(text, **flags) for tap in request.taps("w")]


@pytest.mark.parametrize(
    ("text", "flags", "name"),
    [
        ("mobilenet_v2", {}, "mobilenet_v2/top"),
        ("MobileNetV2", {}, "mobilenet_v2/top"),
        ("mobilenet_v2:alpha=1.0:size=224:weights=imagenet", {}, "mobilenet_v2/top"),
        ("mobilenet_v2:alpha=0.35", {"size": 96}, "mobilenet_v2:alpha=0.35:size=96/top"),
        ("mobilenet_v3_small:minimalistic=true:alpha=0.75", {}, "mobilenet_v3_small:alpha=0.75:minimalistic=True/top"),
        ("resnet50", {"weights": "none", "pool": "max"}, "resnet50:weights=none/top:max"),
        ("resnet50:weights=none:seed=3", {"resize": "crop"}, "resnet50:weights=none:seed=3:resize=crop/top"),
        ("resnet50", {"weights": "/data/mine.weights.h5"}, "resnet50:weights=mine.weights/top"),
        ("glyphnet", {}, "glyphnet/top"),
        ("pixels:size=8", {"weights": "none"}, "pixels:size=8/top"),
        ("pixels", {"pool": "flatten"}, "pixels/top"),
        ("resnet50", {"tap": "conv5_block3_out"}, "resnet50/conv5_block3_out"),
    ],
)
def test_a_tap_is_named_by_what_differs_from_the_usual(text, flags, name):
    assert names(text, **flags) == [name]


def test_several_backbones_and_taps_are_asked_for_with_commas_or_lists():
    wanted = ["glyphnet/a", "glyphnet/b", "pixels/a", "pixels/b"]
    assert names("glyphnet, pixels", tap="a,b") == wanted
    assert names(["glyphnet", "pixels"], tap=["a", "b"]) == wanted


def test_the_usual_is_the_constructors():
    request = one("resnet50")
    assert (request.spec.weights, request.spec.options, request.pooling) == ("imagenet", (), "avg")
    assert (request.preprocess.size, request.preprocess.resize, request.preprocess.mode) == (224, "stretch", "caffe")


def test_what_stands_behind_the_name_wins_over_the_flag():
    request = one("resnet50:size=64:weights=none", size=96, weights="imagenet")
    assert (request.preprocess.size, request.spec.weights) == (64, "none")


def test_options_that_mean_the_same_give_the_same_fingerprint():
    (whole,), (integer,) = one("mobilenet_v2:alpha=0.50").taps("w"), one("mobilenet_v2:alpha=.5").taps("w")
    assert whole.fingerprint == integer.fingerprint
    assert one("mobilenet_v2:alpha=1").spec == one("mobilenet_v2").spec


def test_a_seed_counts_only_for_random_weights():
    assert one("glyphnet:seed=4").spec.seed == 0
    assert one("glyphnet:seed=4:weights=none").spec.seed == 4


@pytest.mark.parametrize(
    ("text", "near"), [("mobilnet_v2", "mobilenet_v2"), ("resnet5", "resnet50"), ("efficientnetb0", None)]
)
def test_an_unknown_backbone_is_refused_with_near_names(text, near):
    if near is None:
        assert one(text).spec.name == "efficientnet_b0"
        return
    with pytest.raises(UnknownBackbone, match=rf"Unknown backbone '{text}' \(did you mean .*{near}"):
        requests(text)


def test_an_unknown_option_is_refused_with_near_names():
    message = r"'mobilenet_v2' takes the options alpha=.., size=.., .*; got 'alfa=0.5' \(did you mean alpha"
    with pytest.raises(UsageError, match=message):
        requests("mobilenet_v2:alfa=0.5")


def test_an_option_needs_a_value():
    with pytest.raises(UsageError, match=r"got 'alpha' \(did you mean alpha"):
        requests("mobilenet_v2:alpha")


@pytest.mark.parametrize("option", ["alpha=big", "alpha=true", "depth_multiplier=0.5"])
def test_an_option_of_another_kind_is_refused(option):
    key, _, value = option.partition("=")
    with pytest.raises(UsageError, match=rf"'mobilenet' takes {key} as in {key}=1.*; got '{value}'"):
        requests(f"mobilenet:{option}")


def test_an_option_of_another_backbone_is_refused():
    with pytest.raises(UsageError, match=r"'resnet50' takes the options size=.., weights=.., seed=..; got 'alpha=0.5'"):
        requests("resnet50:alpha=0.5")


def test_an_unknown_pooling_is_refused():
    with pytest.raises(UsageError, match=r"`pool` takes avg, max, flatten, none; got 'average'"):
        requests("resnet50", pool="average")


def test_an_unknown_resize_is_refused_with_near_names():
    with pytest.raises(UsageError, match=r"`resize` takes stretch, crop, pad; got 'padd' \(did you mean pad\?\)"):
        requests("resnet50", resize="padd")


@pytest.mark.parametrize(
    ("text", "size", "least"), [("resnet50", 31, 32), ("xception:size=70", None, 71), ("pixels", 0, 1)]
)
def test_a_size_under_the_least_is_refused(text, size, least):
    with pytest.raises(UsageError, match=rf"takes images of at least {least} pixels; got `size"):
        requests(text, size=size)


@pytest.mark.parametrize("size", ["big", "64.5", "true", "-8"])
def test_a_size_that_is_no_number_of_pixels_is_refused(size):
    with pytest.raises(UsageError, match=r"size takes a whole number from 0; got"):
        requests(f"resnet50:size={size}")


@pytest.mark.parametrize("seed", ["one", "1.5", "true", "-1"])
def test_a_seed_that_is_no_whole_number_is_refused(seed):
    with pytest.raises(UsageError, match=r"seed takes a whole number from 0; got"):
        requests(f"resnet50:weights=none:seed={seed}")


@pytest.mark.parametrize(("backbones", "tap"), [("", "top"), (" , ", "top"), ([], "top"), ("resnet50", "")])
def test_nothing_asked_for_is_refused(backbones, tap):
    with pytest.raises(UsageError, match=r"Name at least one backbone and one tap"):
        requests(backbones, tap=tap)


def test_glyphnet_has_no_imagenet_weights():
    with pytest.raises(UsageError, match=r"'glyphnet' was never trained on ImageNet; its `weights` are embedded"):
        requests("glyphnet", weights="imagenet")
