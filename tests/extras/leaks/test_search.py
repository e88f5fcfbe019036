"""What the search rests on: all pairs by blocks, hashes in all symmetries, thresholds set from the data."""

import numpy as np
import pytest
from peaks import peak_of
from PIL import Image
from sklearn.datasets import load_digits

from featcache.extras.leaks import pixels, tails, vector_pairs
from featcache.extras.leaks.search import search
from featcache.extras.leaks.thumbnails import Thumbnails
from featcache.extras.leaks.vector_pairs import Vectors, pairs_over, unit
from featcache.images.decode import thumbnail

from .conftest import picture


def greys_of(images):
    return np.stack([np.asarray(image.convert("L").resize((64, 64))) for image in images])


def searched(greys, features, seen=True):
    count = len(greys)
    shown = Thumbnails(greys, np.full((count, 2), 300), np.full(count, seen))
    return search(features.astype(np.float32), shown, [""] * count, None, lambda step: None)


@pytest.fixture(scope="module")
def greys():
    return greys_of([picture(seed) for seed in range(80)])


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_comparing_in_blocks_finds_all_pairs(block, monkeypatch):
    monkeypatch.setattr(vector_pairs, "BLOCK", block)
    rng = np.random.default_rng(0)
    features, other = (unit(rng.normal(size=(30, 4))) for _ in range(2))
    pairs = pairs_over(Vectors(features, (features, other)), 0.6, 1000)
    every = np.maximum(features @ features.T, features @ other.T)
    wanted = {(a, b) for a in range(30) for b in range(a + 1, 30) if every[a, b] >= 0.6}
    assert set(zip(pairs.a.tolist(), pairs.b.tolist(), strict=True)) == wanted
    assert np.allclose(pairs.similarity, every[pairs.a, pairs.b])
    assert (np.diff(pairs.similarity) <= 0).all()


@pytest.mark.parametrize("block", [2, 1000])
def test_of_too_many_pairs_the_most_similar_are_kept_and_the_rest_counted(block, monkeypatch):
    monkeypatch.setattr(vector_pairs, "BLOCK", block)
    features = unit(np.random.default_rng(0).normal(size=(40, 3)))
    every, few = (
        pairs_over(Vectors(features, (features,)), -1.0, 10**6),
        pairs_over(Vectors(features, (features,)), -1.0, 25),
    )
    assert (len(every.a), every.cut) == (780, 0)
    assert np.allclose(few.similarity, every.similarity[:25])
    assert few.cut > 0


def test_the_hash_of_a_turned_image_is_that_of_the_image_in_one_symmetry(greys):
    plain = pixels.hashes(greys[:3])
    for number, (swapped, upside_down, mirrored) in enumerate(pixels.SYMMETRIES):
        turned = greys[:3].transpose(0, 2, 1) if swapped else greys[:3]
        turned = np.ascontiguousarray(turned[:, :: -1 if upside_down else 1, :: -1 if mirrored else 1])
        assert np.abs(pixels.hashes(turned).plain - plain.others[number]).max() < 1e-4
        assert np.allclose(pixels.hashes(turned).similarities(slice(None)).diagonal(), 1, atol=1e-4)
        agreement, how = pixels.whole(np.concatenate([greys[:3], turned]), np.arange(3), np.arange(3, 6))
        assert np.allclose(agreement, 1, atol=1e-3)
        assert (how > 0).tolist() == [number > 0] * 3


def test_parts_of_an_image_are_found_in_it_and_not_in_others(greys):
    images = [picture(seed).resize((256, 256)) for seed in range(4)]
    parts = greys_of([image.crop((20, 8, 236, 200)) for image in images])
    both = np.concatenate([greys_of(images), parts])
    same = pixels.cropped(both, np.arange(4), np.arange(4, 8))
    others = pixels.cropped(both, np.arange(4), np.array([5, 6, 7, 4]))
    assert same.min() > 0.8
    assert others.max() < 0.6


def test_an_image_without_pixels_has_a_hash_like_no_other(greys):
    blank = np.full((2, 64, 64), 128, np.uint8)
    assert not pixels.hashes(blank).plain.any()
    agreement, _ = pixels.whole(
        np.concatenate([blank, blank + 60, greys[:1]]), np.array([0, 0, 0]), np.array([1, 2, 4])
    )
    assert agreement.tolist() == pytest.approx([1, 0, 0], abs=1e-6)


@pytest.mark.parametrize("width", [4, 12, 100])
def test_of_different_images_no_more_pairs_lie_beyond_the_threshold_than_it_says(width):
    features = unit(np.random.default_rng(0).normal(size=(3000, width)) * np.linspace(2, 0.5, width))
    vectors = Vectors(features, (features,))
    draws = tails.draws_of(np.arange(3000), vectors.only, 0.99)
    measured = tails.tails_of(draws, 3000, vectors.only)
    num_pairs = [len(pairs_over(vectors, measured.threshold(expected), 10**6).a) for expected in (1, 300, 30_000)]
    assert num_pairs[0] <= 2
    assert num_pairs[1] <= 300
    assert 300 < num_pairs[2] <= 30_000


@pytest.mark.parametrize("copies", [1, 2, 8, 60])
def test_copies_of_everything_do_not_make_different_images_look_alike(copies):
    base = np.random.default_rng(1).normal(size=(2400 // copies, 30))
    features = unit(np.repeat(base, copies, axis=0) + np.random.default_rng(2).normal(0, 0.01, (2400, 30)))
    vectors = Vectors(features, (features,))
    draws = tails.draws_of(np.arange(2400), vectors.only, 0.99)
    threshold = tails.tails_of(draws, 2400, vectors.only).threshold(1)
    assert 0.6 < threshold < (0.95 if copies <= 8 else 0.99)  # copies themselves are at 0.999


def test_eight_copies_of_every_image_are_all_found(greys):
    rng = np.random.default_rng(0)
    of = np.repeat(np.arange(80), 8)
    noisy = np.clip(greys[of] + rng.normal(0, 3, (640, 64, 64)), 0, 255).astype(np.uint8)
    features = rng.normal(size=(80, 40))[of] + rng.normal(0, 0.05, (640, 40))
    result = searched(noisy, features)
    assert {(match.a, match.b) for match in result.matches} == {
        (a, b) for a in range(640) for b in range(a + 1, 640) if of[a] == of[b]
    }


def test_digits_that_somebody_else_wrote_are_different():
    digits = load_digits()
    greys = (np.kron(digits.images, np.ones((8, 8))) * 15.9).astype(np.uint8)
    result = searched(greys, digits.data)
    assert len(result.matches) <= 1
    assert result.thresholds.agreement > 0.9  # they agree much better than photographs that are different
    blind = searched(greys, digits.data, seen=False)
    assert len(blind.matches) <= 2


def test_candidates_have_to_agree_in_their_pixels(greys):
    features = np.random.default_rng(0).normal(size=(80, 20))
    features[1] = features[0]
    assert not searched(greys, features).matches
    assert [(match.a, match.b) for match in searched(greys, features, seen=False).matches] == [(0, 1)]


@pytest.mark.parametrize(("mode", "suffix"), [("RGB", "jpeg"), ("L", "png")])
def test_a_thumbnail_says_how_large_the_image_is_shown(mode, suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    image = picture(0).resize((1200, 900)).convert(mode)
    image.save(tmp_path / f"a.{suffix}")
    image.save(tmp_path / f"b.{suffix}", exif=exif)
    for name, size in (("a", (1200, 900)), ("b", (900, 1200))):
        grey, shown = thumbnail((tmp_path / f"{name}.{suffix}").read_bytes(), 64)
        assert (grey.shape, grey.dtype, shown) == ((64, 64), np.uint8, size)
    exact = np.asarray(image.convert("L").resize((64, 64), Image.Resampling.BOX), float)
    grey, _ = thumbnail((tmp_path / f"a.{suffix}").read_bytes(), 64)
    assert np.abs(grey - exact).mean() < 3


def test_features_are_searched_without_a_copy(monkeypatch):
    monkeypatch.setattr(vector_pairs, "BLOCK", 64)
    features = np.random.default_rng(0).normal(size=(1000, 2000)).astype(np.float32)
    nothing_seen = Thumbnails.none(1000)
    search(features[:100].copy(), nothing_seen, [""] * 100, None, lambda step: None)  # imports what it needs
    result, peak = peak_of(lambda: search(features, nothing_seen, [""] * 1000, None, lambda step: None))
    assert not result.matches
    assert peak / features.nbytes < 0.5
