"""What must stay in one split stays in one fold, too: groups, copies, and groups that share a copy."""

import shutil

import pytest
from tiny import write_images

from featcache.errors import TooFewClasses, UsageError
from featcache.extraction import extract
from featcache.sweeps import advise, sweep
from featcache.sweeps.choosing import images_of
from featcache.sweeps.run import Settings
from featcache.sweeps.tap_data import make_tap_data

PIXELS = "pixels:size=8"
TAP = "pixels:size=8/top"


@pytest.fixture
def grouped(tmp_path):
    """Return a folder of three classes with eight plants of two images each; every second shares one with the next."""
    photos = tmp_path / "photos"
    for plant in range(8):
        write_images(tmp_path / "x", 2, first=2 * plant)
        for label in ("blue", "green", "red"):
            (photos / label).mkdir(parents=True, exist_ok=True)
            (tmp_path / "x" / label).rename(photos / label / f"p{plant}")
            if plant % 2:
                shutil.copy(photos / label / f"p{plant}" / f"{2 * plant:03d}.png", photos / label / f"p{plant - 1}")
    return photos


def test_groups_that_share_a_copy_are_in_one_fold(grouped, tmp_path):
    cache = extract(grouped, PIXELS, out=tmp_path / "c.h5", group_from="parent", split="100/0/0")
    settings = Settings(str(cache.path), ("ridge",), (TAP,), cv=2)
    train, _ = images_of(cache, settings)
    data = make_tap_data(cache, TAP, train, [], settings)
    assert len(train) == 60
    for fit_on, choose_on in data.folds:
        for what in ("group", "digest"):
            assert not {getattr(train[at], what) for at in fit_on} & {getattr(train[at], what) for at in choose_on}


def test_leaving_one_out_is_refused_where_its_mates_would_stay(grouped, tmp_path):
    cache = extract(grouped, PIXELS, out=tmp_path / "c.h5", group_from="parent", split="100/0/0")
    with pytest.raises(UsageError, match=r"48 of 60 training images of .*c.h5 are copies or in the group .* `cv=5`"):
        sweep(cache, "ridge", cv="loo", out=tmp_path / "run")


def test_advice_leaves_out_one_image_of_each_group(grouped, tmp_path):
    cache = extract(grouped, PIXELS, out=tmp_path / "c.h5", group_from="parent", split="100/0/0")
    found = advise(cache)
    assert (found.images, found.least) == (60, 20)
    [depth] = found.curve
    hits = depth.left_out * 12  # twelve units: four pairs of plants in each class
    assert hits == pytest.approx(round(hits))
    classes = extract(grouped, PIXELS, out=tmp_path / "k.h5", group_from=r"regex:^[a-z]+", split="100/0/0")
    with pytest.raises(
        TooFewClasses, match=r"two classes with 2 training images each that are in different groups .* has 1"
    ):
        advise(classes)
