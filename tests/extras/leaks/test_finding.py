"""Images that show the same are found, with the kind of copy they are, and no others."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

import featcache as fc
from featcache.errors import NoImages, ShapeMismatch, UnknownTap, UsageError
from featcache.extraction import extract
from featcache.extras.leaks import KINDS, finding, leaks
from featcache.extras.leaks.finding import widest

from .conftest import PIXELS, copy, picture, write_pictures

KIND_OF = {"re-encoded": "re-encoded", "resized": "resized", "mirrored": "rotated/flipped", "turned": "rotated/flipped"}


def kinds(result):
    return {frozenset((pair.a, pair.b)): pair.kind for pair in result.pairs}


def test_every_kind_of_copy_is_found_and_nothing_else(split, cached):
    wanted = {}
    shutil.copy(split / "test/daisy/030.png", split / "train/daisy/exact.png")
    wanted[frozenset(("test/daisy/030.png", "train/daisy/exact.png"))] = "exact"
    for number, (change, kind) in enumerate({**KIND_OF, "cropped": "near"}.items()):
        source, to = f"test/iris/03{number % 4}.png", f"train/rose/{change}.jpg"
        source = source.replace("iris", "rose") if number >= 4 else source
        copy(split / source, split / to, change)
        wanted[frozenset((source, to))] = kind
    result = leaks(cached(split))
    assert kinds(result) == wanted
    assert (result.contaminated, result.guarded, result.unseen, result.notes) == (True, "test", 0, ())
    assert all(pair.splits == ("test", "train") for pair in result.pairs)
    assert all(pair.agreement > 0.7 for pair in result.pairs)
    assert result.counts == {
        ("train", "test"): {"exact": 1, "re-encoded": 1, "resized": 1, "rotated/flipped": 2, "near": 1}
    }


def test_different_images_are_not_claimed(split, cached):
    result = leaks(cached(split))
    assert (result.pairs, result.contaminated) == ((), False)


def test_an_image_that_was_turned_by_exif_is_the_same(split, cached):
    image = Image.open(split / "test/iris/030.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(split / "train/iris/exif.jpg", exif=exif, quality=90)
    assert list(kinds(leaks(cached(split))).values()) == ["re-encoded"]


def test_copies_within_a_split_are_pairs_but_no_contamination(split, cached):
    copy(split / "train/iris/000.png", split / "train/rose/copy.jpg")
    result = leaks(cached(split))
    assert [(pair.splits, pair.crosses) for pair in result.pairs] == [(("train", "train"), False)]
    assert not result.contaminated


def test_train_and_val_contaminate_only_where_there_is_no_test(split, cached):
    copy(split / "val/iris/020.png", split / "train/iris/copy.jpg")
    result = leaks(cached(split))
    assert ([pair.crosses for pair in result.pairs], result.contaminated) == ([True], False)
    shutil.rmtree(split / "test")
    result = leaks(extract(split, PIXELS, out=split.parent / "v.h5"))
    assert (result.guarded, result.contaminated) == ("val", True)


def test_pairs_that_contaminate_come_first(split, cached):
    copy(split / "train/iris/000.png", split / "train/iris/copy.jpg")
    copy(split / "val/iris/020.png", split / "train/iris/val.jpg")
    copy(split / "test/iris/030.png", split / "train/iris/test.jpg", "cropped")
    result = leaks(cached(split))
    assert [pair.splits for pair in result.pairs] == [("test", "train"), ("train", "val"), ("train", "train")]


def test_each_of_many_copies_is_paired_only_with_the_first_of_every_split(split, cached):
    for number in range(5):
        shutil.copy(split / "test/iris/030.png", split / f"train/iris/copy{number}.png")
    shutil.copy(split / "test/iris/030.png", split / "val/iris/copy.png")
    result = leaks(cached(split))
    assert {pair.kind for pair in result.pairs} == {"exact"}
    assert {splits: kinds["exact"] for splits, kinds in result.counts.items()} == {
        ("train", "train"): 4,
        ("train", "val"): 5,
        ("train", "test"): 5,
        ("val", "test"): 1,
    }


def test_without_the_images_features_decide_and_a_note_says_so(split, cached, tmp_path):
    copy(split / "test/iris/030.png", split / "train/iris/copy.jpg", quality=95)
    shutil.copy(split / "test/daisy/030.png", split / "train/daisy/exact.png")
    cache = cached(split)
    split.rename(tmp_path / "moved")
    result = leaks(cache)
    assert sorted(pair.kind for pair in result.pairs) == ["exact", "near"]
    assert {pair.agreement for pair in result.pairs} == {None, 1.0}
    assert (result.unseen, result.thresholds.agreement, result.thresholds.hashes) == (result.images, None, None)
    [note] = result.notes
    assert note.startswith("Only features are compared: The image folder ")
    again = leaks(cache, images=tmp_path / "moved")
    assert (sorted(pair.kind for pair in again.pairs), again.notes) == (["exact", "re-encoded"], ())
    with pytest.raises(NoImages, match="nowhere does not exist"):
        leaks(cache, images=tmp_path / "nowhere")


def test_missing_and_changed_images_are_counted(split, cached):
    cache = cached(split)
    (split / "train/iris/000.png").unlink()
    picture(77).save(split / "train/iris/001.png")
    result = leaks(cache)
    assert (result.unseen, result.pairs) == (2, ())
    assert result.notes[0].startswith("2 of 72 images are not in ")


def test_the_threshold_is_set_from_the_data_or_as_it_is_given(split, cached):
    cache = cached(split)
    thresholds = leaks(cache).thresholds
    assert 0 < thresholds.features < thresholds.alone < 1
    assert thresholds.why.startswith(
        "set from the data: of 2556 pairs of different images about 7 are expected beyond it"
    )
    fixed = leaks(cache, threshold="0.97").thresholds
    assert (fixed.features, fixed.alone, fixed.why) == (0.97, 0.97, "as given")


@pytest.mark.parametrize("threshold", ["0", "1.5", "-1", "nan", "many", ""])
def test_an_invalid_threshold_is_refused(threshold, split, cached):
    with pytest.raises(
        UsageError, match=rf"`threshold` takes auto or a similarity above 0 and up to 1; got {threshold}"
    ):
        leaks(cached(split), threshold=threshold)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_few_images_are_enough(count, tmp_path, cached):
    for number in range(count):
        (tmp_path / "few").mkdir(exist_ok=True)
        picture(number).save(tmp_path / "few" / f"{number}.png")
    result = leaks(cached(tmp_path / "few"))
    assert (result.images, result.pairs, result.guarded, result.contaminated) == (count, (), "", False)
    copy(tmp_path / "few/0.png", tmp_path / "few/copy.jpg", quality=90)
    result = leaks(cached(tmp_path / "few"))
    assert list(kinds(result).values()) == ["re-encoded"]
    assert "too few to set it from" in result.thresholds.why


@pytest.mark.slow
def test_images_that_show_nothing_are_the_same_if_they_are_equally_bright(tmp_path, cached):
    root = write_pictures(tmp_path / "x")
    for number, grey in enumerate((200, 200, 90)):
        Image.new("L", (40 + number, 30), grey).save(root / "rose" / f"blank{number}.png")
    assert kinds(leaks(cached(root))) == {frozenset(("rose/blank0.png", "rose/blank1.png")): "resized"}


def test_features_that_never_vary_give_numbers(split, cached, monkeypatch):
    cache = cached(split)
    monkeypatch.setattr(finding, "features_of", lambda cache, rows, name: np.ones((len(rows), 5), np.float32))
    result = leaks(cache)
    assert (result.pairs, result.thresholds.features) == ((), 0.95)
    assert np.isfinite([result.thresholds.hashes, result.thresholds.agreement, result.thresholds.alone]).all()


def test_features_that_are_not_finite_are_refused(split, cached, monkeypatch):
    cache = cached(split)
    real = fc.Cache.features

    def broken(self, rows, tap=None):
        features = real(self, rows, tap)
        features[-1, 0] = np.nan
        return features

    monkeypatch.setattr(fc.Cache, "features", broken)
    with pytest.raises(ShapeMismatch, match=r"has features that are not finite, in 1 row such as val/rose/023.png"):
        leaks(cache)


def test_names_of_any_kind_are_paths_like_others(split, cached):
    names = ("a'b\"c.jpg", "<b>&.jpg", "line\nbreak.jpg", "caf\udce9.jpg")
    for number, name in enumerate(names):
        copy(split / "test/iris/030.png", split / "train/iris" / name, quality=60 + number)
    result = leaks(cached(split))
    assert {pair.b for pair in result.contaminating} == {f"train/iris/{name}" for name in names}


@pytest.mark.slow
def test_maps_are_averaged_and_the_widest_last_layer_is_taken(tmp_path):
    photos = write_pictures(tmp_path / "x", 4)
    copy(photos / "iris/000.png", photos / "iris/copy.jpg", quality=90)
    maps = extract(photos, "glyphnet:weights=none", out=tmp_path / "m.h5", pool="none", views="flip")
    result = leaks(maps)
    assert maps.tap(result.tap).pooling == "none"
    assert "@" not in result.tap
    assert list(kinds(result).values()) == ["re-encoded"]
    both = extract(photos, ["glyphnet:weights=none", PIXELS], out=tmp_path / "b.h5", views="flip")
    assert widest(both) == "glyphnet:weights=none/top"
    assert leaks(both, tap="glyphnet:weights=none/top@hflip").tap == "glyphnet:weights=none/top@hflip"
    with pytest.raises(UnknownTap, match="no tap 'nothing'"):
        leaks(both, tap="nothing")


def test_features_larger_than_the_memory_are_refused(split, cached, monkeypatch):
    monkeypatch.setattr(finding, "physical_memory", lambda: 1000)
    with pytest.raises(UsageError, match=r"more than a quarter of the memory. Choose a narrower tap"):
        leaks(cached(split))


def test_nothing_is_written(split, cached):
    copy(split / "test/iris/030.png", split / "train/iris/copy.jpg")
    path = cached(split).path
    before = (path.read_bytes(), sorted(os.listdir(path.parent)))
    leaks(path)
    assert (path.read_bytes(), sorted(os.listdir(path.parent))) == before


def test_kinds_have_the_names_that_stay():
    assert KINDS == ("exact", "re-encoded", "resized", "rotated/flipped", "near")
