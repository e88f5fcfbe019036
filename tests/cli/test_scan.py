import json
import shlex
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


def test_a_scan_names_the_extraction_of_the_same_images_in_the_same_splits(cli, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = photos.rename(tmp_path / "my photos")
    options = ["--split", "60/20/20", "--seed", "3"]
    done = cli("scan", folder, *options)
    assert "0 images found more than once, byte for byte." in done.out
    assert "featcache leaks also finds resized and re-encoded copies." in done.out
    command = done.out.splitlines()[-1].removeprefix("Next: featcache ")
    assert shlex.split(command) == ["extract", str(folder), "-o", "my photos.h5", *options]
    assert cli(*done.commands[-1], "-b", "pixels:size=8").code == 0
    assert dict(Cache.open("my photos.h5").splits) == document(cli, folder, *options)["splits"]


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
    assert cli("scan", manifest, "--allow-outside").out.startswith(f"4 images in {manifest} (")


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
    assert "4 groups, 8 to 11 images each; 1 image without a group." in text
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
    assert remark.endswith(f"Put each group into one split: featcache leaks {tmp_path / 'c.h5'} --fix")
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


def test_a_long_tail_is_shown_whole_and_its_classes_of_one_image_are_named(cli, photos):
    for number in range(20):
        (photos / f"rare{number:02d}").mkdir()
        data = (photos / "red/000.png").read_bytes() + bytes([number])
        (photos / f"rare{number:02d}" / "1.png").write_bytes(data)
    found = document(cli, photos)
    assert (len(found["classes"]), found["one_image"]) == (23, [f"rare{number:02d}" for number in range(20)])
    text = cli("scan", photos).out
    assert "20 of 23 classes have one image only, which trains and cannot judge: rare00, rare01" in text
    assert "rare11 and 8 more." in text


def test_extract_without_labels_names_what_can_be_done_instead_of_a_sweep(cli, photos, tmp_path):
    cache = tmp_path / "c.h5"
    done = cli("extract", photos / "red", "-b", "pixels:size=8", "-o", cache)
    assert "There is nothing to sweep, since no image has a label." in done.out
    assert "featcache sweep" not in done.out
    export, leaks = done.commands
    assert leaks == ["leaks", str(cache)]
    assert cli(*leaks).code == 0
    assert cli(*export).code == 0
    assert (tmp_path / "c.npz").exists()
    text = cli("extract", photos, "-b", "pixels:size=8", "-o", tmp_path / "d.h5").out
    assert text.endswith(f"featcache leaks {tmp_path / 'd.h5'}\nNext: featcache sweep {tmp_path / 'd.h5'}\n")


def test_labels_of_a_named_column_reach_scan_and_extract(cli, photos, tmp_path):
    manifest = photos / "m.csv"
    manifest.write_text("Image,Id\nred/000.png,a\nred/001.png,a\nblue/000.png,b\nblue/001.png,b\n")
    assert "as in --label-column Id" in cli("scan", manifest).out
    assert "as in --label-column Id" in document(cli, manifest)["remarks"][0]
    assert document(cli, manifest, "--label-column", "Id")["classes"] == {"a": 2, "b": 2}
    options = ["--path-column", "Image", "--label-column", "Id", "-b", "pixels:size=8", "-o", tmp_path / "c.h5"]
    assert "Next: featcache sweep" in cli("extract", manifest, *options).out


def test_sweeps_and_reports_name_the_classes_that_are_not_judged(cli, photos, tmp_path):
    (photos / "rare").mkdir()
    (photos / "rare" / "1.png").write_bytes((photos / "red/000.png").read_bytes() + b"x")
    cache, run = tmp_path / "c.h5", tmp_path / "run"
    assert cli("extract", photos, "-b", "pixels:size=8", "-o", cache, "-q").code == 0
    for options in (["--cv", "3"], []):
        swept = cli("sweep", cache, "--heads", "ridge", *options, "-o", run, "--force", "--json", "-q")
        assert json.loads(swept.out)["unjudged"] == ["rare"], swept.err
    for command in (["show", run], ["report", run]):
        assert json.loads(cli(*command, "--json").out)["unjudged"] == ["rare"]
        assert "1 of 4 classes have no validation image and are not judged: rare." in " ".join(
            cli(*command).out.split()
        )


def test_scan_and_extract_tell_of_twelve_bits_in_sixteen_and_bits_mends_it(cli, photos, tmp_path):
    for path in photos.glob("*/*.png"):
        grey = np.asarray(Image.open(path).convert("L"))
        Image.fromarray(grey.astype(np.uint16) * 16).save(path)
    count = len(list(photos.glob("*/*.png")))
    told = f"{count} of {count} images have 16 bits a channel but use only the lowest 12"
    found = cli("scan", photos)
    assert told in found.out
    assert "Extract with --bits 12." in found.out
    [note] = document(cli, photos)["notes"]
    assert note.startswith(told)
    assert note.endswith("Extract with --bits 12")

    extract = ("extract", photos, "-b", "pixels:size=8", "-o", tmp_path / "c.h5")
    assert json.loads(cli(*extract, "--dry-run", "--json").out)["notes"] == [note]
    assert told in cli(*extract, "--dry-run").out
    assert note in cli(*extract).err
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


def test_a_page_of_images_is_written(cli, photos, tmp_path):
    done = cli("scan", str(photos), "--html", str(tmp_path / "look.html"), "--json")
    assert json.loads(done.out)["html"] == str(tmp_path / "look.html")
    assert (tmp_path / "look.html").stat().st_size < 300_000
    assert "To look at: " in cli("scan", str(photos), "--html", str(tmp_path / "look.html")).out


def test_names_that_look_like_arguments_are_printed_as_they_are(cli, photos, tmp_path):
    (photos / "red").rename(photos / "`views`")
    (photos / "blue").rename(photos / "x`views`")
    (photos / "`views`" / "a `cv` b.png").write_text("no image")
    scanned = cli("scan", photos).out
    assert [line.split()[0] for line in scanned.splitlines() if "views" in line and "unknown" not in line] == [
        "`views`",
        "x`views`",
    ]
    assert "`views`/a `cv` b.png: unknown_format" in scanned
    extracted = cli("extract", photos, "-o", tmp_path / "c.h5", "-b", "pixels:size=8", "--quiet")
    assert "skipped `views`/a `cv` b.png: unknown_format" in extracted.err


def test_arguments_in_notes_are_printed_as_flags(cli, tmp_path):
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 16
    for label in "ab":
        (tmp_path / label).mkdir()
        Image.fromarray(pixels).save(tmp_path / label / "dark.png")
    assert "Extract with --bits 10." in cli("scan", tmp_path).out
    assert "Extract with --bits 10" in document(cli, tmp_path)["notes"][0]


def test_arguments_in_reasons_are_printed_as_flags(cli, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    for label in "ab":
        (photos / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(photos / label / f"black{label}.bmp")
    Image.new("RGB", (8, 8), "white").save(photos / "a" / "white.png")
    monkeypatch.setattr("featcache.extraction.compute.MAX_FLOAT16", 0.5)
    cache = tmp_path / "c.h5"
    extracted = cli("extract", photos, "-o", cache, "-b", "pixels:size=8", "--dtype", "float16")
    why = cli("cache", "why", cache, photos / "a" / "white.png")
    as_json = cli("cache", "why", cache, photos / "a" / "white.png", "--json")
    assert "too large for float16; use --dtype float32" in extracted.err
    assert "too large for float16; use --dtype float32" in why.out
    assert json.loads(as_json.out)["taps"][0]["reason"].endswith("use --dtype float32")
