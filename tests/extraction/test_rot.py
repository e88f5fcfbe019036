"""Damage in a cache that an extraction works on: computed again or kept as it is, and never made to look whole."""

import errno
import shutil
from contextlib import suppress
from itertools import cycle

import pytest
from cache.disk import Disk, FailAt, grow, tree
from rot import flip_feature
from tiny import TOY, write_images

from featcache.cache import parts
from featcache.cache.check import verify
from featcache.cache.reader import Cache
from featcache.errors import DiskFault, NotACache
from featcache.extraction import extract

EIGHT, FOUR = "pixels:size=8", "pixels:size=4"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "c.h5"


@pytest.fixture
def said():
    """Return a list of what an extraction said of damage, as it grows."""
    return []


def listen(said):
    return lambda tick: said.append(tick.note) if tick.step == "aside" else None


@pytest.mark.parametrize("backbone", [EIGHT, TOY])
def test_damaged_rows_are_computed_again_when_an_image_comes(photos, out, tmp_path, said, backbone):
    extract(photos, backbone, out=out)
    flip_feature(out)
    write_images(photos, 1, first=20)
    cache = extract(photos, backbone, out=out, progress=listen(said))
    assert (cache.report.hits, cache.report.computed) == (0, 39)
    assert verify(out).problems == ()
    name = next(iter(cache.taps))
    assert said == [f"Tap '{name}' of {out} is damaged: its 36 rows are computed again"]
    extract(photos, backbone, out=tmp_path / "whole.h5")
    assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_an_extraction_with_nothing_to_do_mends_what_rehash_finds(photos, out, said):
    extract(photos, EIGHT, out=out)
    whole = out.read_bytes()
    assert extract(photos, EIGHT, out=out, rehash=True, progress=listen(said)).report.computed == 0
    assert (out.read_bytes(), said) == (whole, [])
    flip_feature(out)
    damaged = out.read_bytes()
    assert extract(photos, EIGHT, out=out).report.computed == 0
    assert out.read_bytes() == damaged
    assert extract(photos, EIGHT, out=out, rehash=True).report.computed == 36
    assert out.read_bytes() == whole


def test_a_damaged_tap_that_is_not_asked_for_stays_damaged_and_holds_nobody_up(photos, out, said, tmp_path):
    extract(photos, [EIGHT, FOUR], out=tmp_path / "whole.h5")
    extract(photos, EIGHT, out=out)
    flip_feature(out)
    cache = extract(photos, FOUR, out=out, progress=listen(said))
    assert said == [
        f"Tap 'pixels:size=8/top' of {out} is damaged: it stays as it is until the extraction that made it is "
        "repeated with `rehash=True`"
    ]
    assert cache.arrays(tap=f"{FOUR}/top")[0].shape == (36, 48)
    assert len(verify(out).problems) == 1
    with pytest.raises(NotACache, match=r"the rows of tap '/taps/pixels:size=8/top' do not match their digest"):
        cache.arrays(tap=f"{EIGHT}/top")
    extract(photos, EIGHT, out=out, rehash=True)
    assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_damaged_rows_of_images_that_are_gone_are_not_dropped(photos, out, tmp_path):
    extract(photos, EIGHT, out=out)
    flip_feature(out)
    (photos / "red/003.png").rename(tmp_path / "003.png")
    before = out.read_bytes()
    with pytest.raises(NotACache, match=r"36 rows of tap 'pixels:size=8/top' must be .* 1 of their images are not in"):
        extract(photos, EIGHT, out=out)
    assert out.read_bytes() == before
    (tmp_path / "003.png").rename(photos / "red/003.png")
    extract(photos, EIGHT, out=out, rehash=True)
    assert verify(out).problems == ()


def test_a_large_part_that_is_damaged_is_found_by_rehash(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "SMALL_BYTES", 0)
    folder = tmp_path / "cache"
    extract(photos, EIGHT, out=folder, layout="parts", batch=12)
    part = parts.part_files(folder)[0]
    flip_feature(part)
    assert extract(photos, EIGHT, out=folder).report.computed == 0
    assert extract(photos, EIGHT, out=folder, rehash=True, batch=12).report.computed == 12
    assert verify(folder).problems == ()
    assert not parts.set_aside(folder)


def test_a_part_of_another_backbone_that_is_damaged_is_not_forgotten(photos, tmp_path):
    folder = tmp_path / "cache"
    extract(photos, EIGHT, out=folder, layout="parts")
    flip_feature(parts.part_files(folder)[0])
    extract(photos, FOUR, out=folder)
    assert "has lost 36 of 36 rows" in verify(folder).problems[0]
    assert parts.set_aside(folder)
    extract(photos, EIGHT, out=folder)
    assert verify(folder).problems == ()
    assert not parts.set_aside(folder)
    assert Cache.open(folder).arrays(tap=f"{EIGHT}/top")[0].shape == (36, 192)


@pytest.mark.parametrize("most", [4, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("layout", ["file", "parts"])
def test_an_error_of_the_system_at_any_read_costs_nothing(tmp_path, layout, most):
    """The table and parts that wait are read; the next run computes nothing, and no part was renamed or removed."""
    photos, work = write_images(tmp_path / "photos", 2), tmp_path / "work"
    work.mkdir()
    out, waiting = work / "c", tmp_path / "waiting"
    extract(photos, EIGHT, out=out, layout=layout, batch=3)
    write_images(photos, 1, first=20)
    extract(photos, EIGHT, out=waiting, layout="parts", batch=3)
    parts.parts_folder(out).mkdir(exist_ok=True)
    for part in parts.part_files(waiting):
        shutil.copy(part, parts.parts_folder(out))
    start, whole, reads = tree(work), {}, [0]
    for number, error in zip(reads, cycle((errno.EMFILE, errno.EIO, errno.ENOMEM)), strict=False):
        shutil.rmtree(work)
        grow(work, start)
        disk = Disk(work)
        disk.hook = FailAt(number, error)
        with disk.watching(), suppress(DiskFault):  # nothing else; and some calls, such as those of locks, may fail
            extract(photos, EIGHT, out=out)
        if not number:  # the run that nothing disturbs tells what there is to disturb
            whole = tree(work)
            numbers = [number for number, call in enumerate(disk.calls, 1) if call in ("open", "preadv")]
            reads += numbers[:: max(1, len(numbers) // most)]
        assert not [name for name in tree(work) if ".damaged" in name]
        assert extract(photos, EIGHT, out=out).report.computed == 0
        left = tree(work)
        assert {name for name in whole if left.get(name) != whole[name]} <= {"index.json", "c.index", "c/index.json"}
