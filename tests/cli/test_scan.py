import json
import shutil

import numpy as np
from PIL import Image

from featcache.cache.reader import Cache


def document(cli, *arguments):
    found = cli("scan", *arguments, "--json")
    assert found.code == 0, found.err
    return json.loads(found.out)


def test_a_scan_takes_archives_as_it_takes_folders(cli, photos, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", photos)
    assert document(cli, archive) == document(cli, photos)


def test_a_manifest_says_which_files_and_groups(cli, photos):
    manifest = photos / "m.csv"
    manifest.write_text("path,label,plant\nred/000.png,a,p1\nred/001.png,a,p1\nblue/000.png,b,p2\nblue/001.png,b,p2\n")
    found = document(cli, manifest, "--group-from", "csv:plant")
    assert (found["images"], found["classes"]) == (4, {"a": 2, "b": 2})


def test_a_manifest_reaches_outside_only_if_it_is_allowed(cli, photos, tmp_path):
    (tmp_path / "m").mkdir()
    manifest = tmp_path / "m" / "m.csv"
    lines = [f"{photos}/{label}/00{at}.png,{label}" for label in ("red", "blue") for at in (0, 1)]
    manifest.write_text("\n".join(["path,label", *lines]))
    refused = cli("scan", manifest)
    assert (refused.code, refused.err.count("\n")) == (4, 1)
    assert "m.csv, line 2: " in refused.err
    assert "--allow-outside" in refused.err
    assert document(cli, manifest, "--allow-outside")["images"] == 4


def test_class_folders_that_differ_in_case_exit_with_4(cli, photos):
    shutil.copytree(photos / "red", photos / "Red")
    refused = cli("scan", photos)
    assert (refused.code, refused.err.count("\n")) == (4, 1)
    assert "'Red' and 'red'" in refused.err


def patients(photos, rename="{split}/{label}/p{patient}_{at}.png"):
    """Arrange the images by splits, of four patients each of whom is in two of them; return the new folder."""
    new = photos.with_name("patients")
    for at, path in enumerate(sorted(photos.glob("*/*.png"))):
        split = ("train", "train", "val", "test")[at % 4]
        to = new / rename.format(split=split, label=path.parent.name, patient=at // 2 % 4, at=at)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    return new


RULE = "regex:/(p[0-9])_"


def test_scan_counts_groups_and_those_that_folders_cut(cli, photos):
    folder = patients(photos)
    (folder / "val/red/p0_extra.png").write_bytes((folder / "train/red/p0_24.png").read_bytes() + b"x")
    (folder / "val/red/none.png").write_bytes((folder / "train/red/p0_24.png").read_bytes() + b"y")
    found = document(cli, folder, "--group-from", RULE)
    assert found["groups"] == {"count": 4, "least": 8, "most": 11, "ungrouped": 1, "crossing": 3}
    [remark] = found["remarks"]
    assert remark.startswith(f"'{RULE}' gives 1 of 38 images no group, such as val/red/none.png, ")
    text = cli("scan", folder, "--group-from", RULE).out
    assert "4 groups, 8 to 11 images each; 1 images without a group." in text
    assert remark in text
    assert "3 of 4 groups stand in several splits, such as 'p0' in train and val, since folders or a table give" in text


def test_a_scan_without_groups_says_nothing_of_them(cli, photos):
    assert " groups" not in cli("scan", photos).out
    assert document(cli, photos)["groups"] == {"count": 0, "least": 0, "most": 0, "ungrouped": 36, "crossing": 0}


def test_a_rule_of_groups_that_does_nothing_exits_with_2(cli, photos, tmp_path):
    for command in (["scan", photos], ["extract", photos, "-b", "pixels:size=8", "-o", tmp_path / "c.h5"]):
        refused = cli(*command, "--group-from", "regex:patient_([0-9]+)")
        assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
        assert "'regex:patient_([0-9]+)' gives none of 36 images a group, such as blue/000.png" in refused.err
    assert not (tmp_path / "c.h5").exists()


def test_extract_tells_of_groups_that_folders_cut_even_when_quiet(cli, photos, tmp_path):
    folder = patients(photos)
    command = ["extract", folder, "-b", "pixels:size=8", "-o", tmp_path / "c.h5", "--group-from", RULE, "--quiet"]
    done = cli(*command, "--json")
    facts = json.loads(done.out)
    assert (done.code, facts["groups"]["crossing"]) == (0, 2)
    [remark] = facts["remarks"]
    assert done.err == f"{remark}\n"
    assert remark.startswith("2 of 4 groups stand in several splits")
    leaking = cli("leaks", tmp_path / "c.h5", "--json")
    assert (leaking.code, json.loads(leaking.out)["crossing_groups"]["p1"]) == (3, {"val": 5, "test": 5})
    assert (
        "test is contaminated: 2 of its groups, such as 'p1', have images in other splits"
        in cli("leaks", tmp_path / "c.h5").out
    )
    assert cli("leaks", tmp_path / "c.h5", "--fix").code == 0
    assert cli("leaks", tmp_path / "c.h5").code == 0
    after = cli(*command)
    assert (after.code, after.err) == (0, "")


def test_scan_and_extract_tell_of_twelve_bits_in_sixteen_and_bits_mends_it(cli, photos, tmp_path):
    for path in photos.glob("*/*.png"):
        grey = np.asarray(Image.open(path).convert("L"))
        Image.fromarray(grey.astype(np.uint16) * 16).save(path)
    count = len(list(photos.glob("*/*.png")))
    told = f"{count} of {count} images have 16 bits a channel but use only the lowest 12"
    found = cli("scan", photos)
    assert told in found.out
    assert "Extract with --bits 12." in found.out
    assert document(cli, photos)["notes"][0].startswith(told)

    extract = ("extract", photos, "-b", "pixels:size=8", "-o", tmp_path / "c.h5")
    assert told in cli(*extract, "--dry-run").out
    assert told in cli(*extract).err
    mended = cli(*extract, "--bits", "12", "--json")
    assert (mended.code, json.loads(mended.out)["notes"]) == (0, [])
    cache = Cache.open(tmp_path / "c.h5")
    dark, light = (cache.features(cache.usable(), f"pixels:size=8/top{bits}") for bits in ("", ":bits=12"))
    assert dark.max() * 8 < light.max()
    again = cli(*extract, "--bits", "16")
    assert "0 computed" in again.out


def test_bits_out_of_range_are_refused(cli, photos, tmp_path):
    refused = cli("extract", photos, "-b", "pixels:size=8", "-o", tmp_path / "c.h5", "--bits", "3")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--bits takes a whole number from 8 to 16; got 3" in refused.err


def test_scan_says_nothing_of_ordinary_images(cli, photos):
    assert document(cli, photos)["notes"] == []
