"""The four cases of transfer learning, by numbers."""

import numpy as np
import pytest
from tiny import TOY, write_images

from featcache.cache.reader import Cache
from featcache.errors import UsageError
from featcache.extraction import extract
from featcache.sweeps import advise, advising, sweep
from featcache.sweeps.inputs import by_depth

from .conftest import TAP, edited, rewrite

PIXELS = "pixels:size=8/top"


def copied_tap(cache, path, name, change):
    """Return a copy of a cache with one more tap of the same backbone, of changed features."""
    import json

    from featcache.cache import layout
    from featcache.spec import Tap

    def add(file):
        source = file["taps"][TAP]
        target = file["taps"].create_group(TAP.replace("/top", f"/{name}"))
        tap = json.loads(layout.text_of(source, "tap")) | {"name": TAP.replace("/top", f"/{name}"), "layer": name}
        for key in source:
            target[key] = source[key][()]
        for key, value in source.attrs.items():
            target.attrs[key] = value
        layout.put_text(target, "tap", json.dumps(tap))
        layout.put_text(target, "fingerprint", Tap.from_json(json.dumps(tap)).fingerprint)
        rewrite(target, "features", change(source["features"][()]))

    return edited(cache, path, add)


def noise(values):
    return np.random.default_rng(0).normal(0, 1, values.shape).astype(np.float32)


def test_few_images_that_the_last_layer_tells_apart_are_small_and_similar(toy):
    found = advise(toy)
    assert (found.case, found.large, found.similar) == ("small and similar", False, True)
    assert {one.tap for one in found.curve} == {TAP, PIXELS}
    assert found.best in {TAP, PIXELS}
    assert found.least <= found.median
    assert "fewer than 200, so small" in found.why[0]


def test_the_numbers_are_those_of_ridge_when_each_image_is_left_out(hard, tmp_path):
    [depth] = [one for one in advise(hard).curve if one.tap == TAP]
    grid = {"ridge": {"alpha": [depth.alpha]}}
    run = sweep(hard, "ridge", taps=[TAP], cv="loo", out=tmp_path / "run", grid=grid)
    assert depth.left_out == run.best.trial.score
    X, y = hard.arrays("train", TAP)
    assert depth.fitted == (run.best.estimator.predict(X) == y).mean()
    assert depth.gap == depth.fitted - depth.left_out


def test_many_images_are_large(toy, monkeypatch):
    monkeypatch.setattr(advising, "LARGE", 5)
    found = advise(toy)
    assert found.case == "large and similar"
    assert found.commands[1].startswith("featcache finetune")


def test_the_run_that_is_advised_has_a_free_name(hard, tmp_path, monkeypatch):
    cache = edited(hard, tmp_path / "photos.h5", lambda file: None)
    (tmp_path / "photos.run").mkdir()
    monkeypatch.setattr(advising, "LARGE", 5)
    first, then = advise(cache).commands
    assert first.endswith(f"-o {tmp_path / 'photos-2.run'}")
    assert f"finetune {tmp_path / 'photos-2.run'}@best" in then


@pytest.fixture(scope="module")
def two_backbones(tmp_path_factory):
    """Return a cache with taps of two backbones that take images of one size. Do not change it."""
    folder = tmp_path_factory.mktemp("two")
    return extract(write_images(folder / "photos"), [TOY, "pixels:size=32"], out=folder / "two.h5")


def test_taps_of_two_backbones_are_tried_as_one(two_backbones, monkeypatch):
    advice = advise(two_backbones)
    both = f"{advice.best}+{next(tap.tap for tap in advice.curve if tap.tap != advice.best)}"
    assert advice.joined.tap == both
    assert advice.joined.width == sum(tap.width for tap in advice.curve)
    [best] = [tap for tap in advice.curve if tap.tap == advice.best]
    assert advice.why[-1] == (
        f"taps of two backbones can be joined: `tap='{both}'` gets {advice.joined.left_out:.3f}, and {best.tap} alone "
        f"{best.left_out:.3f}"
    )
    monkeypatch.setattr(advising, "LARGE", 5)
    large = advise(two_backbones)
    assert large.joined is None
    assert large.why[-1] == f"taps of two backbones can be joined: `tap='{both}'`"


@pytest.mark.parametrize(("left_out", "more"), [(0.9, f",{TAP}+{PIXELS}"), (0.8, ""), (0.7, "")])
def test_a_sweep_tries_joined_taps_that_are_better(left_out, more, toy):
    alone, joined = (
        advising.TapAccuracy(name, 1, value, (0.0, 1.0), 1.0, 1.0)
        for name, value in ((TAP, 0.8), (f"{TAP}+{PIXELS}", left_out))
    )
    [command] = advising._commands(toy, alone, joined, False, True)
    assert f" --tap {TAP}{more} -o " in command


def test_taps_that_no_model_can_have_together_are_not_joined(toy):
    advice = advise(toy)
    assert advice.joined is None
    assert not any("joined" in reason for reason in advice.why)


@pytest.mark.parametrize("is_stored", [False, True])
def test_with_one_backbone_and_few_images_a_second_is_advised(is_stored, toy, tmp_path, monkeypatch):
    def only_one(file):
        del file["taps"][PIXELS]

    cache = edited(toy, tmp_path / "one.h5", only_one)
    # The weights of efficientnet_lite0 are installed wherever the tests run.
    monkeypatch.setattr(advising, "stored_backbones", lambda: ["mobilenet_v2"] if is_stored else [])
    such_as = ", such as mobilenet_v2, whose weights are on this machine" if is_stored else ""
    advice = advise(cache)
    assert advice.do[-1] == (
        f"With few images a second backbone often helps{such_as}: extract it with `size=32` into the same cache."
    )
    assert advice.why[1].startswith("the cache has only one layer of glyphnet:weights=none, which gets")
    monkeypatch.setattr(advising, "LARGE", 5)
    assert not any("second backbone" in line for line in advise(cache).do)


def test_a_better_layer_before_the_last_says_different(toy, tmp_path):
    clear = copied_tap(toy, tmp_path / "c.h5", "block_1", lambda values: values)

    def worse(file):
        rewrite(file["taps"][TAP], "features", noise(file["taps"][TAP]["features"][()]))

    found = advise(edited(clear, tmp_path / "d.h5", worse))
    if found.best == PIXELS:
        pytest.fail("raw pixels separate these classes as well as the backbone does")
    assert (found.similar, found.best) == (False, TAP.replace("/top", "/block_1"))
    assert "better than the last layer" in found.why[1]
    assert f"--tap {found.best}" in found.commands[0]


@pytest.mark.parametrize(("more", "similar"), [(0, True), (1, True), (3, True), (12, False)])
def test_a_layer_that_is_better_by_chance_only_says_similar(more, similar, toy, tmp_path):
    cache = copied_tap(toy, tmp_path / "c.h5", "block_1", lambda values: values)
    first, last = TAP.replace("/top", "/block_1"), TAP
    right = {last: np.arange(60) < 30, first: np.arange(60) < 30 + more}
    right = {name: hits.astype(np.int64) for name, hits in right.items()}
    depths = [advising.TapAccuracy(name, 256, right[name].mean(), (0.0, 1.0), 1.0, 1.0) for name in (first, last)]
    best, found, why = advising._similarity(cache, depths, right, 0.3)
    assert (found, best.tap) == (similar, last if similar else first)
    assert ("none before it is better beyond chance" in why) == similar


def test_one_tap_that_hardly_tells_classes_apart_says_different(hard, tmp_path):
    def only_noise(file):
        for name in (TAP, PIXELS):
            rewrite(file["taps"][name], "features", noise(file["taps"][name]["features"][()]))

    found = advise(edited(hard, tmp_path / "n.h5", only_noise))
    assert found.case == "small and different"
    assert "less than 70%, so different; extract with `tap='auto'` shows" in found.why[1]


def test_layers_stand_in_the_order_of_their_numbers_and_top_is_last(toy, tmp_path):
    cache = toy
    for number, name in enumerate(("block_10_add", "block_2_add", "stem_relu")):
        cache = copied_tap(cache, tmp_path / f"{number}.h5", name, lambda values: values)
    names = [name.rpartition("/")[2] for name in by_depth(cache, [one for one in cache.vectors if one != PIXELS])]
    assert names == ["stem_relu", "block_2_add", "block_10_add", "top"]


def test_a_class_of_one_image_is_left_out_of_the_numbers_and_said_to_be(hard, tmp_path):
    def rare(file):
        labels, splits = file["images/label"][()], file["images/split"][()]
        at = [number for number, one in enumerate(labels) if one == b"red" and splits[number] == b"train"]
        splits[at[1:]] = b"test"
        rewrite(file["images"], "split", splits)

    found = advise(edited(hard, tmp_path / "rare.h5", rare))
    assert (found.classes, found.least) == (3, 1)
    hits = found.curve[0].left_out * (found.images - 1)
    assert hits == pytest.approx(round(hits))
    assert found.why[-1] == (
        "1 of 3 classes have too few training images to leave one out, such as 'red', so these numbers are about the "
        "others"
    )


def test_a_cache_without_vectors_is_refused(toy, monkeypatch):
    monkeypatch.setattr(Cache, "vectors", ())
    with pytest.raises(UsageError, match="has no vectors, only spatial maps or unfinished taps"):
        advise(Cache.open(toy.path))
