import hashlib
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tiny import write_images

from featcache.errors import ImagesChanged, NoImages, TooFewClasses, UsageError
from featcache.images import manifest
from featcache.images.groups import Groups
from featcache.images.manifest import read_image, scan
from featcache.spec import SplitSpec


def splits_of(images):
    return {row.digest: row.split for row in images.rows}


def write_split_folders(root, *names):
    for seed, name in enumerate(names):
        write_images(root / name, 12, seed=seed)
    return root


def test_a_row_says_path_label_group_split_and_digest(photos):
    images = scan(photos)
    row = images.rows[0]
    assert (row.path, row.label, row.group) == ("blue/000.png", "blue", "")
    assert row.digest == hashlib.sha256((photos / row.path).read_bytes()).hexdigest()
    assert row.split in ("train", "val", "test")
    assert images.classes == {"blue": 12, "green": 12, "red": 12}
    assert sum(images.splits.values()) == 36


def test_adding_images_moves_nobody(photos):
    before = splits_of(scan(photos))
    write_images(photos, 30, first=12)
    after = splits_of(scan(photos))
    assert {digest: after[digest] for digest in before} == before


def test_renaming_and_moving_the_folder_moves_nobody(photos):
    before = splits_of(scan(photos))
    (photos / "red" / "003.png").rename(photos / "red" / "zzz.png")
    photos.rename(photos.with_name("elsewhere"))
    assert splits_of(scan(photos.with_name("elsewhere"))) == before


def test_the_seed_decides_the_split(photos):
    assert splits_of(scan(photos, seed=1)) != splits_of(scan(photos, seed=0))
    assert scan(photos, seed=1) == scan(photos, split=SplitSpec(seed=1))


def test_folders_called_train_val_and_test_decide(tmp_path):
    images = scan(write_split_folders(tmp_path, "train", "val", "test"), split="10/10/80")
    assert all(row.split == row.path.split("/")[0] for row in images.rows)


def test_without_a_val_folder_val_is_carved_out_of_train(tmp_path):
    images = scan(write_split_folders(tmp_path, "train", "test"))
    assert {row.split for row in images.rows if row.path.startswith("train/")} == {"train", "val"}
    assert {row.split for row in images.rows if row.path.startswith("test/")} == {"test"}
    assert {row.label for row in images.rows if row.split == "train"} == {"blue", "green", "red"}


def test_a_copy_of_a_test_image_is_never_trained_on(tmp_path):
    root = write_split_folders(tmp_path, "train", "test")
    shutil.copy(root / "test/red/001.png", root / "train/red/copy.png")
    row = next(row for row in scan(root).rows if row.path == "train/red/copy.png")
    assert row.split == "test"


def test_a_flat_folder_has_no_splits(photos):
    images = scan(photos / "red")
    assert (images.layout, images.splits, images.classes) == ("flat", {}, {})


def test_groups_are_the_folders_inside_a_class(tmp_path):
    for plant in range(6):
        write_images(tmp_path / "of", 3, seed=plant)
        for label in ("blue", "green", "red"):
            (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
            (tmp_path / "of" / label).rename(tmp_path / "photos" / label / f"plant_{plant}")
    images = scan(tmp_path / "photos", split="34/33/33", group_from="parent")
    splits = {}
    for row in images.rows:
        assert row.group == row.path.rpartition("/")[0]
        splits.setdefault(row.group, set()).add(row.split)
    assert all(len(found) == 1 for found in splits.values())
    assert len(set.union(*splits.values())) == 3


@pytest.mark.parametrize(
    ("pattern", "group"), [(r"/(\d)\d+\.png$", "0"), (r"\d\d\.png$", "00.png"), (r"x|(\d)1\.png$", "")]
)
def test_a_pattern_gives_groups(photos, pattern, group):
    assert scan(photos, group_from=f"regex:{pattern}").rows[0].group == group


@pytest.mark.parametrize("rule", ["folder", "regex:", "csv:", ""])
def test_an_unknown_group_rule_is_refused(photos, rule):
    with pytest.raises(UsageError, match=rf"`group_from` takes parent, regex:PATTERN or csv:COLUMN; got '{rule}'"):
        scan(photos, group_from=rule)


def test_a_column_for_groups_goes_with_a_manifest(photos):
    with pytest.raises(
        UsageError, match=r"csv:COLUMN` goes with a manifest \(.csv, .tsv, .parquet\), not with .*photos"
    ):
        scan(photos, group_from="csv:patient")
    with pytest.raises(UsageError, match=r"give an array its `groups`"):
        scan(np.zeros((2, 4, 4), np.uint8), group_from="csv:patient")


def test_a_broken_pattern_is_refused(photos):
    with pytest.raises(UsageError, match=r"'\(' is no regular expression"):
        scan(photos, group_from="regex:(")


def test_a_pattern_of_which_it_is_not_clear_what_the_group_is_is_refused(photos):
    with pytest.raises(UsageError, match=r"'\(\.\)\(\.\)' has 2 groups in parentheses.* as \(\?:\.\.\.\)"):
        scan(photos, group_from="regex:(.)(.)")
    assert scan(photos, group_from="regex:(?:.)(/)").groups.count == 1


@pytest.mark.parametrize("rule", ["regex:nowhere", r"regex:\d*", "parent"])
def test_a_rule_that_gives_no_image_a_group_is_refused(photos, rule):
    with pytest.raises(UsageError) as refused:
        scan(photos, group_from=rule)
    assert str(refused.value).startswith(f"'{rule}' gives none of 36 images a group, such as blue/000.png. ")


def test_an_empty_column_is_refused(photos):
    (photos / "m.csv").write_text("path,label,patient\nred/000.png,a,\nblue/000.png,b,\n")
    with pytest.raises(UsageError, match=r"'csv:patient' gives none of 2 images a group, such as blue/000\.png"):
        scan(photos / "m.csv", group_from="csv:patient")


def test_parents_that_are_the_folders_of_classes_are_refused(photos):
    rows = [f"{label}/00{at}.png,{label.title()}" for label in ("blue", "red") for at in (0, 1)]
    (photos / "m.csv").write_text("\n".join(["path,label", *rows]))
    with pytest.raises(UsageError, match=r"'parent' makes each class one group.*such as blue\. The group is"):
        scan(photos / "m.csv", group_from="parent")


@pytest.mark.parametrize(
    ("rule", "remark"),
    [
        (r"regex:blue/(\d\d)", r"gives 24 of 36 images no group, such as green/000\.png, so that nothing keeps"),
        (r"regex:[a-z]+/\d+", r"gives every image another group, such as 'blue/000': it keeps nothing together"),
        (r"regex:png", r"puts 36 images into one group, 'png', so into one split"),
        (r"regex:^[a-z]+", r"makes each class one group, so that each class is in one split only"),
    ],
)
def test_what_a_rule_does_not_do_is_told(photos, rule, remark):
    [told] = scan(photos, group_from=rule).remarks
    assert re.search(remark, told)
    assert told.startswith(f"'{rule}' ")


def in_patients(root, *splits):
    """Write folders of splits with images of eight patients, six of whom are in all of them."""
    for at, split in enumerate(splits):
        for patient in range(8):
            if patient < 6 or at == 0:
                write_images(root / "x", 2, seed=patient, first=2 * at)
                for path in sorted((root / "x").glob("*/*.png")):
                    to = root / "photos" / split / path.parent.name / f"p{patient}" / path.name
                    to.parent.mkdir(parents=True, exist_ok=True)
                    path.rename(to)
    return root / "photos"


@pytest.mark.parametrize("rule", ["parent", r"regex:/(p\d)/"])
def test_groups_that_folders_of_splits_cut_are_counted(tmp_path, rule):
    images = scan(in_patients(tmp_path, "train", "val", "test"), group_from=rule)
    times = 3 if rule == "parent" else 1  # a folder inside each class
    crossing = (images.groups.count, images.groups.crossing, images.groups.ungrouped)
    assert crossing == (8 * times, 6 * times, 0)
    assert all(row.split == row.path.split("/")[0] for row in images.rows)


def test_groups_of_test_images_do_not_empty_the_folder_of_train(tmp_path):
    images = scan(in_patients(tmp_path, "train", "test"), group_from=r"regex:/(p\d)/", split="40/50/10")
    assert {row.split for row in images.rows if row.path.startswith("train/")} == {"train", "val"}
    assert {row.split for row in images.rows if row.path.startswith("test/")} == {"test"}
    of_train = {(row.group, row.split) for row in images.rows if row.path.startswith("train/")}
    assert len(of_train) == images.groups.count == 8  # val takes whole groups
    assert images.groups.crossing == 6


def test_copies_never_part_whatever_groups_they_are_in(tmp_path):
    photos = tmp_path / "photos"
    for patient in range(20):
        write_images(photos / "x", 2, first=2 * patient)
        for label in ("blue", "green", "red"):
            (photos / label).mkdir(exist_ok=True)
            (photos / "x" / label).rename(photos / label / f"p{patient:02d}")
            if patient % 3:
                copied = photos / label / f"p{patient:02d}" / f"{2 * patient:03d}.png"
                shutil.copy(copied, photos / label / f"p{patient - 1:02d}" / f"copy{patient}.png")
    (photos / "x").rmdir()
    images = scan(photos, group_from="parent")
    assert len(images.duplicates) == 39
    assert images.crossing == []
    assert images.groups == Groups(count=60, least=2, most=3, ungrouped=0, crossing=0)
    assert len(images.splits) == 3


@pytest.mark.parametrize("split", ["70", "70/15/15/0", "a/b/c", "70/15/16", "0/50/50", "-1/51/50", ""])
def test_shares_that_cannot_be_meant_are_refused(split):
    with pytest.raises(UsageError, match=rf"`split` .*'{split}'"):
        SplitSpec.parse(split)


def test_files_with_the_same_bytes_are_named(photos):
    shutil.copy(photos / "red/000.png", photos / "blue/copy.png")
    images = scan(photos)
    assert images.duplicates == [["blue/copy.png", "red/000.png"]]
    assert len({row.split for row in images.rows if row.path in images.duplicates[0]}) == 1


def test_checking_names_what_cannot_be_decoded(photos):
    (photos / "red/bad.jpg").write_text("<html>404</html>")
    (photos / "red/none.jpg").write_bytes(b"")
    images = scan(photos, check=True)
    assert {failure.path: failure.status for failure in images.unreadable} == {
        "red/bad.jpg": "unknown_format",
        "red/none.jpg": "empty",
    }
    assert images.sizes == {(20, 16): 36}
    assert len(images.rows) == 38


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_there(photos):
    (photos / "red/dead.png").symlink_to("000.png")
    rows = scan(photos).rows
    os.unlink(photos / "red/dead.png")
    os.symlink("/proc/self/mem", photos / "red/dead.png")  # opens, but reading it fails
    images = scan(photos)
    assert [(one.path, one.status) for one in images.unreadable] == [("red/dead.png", "unreadable")]
    assert [row.path for row in images.rows] == [row.path for row in rows if row.path != "red/dead.png"]


def test_progress_counts_every_file(photos):
    ticks = []
    scan(photos, progress=ticks.append)
    done = [tick.done for tick in ticks]
    assert (done, done[-1]) == (sorted(done), 36)
    assert {(tick.step, tick.total) for tick in ticks} == {("scan", 36)}


def test_progress_is_told_no_more_often_than_anyone_can_see(photos, monkeypatch):
    ticks = []
    monkeypatch.setattr(manifest, "TICK_S", 0)
    scan(photos, progress=ticks.append)
    assert [tick.done for tick in ticks] == [*range(1, 37), 36]
    monkeypatch.setattr(manifest, "TICK_S", 1e9)
    scan(photos, progress=ticks.append)
    assert len(ticks) == 38


def test_the_manifest_needs_no_keras_and_no_hdf5(photos):
    code = f"import sys, featcache as fc; fc.scan({str(photos)!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"keras", "tensorflow", "h5py", "sklearn"} & set(done.stdout.split())


def test_one_class_is_not_enough(photos):
    shutil.rmtree(photos / "red")
    shutil.rmtree(photos / "blue")
    with pytest.raises(TooFewClasses, match=r"one class only, 'green'"):
        scan(photos).require_classes()


def test_classes_of_one_image_are_named_and_bar_no_others(photos):
    for path in sorted((photos / "red").iterdir())[1:]:
        path.unlink()
    images = scan(photos).require_classes()
    assert images.singles == ["red"]
    assert [row.split for row in images.rows if row.label == "red"] == ["train"]


def test_images_without_labels_cannot_be_trained_on(photos):
    with pytest.raises(TooFewClasses, match=r"No image in .*red has a label\. Put each class into its own folder"):
        scan(photos / "red").require_classes()


def test_classes_with_two_images_each_are_enough(photos):
    images = scan(photos)
    assert images.require_classes() is images


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(NoImages, match=r"No images in"):
        scan(tmp_path)


def test_an_image_is_read_only_if_it_is_the_one_of_the_manifest(photos):
    images = scan(photos)
    row = images.rows[0]
    assert read_image(images.source, row) == (photos / row.path).read_bytes()
    Image.new("RGB", (4, 4)).save(photos / row.path)
    with pytest.raises(ImagesChanged, match=r"000.png is not the image that was cached"):
        read_image(images.source, row)
    (photos / row.path).unlink()
    with pytest.raises(ImagesChanged, match=r"000.png cannot be read \(No such file"):
        read_image(images.source, row)


def test_copies_in_several_split_folders_are_named(photos, tmp_path):
    root = tmp_path / "split"
    for split in ("train", "val"):
        shutil.copytree(photos, root / split)
    found = scan(root)
    assert len(found.crossing) == 36
    assert found.crossing[0] == ["train/blue/000.png", "val/blue/000.png"]
    assert scan(photos).crossing == []


def test_a_class_that_is_missing_in_a_split_is_named(tmp_path):
    photos = write_images(tmp_path / "p", per_class=2)
    found = scan(photos, split="50/50")
    present = {(row.label, row.split) for row in found.rows}
    wanted = [f"{name} has no {split} image" for name in found.classes for split in found.splits]
    missing = [f"{name} has no {split} image" for name, split in present]
    assert found.gaps == [text for text in wanted if text not in missing]
