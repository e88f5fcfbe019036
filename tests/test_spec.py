import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import DataError, UsageError
from featcache.spec import BackboneSpec, Preprocess, SplitSpec, Tap, canonical_json, choose, digest_of

TAP = Tap(
    "mobilenet_v2:alpha=0.35/top",
    BackboneSpec("mobilenet_v2", (("alpha", 0.35),), "imagenet", 0),
    "a" * 64,
    "top",
    "avg",
    Preprocess(224, "stretch", "tf", "pillow/1"),
    "identity",
    "float32",
)
GOLDEN = "8fd738128a412a356f7f51230487a62833cf4228be9dd94bc28710e6b52d5bd9"

backbones = st.builds(
    BackboneSpec,
    st.text(),
    st.lists(
        st.tuples(
            st.text(), st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
        )
    ).map(tuple),
    st.text(),
    st.integers(),
)
taps = st.builds(
    Tap,
    st.text(),
    backbones,
    st.text(),
    st.text(),
    st.sampled_from(["avg", "max", "flatten", "none"]),
    st.builds(Preprocess, st.integers(1), st.sampled_from(["stretch", "crop", "pad"]), st.text(), st.text()),
    st.text(),
    st.text(),
    st.sampled_from(["float32", "float16"]),
    st.text(),
)


@pytest.mark.parametrize(
    "changed",
    [
        replace(TAP, backbone=replace(TAP.backbone, name="mobilenet")),
        replace(TAP, backbone=replace(TAP.backbone, options=(("alpha", 0.5),))),
        replace(TAP, backbone=replace(TAP.backbone, options=())),
        replace(TAP, weights_digest="b" * 64),
        replace(TAP, layer="out_relu"),
        replace(TAP, pooling="max"),
        replace(TAP, preprocess=replace(TAP.preprocess, size=160)),
        replace(TAP, preprocess=replace(TAP.preprocess, resize="crop")),
        replace(TAP, preprocess=replace(TAP.preprocess, mode="caffe")),
        replace(TAP, preprocess=replace(TAP.preprocess, decode="pillow/2")),
        replace(TAP, view="hflip"),
        replace(TAP, precision="bfloat16"),
        replace(TAP, dtype="float16"),
        replace(TAP, architecture="c" * 64),
        replace(TAP, calibration="d" * 64),
    ],
)
def test_whatever_changes_the_numbers_changes_the_fingerprint(changed):
    assert changed.fingerprint != TAP.fingerprint


@pytest.mark.parametrize(
    "same",
    [
        replace(TAP, name="mine/top"),
        replace(TAP, backbone=replace(TAP.backbone, weights="weights/of/mine.h5")),
        replace(TAP, backbone=replace(TAP.backbone, seed=3)),
    ],
)
def test_names_are_not_in_the_fingerprint(same):
    assert same.fingerprint == TAP.fingerprint


def test_the_order_of_options_is_not_in_the_fingerprint():
    options = (("alpha", 0.5), ("minimalistic", True))
    one = replace(TAP, backbone=replace(TAP.backbone, options=options))
    assert one.fingerprint == replace(TAP, backbone=replace(TAP.backbone, options=options[::-1])).fingerprint


def test_the_fingerprint_never_drifts():
    assert TAP.fingerprint == GOLDEN


def test_taps_that_are_not_8_bit_are_written_as_before_there_were_any():
    assert "calibration" not in TAP.to_json()
    eight_bit = replace(TAP, precision="int8", calibration="d" * 64)
    assert Tap.from_json(eight_bit.to_json()) == eight_bit
    assert eight_bit.in_keras == TAP
    assert TAP.in_keras == TAP


@given(tap=taps)
def test_a_tap_survives_being_written_down(tap):
    again = Tap.from_json(tap.to_json())
    assert again == tap
    assert again.fingerprint == tap.fingerprint


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "1", '{"name": "x"}', "not json"]
    + [
        json.dumps({**json.loads(TAP.to_json()), **odd})
        for odd in ({"more": 1}, {"backbone": 7}, {"preprocess": {"side": 3}}, {"backbone": {"options": "ab"}})
    ],
)
def test_what_is_no_tap_is_refused(text):
    with pytest.raises(DataError, match=r"Not the description of a tap"):
        Tap.from_json(text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1: object()}, b"bytes", {"a", "b"}])
def test_what_has_no_exact_text_has_no_fingerprint(value):
    with pytest.raises(UsageError, match=r"Cannot be written down exactly"):
        digest_of(value)


@given(value=st.dictionaries(st.text(), st.integers() | st.text()))
def test_equal_values_have_one_text(value):
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))


def test_shares_are_read():
    assert SplitSpec.parse("80/10/10", seed=4) == SplitSpec(80, 10, 10, 4)
    assert SplitSpec.parse("80/20") == SplitSpec(80, 20, 0)


def test_a_wrong_choice_is_refused_with_near_ones():
    assert choose("resize", "crop", ("stretch", "crop", "pad")) == "crop"
    with pytest.raises(UsageError, match=r"`resize` takes stretch, crop, pad; got 'corp' \(did you mean crop\?\)"):
        choose("resize", "corp", ("stretch", "crop", "pad"))
