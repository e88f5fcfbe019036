"""Which backbone: what is left out and why, what is computed, and what the estimate was made from."""

from __future__ import annotations

from collections import Counter
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import write_images

import featcache as fc
from featcache.cache.reader import stored_rows
from featcache.errors import NoImages, TooFewClasses, UsageError, WeightsMissing
from featcache.extraction.engines import PixelEngine
from featcache.extraction.loss import paired_interval
from featcache.extras.ranking import rungs
from featcache.spec import ImageRow, units_of
from featcache.sweeps.left_out import left_out

GOOD, COARSE = "pixels:size=8", "pixels:size=4"


def write_corners(root: Path, per_class: int, contrast: int = 80, seed: int = 0) -> Path:
    """Write two classes that differ in which corner is bright: pixels at size 1 cannot tell them apart."""
    for number, label in enumerate(("left", "right")):
        (root / label).mkdir(parents=True)
        for at in range(per_class):
            rng = np.random.default_rng([seed, number, at])
            pixels = rng.integers(0, 100, (16, 16, 3), np.uint8)
            pixels[:8, 8 * number : 8 * number + 8] += contrast
            Image.fromarray(pixels).save(root / label / f"{at:03d}.png")
    return root


@pytest.fixture(scope="module")
def corners(tmp_path_factory) -> Path:
    """Return 2 classes x 200 images. Do not change it."""
    return write_corners(tmp_path_factory.mktemp("corners") / "photos", 200)


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """Return the number of images in each batch that goes through raw pixels from now on."""
    sizes: list[int] = []
    forward = PixelEngine.forward

    def counting(engine, batch):
        sizes.append(len(batch))
        return forward(engine, batch)

    monkeypatch.setattr(PixelEngine, "forward", counting)
    return sizes


def verdicts(ranking) -> dict[str, str]:
    return {contender.backbone: contender.verdict for contender in ranking.contenders}


def test_what_is_surely_behind_is_left_out_early_and_the_table_says_so(corners, tmp_path):
    ranking = fc.rank(corners, f"pixels:size=1,{GOOD},{COARSE}", out=tmp_path / "c.h5")
    assert verdicts(ranking)["pixels:size=1"] == "behind"
    last = ranking.contenders[-1]
    assert (last.backbone, last.images, last.reason) == ("pixels:size=1", 100, f"behind {ranking.winner.tap}")
    assert last.difference[1] < 0
    first, *others = [set(rung.backbones) for rung in ranking.rungs]
    assert first == {"pixels:size=1", GOOD, COARSE}
    assert others == [{GOOD, COARSE}] * 2
    assert ranking.winner.difference == (0.0, 0.0)


def test_a_tie_is_called_a_tie(corners, tmp_path):
    ranking = fc.rank(corners, [GOOD, COARSE], out=tmp_path / "c.h5")
    [tie] = ranking.ties
    assert tie.difference[0] <= 0 <= tie.difference[1]
    assert tie.images == ranking.winner.images == max(rung.images for rung in ranking.rungs)


def test_extracting_the_winner_computes_only_what_is_missing(corners, tmp_path, computed):
    ranking = fc.rank(corners, ["pixels:size=1", GOOD], out=tmp_path / "c.h5")
    assert ranking.winner.backbone == GOOD
    num_ranked = sum(computed)
    computed.clear()
    cache = fc.extract(corners, GOOD, out=tmp_path / "c.h5")
    assert cache.report.hits == ranking.winner.images + ranking.judging_images
    assert sum(computed) == 400 - cache.report.hits
    assert num_ranked == cache.report.hits + ranking.contenders[1].images


def test_ranking_again_computes_nothing_and_finds_the_same(corners, tmp_path, computed):
    first = fc.rank(corners, ["pixels:size=1", GOOD], out=tmp_path / "c.h5")
    computed.clear()
    second = fc.rank(corners, ["pixels:size=1", GOOD], out=tmp_path / "c.h5")
    assert computed == []
    assert (second.winner.tap, second.estimate, second.rungs) == (first.winner.tap, first.estimate, first.rungs)
    assert second.winner.seconds_per_1000 is None
    assert second.share is None


def test_no_test_image_is_computed_and_validation_only_for_the_winner(corners, tmp_path):
    ranking = fc.rank(corners, ["pixels:size=1", GOOD, COARSE], out=tmp_path / "c.h5")
    stored = stored_rows(tmp_path / "c.h5")
    by_name = {rows.tap.name: set(rows.at) for rows in stored.values()}
    cache = fc.Cache.open(ranking.cache)
    digests = {split: {row.digest for row in cache.usable(split)} for split in ("train", "val", "test")}
    assert by_name[ranking.winner.tap].isdisjoint(digests["test"])
    assert by_name[ranking.winner.tap] >= digests["val"]
    for other in ("pixels:size=1/top", ranking.ties[0].tap):
        assert by_name[other] <= digests["train"]


def test_the_estimate_is_that_of_a_head_on_the_last_rung(corners, tmp_path):
    ranking = fc.rank(corners, ["pixels:size=1", GOOD], out=tmp_path / "c.h5")
    cache = fc.extract(corners, GOOD, out=tmp_path / "c.h5")
    rows = rungs.rungs_of(rungs.rows_to_rank(cache.rows, cache.root), seed=0)[len(ranking.rungs) - 1]
    ridge = left_out(cache.features(rows, ranking.winner.tap), cache.labels(rows))
    val, y_val = cache.arrays("val", ranking.winner.tap)
    assert ranking.estimate.value == (ridge.predict(val) == y_val).mean()
    assert ranking.judging_images == len(val)


@pytest.mark.slow
def test_a_budget_halves_the_backbones_and_the_table_says_so(corners, tmp_path):
    names = [f"pixels:size={size}" for size in (8, 7, 6, 5, 4)]
    # Each reading of this clock comes one second after the one before, so batches of all backbones cost the same.
    ranking = fc.rank(corners, names, out=tmp_path / "c.h5", budget=160, batch=32, clock=count().__next__)
    counts = Counter(contender.verdict for contender in ranking.contenders)
    assert counts["no time"] == 2, ranking
    late = [contender for contender in ranking.contenders if contender.verdict == "no time"]
    assert {contender.images for contender in late} == {100}
    assert "not among the best 3 after 100 images" in late[0].reason
    assert [len(rung.backbones) for rung in ranking.rungs] == [5, 3]


def test_when_time_is_over_the_rest_are_ties(corners, tmp_path):
    ranking = fc.rank(corners, [GOOD, COARSE], out=tmp_path / "c.h5", budget=60, batch=32, clock=count().__next__)
    assert [rung.images for rung in ranking.rungs] == [100]
    assert verdicts(ranking)[ranking.ties[0].backbone] == "tie"
    assert any("The budget ended after 100 images" in remark for remark in ranking.remarks)


def test_a_budget_too_short_for_the_first_rung_is_refused_with_one_that_is_enough(corners, tmp_path):
    arguments = {"out": tmp_path / "c.h5", "batch": 8}
    with pytest.raises(UsageError, match=r"`budget` of 3 s is too short: .* Use `budget='\d+s'`") as refused:
        fc.rank(corners, [GOOD, COARSE], budget=3, clock=count().__next__, **arguments)
    advised = str(refused.value).partition("budget='")[2].partition("'")[0]
    assert fc.rank(corners, [GOOD, COARSE], budget=advised, clock=count().__next__, **arguments).winner


def test_layers_of_one_backbone_are_ranked_too(photos, tmp_path):
    ranking = fc.rank(photos, "glyphnet", tap=["block_1_relu", "top"], out=tmp_path / "c.h5")
    assert {contender.layer for contender in ranking.contenders} == {"block_1_relu", "top"}


def test_a_backbone_without_weights_is_left_out_and_named(photos, tmp_path):
    missing = f"glyphnet:weights={tmp_path / 'gone.h5'}"
    ranking = fc.rank(photos, [GOOD, missing, COARSE], out=tmp_path / "c.h5")
    assert verdicts(ranking)[missing] == "no weights"
    assert any(remark.startswith(f"{missing} is left out: ") for remark in ranking.remarks)
    with pytest.raises(WeightsMissing):
        fc.rank(photos, [GOOD, missing], out=tmp_path / "c.h5")


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"backbone": "pixels,mobilnet"}, UsageError, "did you mean mobilenet"),
        ({"backbone": "pixels"}, UsageError, "nothing to rank: `backbone` names only 'pixels'"),
        ({"backbone": "pixels,pixels"}, UsageError, "nothing to rank"),
        ({"backbone": None}, UsageError, "Name two or more backbones"),
        ({"budget": "soon"}, UsageError, "`budget` takes a time"),
        ({"budget": 0}, UsageError, "`budget` takes a time"),
        ({"pool": "none", "backbone": "glyphnet,glyphnet:seed=1"}, UsageError, "`pool='none'` keeps spatial maps"),
        ({"precision": "int8"}, UsageError, "rank in float32"),
    ],
)
def test_what_cannot_be_meant_is_refused(photos, tmp_path, arguments, kind, message):
    with pytest.raises(kind, match=message):
        fc.rank(photos, **{"backbone": [GOOD, COARSE], "out": tmp_path / "c.h5", **arguments})
    assert not (tmp_path / "c.h5").exists()


def test_images_that_cannot_be_ranked_on_are_refused(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoImages):
        fc.rank(tmp_path / "empty", [GOOD, COARSE], out=tmp_path / "c.h5")
    with pytest.raises(TooFewClasses, match="has a label"):
        fc.rank(photos / "red", [GOOD, COARSE], out=tmp_path / "c.h5")
    few = write_images(tmp_path / "few", per_class=1)
    with pytest.raises(TooFewClasses, match="two classes with 2 training images each"):
        fc.rank(few, [GOOD, COARSE], out=tmp_path / "c.h5")


def test_a_class_of_one_image_is_left_out_and_named(photos, tmp_path):
    write_images(tmp_path / "one", per_class=1, first=500)
    (photos / "white").mkdir()
    (tmp_path / "one" / "red" / "500.png").rename(photos / "white" / "500.png")
    ranking = fc.rank(photos, [GOOD, COARSE], out=tmp_path / "c.h5")
    assert any("1 of 4 classes have too few training images" in remark for remark in ranking.remarks)


def test_without_validation_images_there_is_no_estimate(photos, tmp_path):
    ranking = fc.rank(photos, [GOOD, COARSE], out=tmp_path / "c.h5", split="80/0/20")
    assert ranking.estimate is None
    assert ranking.to_json()["estimate"] is None
    assert any("No validation image" in remark for remark in ranking.remarks)


def test_rungs_are_nested_keep_the_shares_of_classes_and_have_one_image_of_a_group():
    rows = [ImageRow(f"{label}/{n}", label, "", "train", f"{label}{n}") for label in "ab" for n in range(600)]
    rows += [ImageRow(f"c/{n}", "c", f"burst{n // 10}", "train", f"c{n}") for n in range(600)]
    chosen = rungs.rows_to_rank(rows, Path("photos"))
    assert Counter(row.label for row in chosen) == {"a": 600, "b": 600, "c": 60}
    by_size = rungs.rungs_of(chosen, seed=0)
    assert [len(rung) for rung in by_size] == [101, 200, 399, 800, 1260]
    for smaller, larger in pairwise(by_size):
        assert set(smaller) <= set(larger)
    for rung in by_size:
        counts = Counter(row.label for row in rung)
        assert counts["a"] == pytest.approx(10 * counts["c"], rel=0.2)
        assert len(set(units_of(rung))) == len(rung)
    assert by_size != rungs.rungs_of(chosen, seed=1)


def test_images_of_a_group_or_class_that_the_rungs_have_not_or_have_seen_do_not_judge():
    images = fc.scan(
        np.random.default_rng(0).integers(0, 255, (10, 8, 8, 3), np.uint8),
        labels=["a", "a", "b", "b", "a", "b", "c", "a", "a", "b"],
        splits=["train"] * 4 + ["val"] * 5 + ["test"],
        groups=["", "burst", "", "", "burst", "", "", "pair", "pair", ""],
    )
    ranked = [row for row in images.rows if row.split == "train"]
    judging = rungs.rows_to_judge(images, ranked)
    # Not the one of the burst in train, not the one of class c, and only one of the pair.
    assert sorted((row.label, row.group) for row in judging) == [("a", "pair"), ("b", "")]


@pytest.mark.slow
def test_for_every_seed_the_winner_is_that_of_extracting_everything_or_not_worse_than_chance_explains(tmp_path):
    names = [f"pixels:size={size}" for size in (1, 2, 4, 8, 16)]
    shares = []
    for seed in range(10):
        photos = write_corners(tmp_path / f"photos{seed}", 300, contrast=3, seed=seed)
        clock = count().__next__
        ranking = fc.rank(photos, names, out=tmp_path / f"{seed}.h5", seed=seed, budget=250, batch=32, clock=clock)
        shares.append(ranking.share)

        everything = fc.extract(photos, names, out=tmp_path / f"{seed}-all.h5", seed=seed)
        ridges = {tap: left_out(*everything.arrays("train", tap)) for tap in everything.vectors}
        best = max(ridges, key=lambda tap: ridges[tap].is_right.sum())
        worse = paired_interval(ridges[best].is_right, ridges[ranking.winner.tap].is_right)
        assert worse[0] <= 0 <= worse[1], (seed, best, ranking)
    assert max(shares) < 0.7
