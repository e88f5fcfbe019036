import json
import shutil

import pytest
from PIL import Image
from tiny import write_images

from featcache.extraction import extract
from featcache_cli.leaks import LISTED


@pytest.fixture
def cache(tmp_path):
    """Return a cache of train, val and test folders, with copies of test images in train."""
    photos = tmp_path / "photos"
    write_images(photos / "train", 12)
    write_images(photos / "val", 2, first=40)
    write_images(photos / "test", 4, first=50)
    shutil.copy(photos / "test/red/050.png", photos / "train/red/copy.png")
    Image.open(photos / "test/blue/050.png").save(photos / "train/blue/50\n<b>'.jpg", quality=95)
    return extract(photos, "pixels:size=8", out=tmp_path / "c.h5").path


def test_json_of_leaks(cli, cache):
    done = cli("leaks", cache, "--json")
    facts = json.loads(done.out, parse_constant=pytest.fail)
    assert (done.code, facts["contaminated"], facts["guarded"], facts["images"]) == (3, True, "test", 56)
    assert [(one["a"], one["b"], one["kind"], one["splits"]) for one in facts["pairs"]] == [
        ("test/red/050.png", "train/red/copy.png", "exact", ["test", "train"]),
        ("test/blue/050.png", "train/blue/50\n<b>'.jpg", "re-encoded", ["test", "train"]),
    ]
    assert all(0.9 < one["similarity"] <= 1 for one in facts["pairs"])
    assert facts["counts"] == [{"splits": ["train", "test"], "exact": 1, "re-encoded": 1}]
    assert {"features", "alone", "hashes", "agreement", "why"} == facts["thresholds"].keys()
    assert "labels" not in facts
    assert "fixed" not in facts


def test_the_text_says_what_threshold_and_what_to_do(cli, cache, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # tables fold to the width of the terminal
    done = cli("leaks", cache)
    assert done.code == 3
    assert "Looked at: similarity from " in done.out
    assert "set from the data: of 1485 pairs of different images about 6 are expected beyond it;" in done.out
    assert "train/blue/50\\n<b>'.jpg" in done.out  # on one line
    assert "test is contaminated: 2 of its images are in other splits as well" in done.out
    assert f"Next: featcache leaks {cache} --fix\n" in done.out


def test_fixing_ends_with_0_and_so_does_looking_again(cli, cache):
    done = cli("leaks", cache, "--fix")
    assert done.code == 0
    assert "4 images in 2 groups, each in one split. 2 images moved:" in done.out
    assert "Images now: 40 train, 6 val, 10 test.\nNow no image of test is in another split as well.\n" in done.out
    assert "Before the fix test was contaminated: 2 of its images were in other splits as well" in done.out
    assert "is contaminated" not in done.out
    again = cli("leaks", cache)
    assert (again.code, "No image of test is in another split as well." in again.out) == (0, True)
    assert "contaminated" not in again.out
    assert "Next:" not in again.out
    assert f"Runs from before are about other splits or groups. Sweep again: featcache sweep {cache}\n" in done.out
    assert "Runs from before" not in cli("leaks", cache, "--fix").out
    facts = json.loads(cli("leaks", cache, "--fix", "--json").out)
    assert (facts["contaminated"], facts["fixed"]["moved"], facts["fixed"]["groups"]) == (False, [], 2)


def test_a_table_of_the_fix_leaves_the_cache_and_the_exit_code(cli, cache):
    table = cache.parent / "photos" / "fixed.csv"
    assert cli("leaks", cache, "--fix-to", table, "--quiet").code == 3
    assert table.read_text().startswith("path,label,split,group\ntest/blue/050.png,blue,train,same:")


def test_labels_are_listed_on_request(cli, cache, tmp_path):
    shutil.move(tmp_path / "photos/train/red/003.png", tmp_path / "photos/train/blue/wrong.png")
    extract(tmp_path / "photos", "pixels:size=8", out=cache)
    facts = json.loads(cli("leaks", cache, "--labels", "--json").out)
    first = facts["labels"][0]
    assert (first["path"], first["label"], first["suggested"]) == ("train/blue/wrong.png", "blue", "red")
    assert first["probability"] < first["of_suggested"]
    text = cli("leaks", cache, "--labels").out
    assert "Labels that look wrong: " in text
    assert "train/blue/wrong.png" in text


def test_only_the_first_pairs_are_printed_and_the_others_counted(cli, tmp_path):
    photos = write_images(tmp_path / "p", 30)
    for path in sorted((photos / "red").iterdir())[: LISTED + 5]:
        shutil.copy(path, photos / "red" / f"copy{path.name}")
    cache = extract(photos, "pixels:size=8", out=tmp_path / "c.h5").path
    done = cli("leaks", cache)
    assert done.code == 0  # copies of bytes have one split
    assert "5 more pairs: --json lists all." in done.out


def test_a_clean_cache_says_so(cli, toy):
    done = cli("leaks", toy.path)
    assert done.code == 0
    assert "No two images show the same." in done.out


def test_a_run_is_no_cache(cli, toy_run):
    done = cli("leaks", toy_run.path)
    assert (done.code, done.err.count("\n")) == (4, 1)
    assert "is the folder of a run, not a cache" in done.err


@pytest.fixture
def doubtful(cache, tmp_path):
    """Return the cache with an image in a wrong folder."""
    shutil.move(tmp_path / "photos/train/red/003.png", tmp_path / "photos/train/blue/wrong.png")
    return extract(tmp_path / "photos", "pixels:size=8", out=cache).path


def test_labels_are_written_for_review_and_the_reviewed_table_is_taken(cli, doubtful, tmp_path):
    table, page = tmp_path / "labels.csv", tmp_path / "labels.html"
    done = cli("leaks", doubtful, "--labels", "--csv", table, "--html", page)
    assert (done.code, page.exists()) == (3, True)  # of the copies in test
    assert f"Labels to review: {table}. Fill its column decision: accept, keep, drop or change:CLASS" in done.out
    assert f"Next: featcache leaks {doubtful} --apply {table}" in done.out
    header, first, *_ = table.read_text().splitlines()
    assert (header, first[:27]) == ("path,label,suggestion,probability,decision", "train/blue/wrong.png,blue,r")
    table.write_text(f"{header}\n{first}accept\n")
    applied = json.loads(cli("leaks", doubtful, "--labels", "--apply", table, "--json").out)
    assert (applied["decisions"], applied["dropped"], applied["of_test"]) == (1, 0, 0)
    assert applied["relabelled"] == [
        {"path": "train/blue/wrong.png", "before": "blue", "after": "red", "split": "train"}
    ]
    done = cli("extract", tmp_path / "photos", "-o", doubtful, "-b", "pixels:size=8")
    assert "0 computed" in done.out
    assert "Labels are as reviewed: 1 changed, 0 dropped, 0 kept." in done.err
    assert "Labels reviewed: 1 changed" in cli("cache", "info", doubtful).out
    told = cli("cache", "why", doubtful, tmp_path / "photos/train/blue/wrong.png").out
    assert "Label 'blue' was changed to 'red' by a review on " in told
    done = cli("leaks", doubtful, "--unapply")
    assert (done.code, "1 taken back, 1 label changed." in done.out) == (0, True)


def test_a_bad_row_is_one_line_with_file_and_line(cli, cache, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("path,label,suggestion,probability,decision\ntrain/red/999.png,red,blue,,accept\n")
    for done in (
        cli("leaks", cache, "--apply", table),
        cli("extract", tmp_path / "photos", "-o", cache, "-b", "pixels:size=8", "--apply", table),
    ):
        assert (done.code, done.out, done.err.count("\n")) == (4, "", 1)
        assert f"featcache: {table}, line 2: no image is called 'train/red/999.png'" in done.err


def test_a_fix_is_taken_back(cli, cache):
    assert f"To take it back: featcache leaks {cache} --unfix" in cli("leaks", cache, "--fix").out
    done = cli("leaks", cache, "--unfix")
    assert f"Sweep again: featcache sweep {cache}\n" in done.out
    assert (done.code, "Images now: 38 train, 6 val, 12 test." in done.out) == (0, True)
    assert "Nothing in" in cli("leaks", cache, "--unfix").out
    assert cli("leaks", cache).code == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--csv", "l.csv"], "--csv takes the labels that look wrong. Add --labels"),
        (["--labels", "--csv", "l.txt"], "Labels to review are written to a file that ends in .csv; got l.txt"),
        (
            ["--apply", "l.csv", "--fix"],
            "--apply, --unapply and --unfix cannot be combined with --fix. Run one command after",
        ),
        (["--unapply", "--tap", "x"], "cannot be combined with --tap. Run one command after the other"),
        (["--unfix", "--force"], "cannot be combined with --force. Run one command after the other"),
        (["--unapply", "--unfix"], "--apply, --unapply and --unfix cannot be combined. Leave all but one out"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(cli, toy, options, message):
    done = cli("leaks", toy.path, *options)
    assert (done.code, done.out, message in done.err) == (2, "", True)
