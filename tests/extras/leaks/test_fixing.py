"""After --fix what shows the same is in one group and one split, and stays there."""

import csv
import shutil
from contextlib import contextmanager

import pytest
from cache.disk import Disk

from featcache import files
from featcache.cache import layout, parts
from featcache.cache.check import verify
from featcache.cache.exchange import merge_caches
from featcache.cache.reader import Cache
from featcache.errors import NotARun, UsageError
from featcache.extraction import Options, extract
from featcache.extraction.workflow import open_extraction
from featcache.extras.leaks import fix, leaks, write_table
from featcache.images.manifest import scan
from featcache.spec import silent, unit_of
from featcache.sweeps import Run, sweep

from .conftest import PIXELS, copy, write_pictures


@pytest.fixture
def leaky(split):
    """Return the folder with copies of test images in train and val, and one of val in train."""
    copy(split / "test/iris/030.png", split / "train/iris/a.jpg")
    copy(split / "test/iris/031.png", split / "val/iris/b.jpg", "resized")
    copy(split / "val/rose/020.png", split / "train/rose/c.jpg")
    shutil.copy(split / "test/daisy/030.png", split / "train/daisy/d.png")
    return split


def split_of(cache):
    return {row.path: row.split for row in cache.rows}


def extracted(images, tmp_path, **options):
    return extract(images, PIXELS, out=tmp_path / "c.h5", **options)


MOVED = {
    "test/iris/030.png": ("test", "train"),
    "test/iris/031.png": ("test", "val"),
    "val/rose/020.png": ("val", "train"),
    "test/daisy/030.png": ("test", "train"),
}


def test_test_only_loses_images_and_nothing_crosses_any_more(leaky, tmp_path):
    cache = extracted(leaky, tmp_path)
    fixed = fix(leaks(cache))
    assert {move.path: (move.before, move.after) for move in fixed.moved} == MOVED
    assert (fixed.groups, fixed.images, fixed.emptied) == (4, 8, ())
    assert fixed.splits == {"train": 54, "val": 13, "test": 9} == Cache.open(cache.path).splits
    again = leaks(cache.path)
    assert (len(again.pairs), again.contaminated) == (4, False)
    assert not any(pair.crosses for pair in again.pairs)
    assert verify(cache.path).rows == 75  # one for each content
    assert fix(again).moved == ()


def test_features_of_images_are_as_they_were(leaky, tmp_path):
    cache = extracted(leaky, tmp_path)
    before = cache.features(cache.rows)
    fix(leaks(cache))
    after = Cache.open(cache.path)
    assert [row.path for row in after.rows] == [row.path for row in cache.rows]
    assert (after.features(after.rows) == before).all()


@pytest.mark.parametrize("layout", ["file", "parts"])
def test_a_later_extraction_of_the_same_folders_does_not_undo_it(layout, leaky, tmp_path):
    cache = extracted(leaky, tmp_path, layout=layout)
    fix(leaks(cache))
    fixed = Cache.open(cache.path)
    ticks = []
    again = extracted(leaky, tmp_path, progress=ticks.append)
    assert (again.rows, again.joined) == (fixed.rows, fixed.joined)
    assert "not where their folders say: 2 of test in train, 1 of test in val, 1 of val in train" in ticks[-1].note
    write_pictures(leaky / "train", 1, first=90)
    shutil.copy(leaky / "train/iris/a.jpg", leaky / "test/iris/another.jpg")
    more = split_of(extracted(leaky, tmp_path))
    assert {path: more[path] for path in split_of(fixed)} == split_of(fixed)
    assert more["test/iris/another.jpg"] == "train"  # the copy of a copy
    assert not leaks(cache.path).contaminated


def test_class_folders_that_are_split_by_hash_stay_fixed_too(tmp_path):
    photos = write_pictures(tmp_path / "photos", 20)
    for number in range(20):
        copy(photos / f"iris/{number:03d}.png", photos / f"iris/copy{number}.jpg")
    cache = extracted(photos, tmp_path)
    result = leaks(cache)
    assert result.contaminated
    fix(result)
    after = extracted(photos, tmp_path)
    assert after.rows == Cache.open(cache.path).rows
    assert not leaks(after).contaminated
    splits = split_of(after)
    assert all(splits[pair.a] == splits[pair.b] for pair in result.pairs)


def test_the_groups_of_joined_images_move_as_a_whole(tmp_path):
    photos = tmp_path / "photos"
    for label in ("iris", "rose"):
        for patient in range(12):
            write_pictures(tmp_path / "x", 2, first=2 * patient)
            shutil.copytree(tmp_path / "x" / label, photos / label / f"p{patient}")
            shutil.rmtree(tmp_path / "x")
    cache = extracted(photos, tmp_path, group_from="parent")
    of = {row.group: row.split for row in cache.rows}
    train = next(group for group, split in sorted(of.items()) if split == "train")
    test = next(group for group, split in sorted(of.items()) if split == "test")
    source = next(row.path for row in cache.rows if row.group == test)
    copy(photos / source, photos / train / "copy.jpg")
    cache = extracted(photos, tmp_path, group_from="parent")
    fixed = fix(leaks(cache))
    assert (fixed.images, len(fixed.moved)) == (5, 2)  # both groups, and the two images of the one in test
    after = Cache.open(cache.path)
    [name] = {row.group for row in after.rows if row.path.startswith((f"{train}/", f"{test}/"))}
    assert {after.joined[row.path] for row in after.rows if row.group == name} == {train, test}
    write_pictures(tmp_path / "new", 1, first=99)
    shutil.copy(tmp_path / "new/iris/099.png", photos / test / "new.png")
    later = extracted(photos, tmp_path, group_from="parent")
    assert split_of(later)[f"{test}/new.png"] == "train"
    with pytest.raises(UsageError, match=r"in group '\w+/p\d+', and splits never move; asked for no group"):
        extracted(photos, tmp_path)


def test_an_old_run_is_not_judged_on_the_new_split(leaky, tmp_path):
    cache = extracted(leaky, tmp_path)
    run = sweep(cache, "ridge", out=tmp_path / "run")
    fix(leaks(cache))
    with pytest.raises(NotARun, match=r"c.h5 has changed since .* was made from it: .* Sweep again"):
        Run.open(run.path).cache()
    assert sweep(cache.path, "ridge", out=tmp_path / "run2").num_train == 54


def test_folds_keep_the_joined_groups_together(split, tmp_path):
    copy(split / "train/iris/000.png", split / "train/iris/copy.jpg")  # nothing crosses: only groups change
    cache = extracted(split, tmp_path)
    by_folds, by_val = (sweep(cache, "ridge", cv=cv, out=tmp_path / str(cv)) for cv in (4, None))
    assert fix(leaks(cache)).moved == ()
    with pytest.raises(NotARun, match="groups or splits"):
        Run.open(by_folds.path).cache()
    Run.open(by_val.path).cache()
    with pytest.raises(UsageError, match="holds a run already, with other images"):
        sweep(cache.path, "ridge", cv=4, out=tmp_path / "4")


def test_an_image_that_goes_from_the_end_of_train_to_the_start_of_val_changes_the_run(split, tmp_path):
    """Train and val one after the other are then the same list."""
    (split / "val").rename(split / "w")
    (split / "w").rename(split / "validation")
    copy(split / "train/rose/015.png", split / "train/rose/z.jpg")
    cache = extracted(split, tmp_path)
    run = sweep(cache, "ridge", out=tmp_path / "run")
    rows = [row._replace(split="val") if row.path == "train/rose/z.jpg" else row for row in cache.rows]
    parts.merge(cache.path, rows, {}, parts.ImageTable.of(cache).facts)
    with pytest.raises(NotARun, match="groups or splits"):
        Run.open(run.path).cache()


def test_merged_caches_keep_what_was_fixed(leaky, tmp_path):
    cache = extracted(leaky, tmp_path)
    fix(leaks(cache))
    merged = merge_caches([cache.path], tmp_path / "all.h5")
    fixed = Cache.open(cache.path)
    assert (merged.rows, merged.joined) == (fixed.rows, fixed.joined)


def test_a_fix_that_was_made_while_an_extraction_waited_is_kept(leaky, tmp_path, monkeypatch):
    cache = extracted(leaky, tmp_path)
    real = parts.lock

    @contextmanager
    def overtaken(path, wait):
        monkeypatch.setattr(parts, "lock", real)
        fix(leaks(cache))
        with real(path, wait):
            yield True

    monkeypatch.setattr(parts, "lock", overtaken)
    write_pictures(leaky / "train", 1, first=90)
    after = extracted(leaky, tmp_path)
    assert len(after.rows) == 79
    assert {path: split for path, split in split_of(after).items() if path in MOVED} == {
        path: to for path, (_, to) in MOVED.items()
    }


def no_locks(monkeypatch):
    """Be on a file system without locks."""

    def refused(*args, **options):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("featcache.locks.FileLock.acquire", refused)


def places_of_moved(cache):
    return {path: split for path, split in split_of(Cache.open(cache.path)).items() if path in MOVED}


FIXED_PLACES = {path: to for path, (_, to) in MOVED.items()}


@pytest.mark.parametrize("layout", ["file", "parts"])
@pytest.mark.parametrize("backbone", [PIXELS, "pixels:size=4"], ids=["same tap", "new tap"])
def test_a_fix_between_the_scan_of_an_extraction_and_its_work_stays(layout, backbone, leaky, tmp_path):
    cache = extracted(leaky, tmp_path, layout=layout)
    write_pictures(leaky / "train", 1, first=90)
    extraction = open_extraction(leaky, cache.path, Options(backbone), None, silent)
    fix(leaks(cache))
    after = extraction.run()
    assert len(after.rows) == 79
    assert places_of_moved(cache) == FIXED_PLACES
    assert not leaks(cache.path).contaminated


def test_an_extraction_with_nothing_to_do_returns_what_was_fixed_meanwhile(leaky, tmp_path):
    cache = extracted(leaky, tmp_path)
    extraction = open_extraction(leaky, cache.path, Options(PIXELS), None, silent)
    fix(leaks(cache))
    assert extraction.run().rows == Cache.open(cache.path).rows != cache.rows


def test_a_fix_while_an_extraction_computes_stays_without_locks_too(leaky, tmp_path, monkeypatch):
    no_locks(monkeypatch)
    cache = extracted(leaky, tmp_path)
    write_pictures(leaky / "train", 1, first=90)
    result = leaks(cache)
    fixes = [lambda: fix(result)]

    def meanwhile(tick):
        if tick.step.startswith("extract") and fixes:
            fixes.pop()()

    after = extracted(leaky, tmp_path, progress=meanwhile)
    assert not fixes
    assert len(after.rows) == 79
    assert places_of_moved(cache) == FIXED_PLACES


def test_a_fix_that_is_overtaken_every_time_gives_up_after_20_attempts(leaky, tmp_path, monkeypatch):
    result = leaks(extracted(leaky, tmp_path))
    attempts = []

    def overtaken(table, before, fill):
        attempts.append(table)
        raise files.Overtaken(table)

    monkeypatch.setattr(files, "LAST_WAIT_S", 0)
    monkeypatch.setattr(layout, "write_table", overtaken)
    with pytest.raises(files.Overtaken, match="was replaced by another process again and again"):
        fix(result)
    assert len(attempts) == files.ATTEMPTS == 20


@pytest.mark.parametrize("first", ["extract", "fix"])
def test_a_fix_and_an_extraction_that_write_at_once_both_stay(first, leaky, tmp_path, monkeypatch):
    no_locks(monkeypatch)
    cache = extracted(leaky, tmp_path)
    result = leaks(cache)
    write_pictures(leaky / "train", 1, first=90)
    works = {"extract": lambda: extracted(leaky, tmp_path), "fix": lambda: fix(result)}
    outer = works.pop(first)
    disk, at_the_end = Disk(tmp_path), []

    def inside(call, path):
        # the outer one has asked whether the table is as it was, and is about to rename its own
        if call == "replace" and path.startswith(".tmp-") and works:
            at_the_end.append(path)
            works.popitem()[1]()

    with disk.watching():
        disk.hook = inside
        outer()
    assert at_the_end
    assert len(Cache.open(cache.path).rows) == 79
    assert places_of_moved(cache) == FIXED_PLACES


def test_a_fix_finds_images_by_their_bytes_after_an_extraction_moved_them(leaky, tmp_path):
    cache = extracted(leaky, tmp_path)
    result = leaks(cache)
    (leaky / "train/iris/a.jpg").rename(leaky / "train/iris/new.jpg")
    (leaky / "train/iris/015.png").rename(leaky / "train/iris/a.jpg")
    extracted(leaky, tmp_path)
    fix(result)
    assert places_of_moved(cache) == FIXED_PLACES
    groups = {row.path: row.group for row in Cache.open(cache.path).rows}
    assert groups["train/iris/new.jpg"] == groups["test/iris/030.png"] != ""
    assert groups["train/iris/a.jpg"] == ""


def in_patients(root):
    """Write train and test folders whose images are of four patients; three of them are in both."""
    for split, patients in (("train", "abc"), ("test", "abcd")):
        for patient in patients:
            write_pictures(root / "x", 3, first=ord(patient) * 9 + 4 * (split == "test"))
            for path in sorted((root / "x").glob("*/*.png")):
                to = root / "photos" / split / path.parent.name / f"{patient}_{path.name}"
                to.parent.mkdir(parents=True, exist_ok=True)
                path.rename(to)
    shutil.rmtree(root / "x")
    return root / "photos"


def test_groups_that_folders_cut_contaminate_test_until_they_are_put_together(tmp_path):
    photos = in_patients(tmp_path)
    cache = extracted(photos, tmp_path, group_from=r"regex:/(\w)_")
    assert cache.report.groups.crossing == 3
    result = leaks(cache)
    assert (result.contaminated, result.contaminating, result.contaminating_groups) == (True, (), ("a", "b", "c"))
    assert result.crossing_groups["a"]["test"] == 9
    fixed = fix(result)
    assert {move.before for move in fixed.moved} == {"test"}
    again = leaks(cache.path)
    assert (again.contaminated, again.crossing_groups) == (False, {})
    assert fix(again).moved == ()
    after = extracted(photos, tmp_path, group_from=r"regex:/(\w)_")
    assert (after.rows, after.report.groups.crossing) == (Cache.open(cache.path).rows, 0)


def test_a_copy_that_links_two_stored_groups_moves_nobody_and_a_fix_mends_it(tmp_path):
    photos = tmp_path / "photos"
    for patient in range(12):
        write_pictures(tmp_path / "x", 2, first=2 * patient)
        for label in ("iris", "rose"):
            shutil.copytree(tmp_path / "x" / label, photos / label / f"p{patient}")
        shutil.rmtree(tmp_path / "x")
    cache = extracted(photos, tmp_path, group_from="parent")
    before = split_of(cache)
    assert cache.report.remarks == ()
    of = {row.group: row.split for row in cache.rows}
    train = next(group for group, split in sorted(of.items()) if split == "train")
    test = next(group for group, split in sorted(of.items()) if split == "test")
    source = next(row.path for row in cache.rows if row.group == test)
    shutil.copy(photos / source, photos / train / "copy.png")
    linked = extracted(photos, tmp_path, group_from="parent")
    splits = split_of(linked)
    assert {path: splits[path] for path in before} == before
    assert splits[f"{train}/copy.png"] == "test"  # with its copy
    [remark] = linked.report.remarks
    assert f"1 of 24 groups stand in several splits, such as '{train}' in train and test" in remark
    assert "stored splits never move" in remark
    assert leaks(linked).contaminated
    fix(leaks(linked))
    assert not leaks(linked.path).contaminated
    after = extracted(photos, tmp_path, group_from="parent")
    assert {split_of(after)[path] for path in (source, f"{train}/copy.png")} == {"train"}
    assert after.report.remarks == ()


def test_classes_left_without_images_are_named(tmp_path):
    photos = tmp_path / "photos"
    write_pictures(photos / "train", 8)
    write_pictures(photos / "test", 2, first=50)
    for number in (50, 51):
        copy(photos / f"test/iris/0{number}.png", photos / f"train/iris/0{number}.jpg")
    fixed = fix(leaks(extracted(photos, tmp_path)))
    assert fixed.emptied == ("iris has no test image",)
    assert fixed.splits["test"] == 4


def test_the_table_is_a_manifest_without_leaks(leaky, tmp_path):
    cache = extracted(leaky, tmp_path)
    before = cache.path.read_bytes()
    write_table(leaks(cache), leaky / "fixed.csv")
    assert cache.path.read_bytes() == before
    with (leaky / "fixed.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["path", "label", "split", "group"]
    images = scan(leaky / "fixed.csv")
    other = extract(images, PIXELS, out=tmp_path / "o.h5")
    assert not leaks(other).contaminated
    assert {row.path for row in other.rows} == {row.path for row in cache.rows}
    assert sum(unit_of(row).startswith("group:") for row in other.rows) == 8
    with pytest.raises(UsageError, match=r"ends in \.csv; got fixed\.txt"):
        write_table(leaks(cache), leaky / "fixed.txt")
