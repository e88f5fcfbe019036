import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.images.augment import AUGMENTATIONS, Augmentation, augmented, changed, draws_of
from featcache.images.decode import decode_views
from featcache.images.views import parse_views
from featcache.spec import Preprocess

SIDE = 33
RAMP = np.stack(np.broadcast_arrays(np.arange(SIDE)[None, :] * 5, np.arange(SIDE)[:, None] * 5, 60), -1).astype(
    np.uint8
)


def only(draws, **limits):
    """Return the ramp under one kind of change alone, in its own colours."""
    return changed(RAMP, Augmentation(**limits), [*draws, 0.0, 0.0, 0.0]).astype(int)


@given(st.sampled_from(list(AUGMENTATIONS)), st.integers(0, 10**6), st.text(max_size=9))
def test_a_view_of_an_image_is_the_same_whenever_it_is_drawn(name, number, digest):
    one, again = (augmented(RAMP, f"{name}-{number}", digest) for _ in range(2))
    assert np.array_equal(one, again)
    assert (one.shape, one.dtype) == (RAMP.shape, np.uint8)


def test_views_and_images_differ():
    views = {
        augmented(RAMP, f"{name}-{number}", digest).tobytes()
        for name in AUGMENTATIONS
        for number in (1, 2)
        for digest in "ab"
    }
    assert len(views) == 12
    assert all(np.array_equal(augmented(RAMP, view, "a"), RAMP) for view in ("identity", "crop-1", "none-1"))


def test_without_changes_the_image_stays_and_half_are_mirrored(monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "light", Augmentation())
    found = [augmented(RAMP, "light-1", str(digest)) for digest in range(200)]
    mirrored = sum(np.array_equal(one, RAMP[:, ::-1]) for one in found)
    assert sum(np.array_equal(one, RAMP) for one in found) == 200 - mirrored
    assert 70 < mirrored < 130


def test_each_change_does_what_it_says():
    inside = slice(8, -8)
    right = only([0, 1, 0, 0, 0, 0, 0], shift=4 / SIDE)
    assert np.array_equal(right[inside, inside], np.roll(RAMP, -4, axis=1)[inside, inside])
    down = only([0, 0, 1, 0, 0, 0, 0], shift=4 / SIDE)
    assert np.array_equal(down[inside, inside], np.roll(RAMP, -4, axis=0)[inside, inside])
    turned = only([1, 0, 0, 0, 0, 0, 0], rotation=90)
    assert np.array_equal(turned, np.rot90(RAMP, -1)) or np.array_equal(turned, np.rot90(RAMP))
    half = only([0, 0, 0, 0, -1, -1, 0], zoom=0.5)
    steps = np.diff(half[inside, inside, 0], axis=1)
    assert set(np.unique(steps)) <= {2, 3}
    leaned = only([0, 0, 0, 1, 0, 0, 0], shear=0.2)
    offset = np.diff(leaned[inside, inside, 0], axis=0)
    assert offset.mean() == pytest.approx(-5 * np.sin(0.2), abs=0.1)


def test_colours_change_within_their_limits():
    grey = np.full((8, 8, 3), 100, np.uint8)
    found = {int(augmented(grey, f"strong-{number}", "d")[0, 0, 0]) for number in range(100)}
    assert 59 <= min(found) < 75
    assert 125 < max(found) <= 141


def test_views_of_augmentations_are_extracted_like_any_other(tmp_path):
    assert parse_views("identity,light-3,tutorial-12") == ("identity", "light-3", "tutorial-12")
    from tiny import write_images

    path = next(write_images(tmp_path, 1).rglob("*.png"))
    plain, light = decode_views(path.read_bytes(), Preprocess(16), ["identity", "light-3"], "digest")
    assert np.array_equal(light, augmented(plain, "light-3", "digest"))


@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_no_view_shows_what_is_beyond_the_borders(name):
    white = np.full((24, 24, 3), 255, np.uint8)
    plain = Augmentation(**{**vars(AUGMENTATIONS[name]), "colour": 0.0})
    for number in range(1500):
        assert (changed(white, plain, draws_of(f"{name}-{number}", "d")) == 255).all(), number
