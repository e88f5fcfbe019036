"""What somebody decided about labels holds in the cache, through later extractions, until it is taken back."""

import csv
import shutil
from dataclasses import replace

import pytest
from tiny import write_images

from featcache.cache import parts
from featcache.cache.changes import Changes, Review
from featcache.cache.check import verify, why
from featcache.cache.exchange import merge_caches
from featcache.cache.reader import Cache
from featcache.errors import DataError, NotARun, UsageError
from featcache.extraction import Options, extract
from featcache.extraction.workflow import open_extraction
from featcache.extras.leaks import apply_review, doubts, fix, labels, leaks, unapply, unfix, write_doubts
from featcache.extras.report.final import open_test
from featcache.extras.report.table import text_report
from featcache.spec import silent
from featcache.sweeps import Run, sweep

from .conftest import PIXELS, copy, write_pictures

SMALL = "pixels:size=4"  # features that a regression fits quickly
HEADER = "path,label,suggestion,probability,decision\n"
REVIEW = (
    "blue/000.png,blue,red,0.1,accept\n"
    "blue/001.png,blue,red,0.1,keep\n"
    "blue/002.png,blue,red,0.1,drop\n"
    "blue/003.png,blue,red,0.1,change:green\n"
    "blue/004.png,blue,red,0.1,new:violet\n"
    "blue/005.png,blue,red,0.1,\n"
)
NEW_LABELS = {
    "blue/000.png": "red",
    "blue/001.png": "blue",
    "blue/002.png": "",
    "blue/003.png": "green",
    "blue/004.png": "violet",
    "blue/005.png": "blue",
}


@pytest.fixture
def cache(photos, tmp_path):
    return extract(photos, PIXELS, out=tmp_path / "c.h5")


@pytest.fixture
def table(tmp_path):
    """Return a function that writes a reviewed table."""

    def write(text=REVIEW, name="labels.csv"):
        path = tmp_path / name
        path.write_bytes((HEADER + text).encode() if isinstance(text, str) else text)
        return path

    return write


def labels_of(cache):
    return {row.path: row.label for row in Cache.open(cache.path).rows}


def splits_of(cache):
    return {row.path: row.split for row in Cache.open(cache.path).rows}


@pytest.mark.parametrize("layout", ["file", "parts"])
def test_decisions_change_labels_and_nothing_else(layout, photos, tmp_path, table):
    cache = extract(photos, PIXELS, out=tmp_path / "c.h5", layout=layout)
    before, splits = cache.features(cache.rows), splits_of(cache)
    done = apply_review(cache.path, table())
    after = Cache.open(cache.path)
    assert (done.decisions, done.undecided, len(done.relabelled), len(done.dropped)) == (5, 1, 4, 1)
    assert {path: label for path, label in labels_of(cache).items() if path in NEW_LABELS} == NEW_LABELS
    assert splits_of(cache) == splits | {"blue/002.png": ""}
    assert (after.features(after.rows) == before).all()
    assert "violet" in after.classes
    assert verify(cache.path).problems == ()
    assert len(after.arrays()[1]) == 35
    assert apply_review(cache.path, table()).relabelled == ()
    assert Cache.open(cache.path).changes == after.changes  # not even the time of the review


def test_a_later_extraction_keeps_decisions_and_says_so_even_where_files_have_moved(cache, photos, table):
    apply_review(cache.path, table())
    (photos / "blue/002.png").rename(photos / "blue/moved.png")
    write_images(photos, 1, first=90)
    after = extract(photos, PIXELS, out=cache.path)
    assert after.report.computed == 3
    now = labels_of(cache)
    assert {path: label for path, label in now.items() if path in NEW_LABELS} == {
        path: label for path, label in NEW_LABELS.items() if path != "blue/002.png"
    }
    assert (now["blue/moved.png"], splits_of(cache)["blue/moved.png"]) == ("", "")
    [remark] = after.report.remarks
    assert remark.startswith("Labels are as reviewed: 3 changed, 1 dropped, 1 kept. To take that back: ")


def test_an_extraction_takes_the_table_of_another_cache(cache, photos, tmp_path, table):
    apply_review(cache.path, table())
    other = extract(photos, PIXELS, out=tmp_path / "other.h5", apply=table())
    assert other.rows == Cache.open(cache.path).rows
    again = extract(photos, PIXELS, out=cache.path, apply=table("blue/002.png,blue,,,keep\n"))
    assert again.report.computed == 0
    assert labels_of(cache)["blue/002.png"] == "blue"
    assert labels_of(cache)["blue/000.png"] == "red"  # what the table does not name stays decided


def test_folders_that_say_another_label_win_over_an_old_review_and_edited_images_are_named(cache, photos, table):
    apply_review(cache.path, table())
    (photos / "blue/002.png").rename(photos / "green/002b.png")
    shutil.copy(photos / "green/000.png", photos / "blue/000.png")
    after = extract(photos, PIXELS, out=cache.path)
    assert labels_of(cache)["green/002b.png"] == "green"
    assert labels_of(cache)["blue/000.png"] == "blue"
    assert after.report.remarks[-1].startswith(
        "Changed since the labels were reviewed, so labelled by folder or table again: 1 image"
    )


def test_a_decision_between_the_scan_of_an_extraction_and_its_work_stays(cache, photos, table):
    write_images(photos, 1, first=90)
    extraction = open_extraction(photos, cache.path, Options(PIXELS), None, silent)
    apply_review(cache.path, table())
    assert len(extraction.run().rows) == 39
    assert labels_of(cache)["blue/002.png"] == ""


def test_undoing_a_review_leaves_nothing_of_it(cache, photos, table):
    apply_review(cache.path, table())
    extract(photos, "pixels:size=4", out=cache.path)
    done = unapply(cache.path)
    after = Cache.open(cache.path)
    assert (after.rows, after.changes) == (cache.rows, cache.changes)
    assert (done.decisions, len(done.relabelled)) == (5, 4)
    assert extract(photos, PIXELS, out=cache.path).report.remarks == ()


REFUSED = {
    "a missing image": (
        "no.png,blue,red,,keep\n",
        r"no image is called 'no\.png'.* Remove the row, or write",
    ),
    "another label": ("blue/000.png,red,blue,,keep\n", r"blue/000\.png is labelled 'blue' in its folder.*, not 'red'"),
    "a typo": (
        "blue/000.png,blue,red,,change:gren\n",
        r"no image is labelled 'gren' \(did you mean green.*new:gren",
    ),
    "another suggestion": ("blue/000.png,blue,pink,,accept\n", r"no image is labelled 'pink'.* write new:pink"),
    "no suggestion": ("blue/000.png,blue,,,accept\n", r"there is no suggestion to accept\. Write accept, keep, drop"),
    "another word": ("blue/000.png,blue,red,,yes\n", r"decision 'yes'\. Write accept, keep, drop, change:CLASS"),
    "no class": ("blue/000.png,blue,red,,change:\n", r"decision 'change:'\. Write"),
    "a class too many": ("blue/000.png,blue,red,,keep:red\n", r"decision 'keep:red'\. Write"),
}


@pytest.mark.parametrize(("row", "message"), REFUSED.values(), ids=REFUSED)
def test_an_invalid_row_refuses_the_table_before_anything_is_done(row, message, cache, photos, tmp_path, table):
    path = table(f"blue/001.png,blue,red,0.1,drop\n{row}")
    place = r"labels\.csv, line 3: "
    before = cache.path.read_bytes()
    with pytest.raises(DataError, match=place + message):
        apply_review(cache.path, path)
    assert cache.path.read_bytes() == before
    with pytest.raises(DataError, match=place + message):
        extract(photos, PIXELS, out=tmp_path / "new.h5", apply=path)
    assert not (tmp_path / "new.h5").exists()


def test_a_table_that_contradicts_itself_or_is_no_table_is_refused(cache, photos, table, tmp_path):
    with pytest.raises(DataError, match=r"line 8: 'blue/005\.png' stands in line 7 already\. Keep one of the rows"):
        apply_review(cache.path, table(f"{REVIEW}blue/005.png,blue,red,,\n"))
    shutil.copy(photos / "red/000.png", photos / "red/copy.png")
    extract(photos, PIXELS, out=cache.path)
    with pytest.raises(DataError, match=r"line 3: red/copy.png has the same bytes and label as red/000.png of line 2"):
        apply_review(cache.path, table("red/000.png,red,,,keep\nred/copy.png,red,,,drop\n"))
    with pytest.raises(DataError, match=r"needs one column called 'decision', and has path, label"):
        apply_review(cache.path, table(b"path,label\na,b\n"))
    with pytest.raises(UsageError, match=r"`apply` takes the CSV of a review; got .*x\.xlsx\. Save it as CSV UTF-8"):
        apply_review(cache.path, tmp_path / "x.xlsx")
    with pytest.raises(DataError, match="The table is not UTF-8: save it as such"):
        apply_review(cache.path, table("blue/000.png,bläu,red,,keep\n".encode("cp1252").join([HEADER.encode(), b""])))


def test_a_table_that_excel_saved_is_read(cache, table):
    text = HEADER.replace(",", ";") + "blue\\000.png; blue ;red;0,1;ACCEPT\nblue/001.png;blue;red;0,1; Change : green\n"
    apply_review(cache.path, table(text.replace("\n", "\r\n").encode("utf-8-sig")))
    now = labels_of(cache)
    assert (now["blue/000.png"], now["blue/001.png"]) == ("red", "green")


@pytest.mark.slow
def test_names_that_spreadsheets_would_run_or_cannot_show_come_back(tmp_path):
    photos = write_images(tmp_path / "photos", 20)
    odd = [photos / name for name in ("=1+1", "a,'b\"")]
    for name, to in zip(("blue", "green"), odd, strict=True):
        (photos / name).rename(to)
    shutil.copy(odd[0] / "000.png", odd[1] / 'x\r\n",é\udcff.png')
    cache = extract(photos, SMALL, out=tmp_path / "c.h5")
    result = doubts(leaks(cache))
    path = tmp_path / "labels.csv"
    write_doubts(result, cache.path, path)
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [doubt.path for doubt in result.doubts]
    assert {row["suggestion"] for row in rows[:2]} == {"'=1+1"}
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"decision": "accept"} for row in rows)
    apply_review(cache.path, path)
    now = labels_of(cache)
    assert {doubt.path: now[doubt.path] for doubt in result.doubts} == {
        doubt.path: doubt.suggested for doubt in result.doubts
    }


def wrong_folders(tmp_path, count=6):
    photos = write_images(tmp_path / "wrong", 30)
    for number in range(count):
        shutil.move(photos / f"red/00{number}.png", photos / f"blue/wrong{number}.png")
    return extract(photos, SMALL, out=tmp_path / "w.h5")


def test_the_table_has_every_doubt_and_decided_images_are_not_listed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "STRENGTHS", (0.1,))  # one regression instead of three
    cache = wrong_folders(tmp_path)
    result, path = doubts(leaks(cache)), tmp_path / "labels.csv"
    write_doubts(result, cache.path, path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["label"], row["suggestion"], row["decision"]) for row in rows] == [
        (doubt.path, doubt.label, doubt.suggested, "") for doubt in result.doubts
    ]
    assert [float(row["probability"]) for row in rows] == pytest.approx(
        [doubt.probability for doubt in result.doubts], 1e-4
    )
    write_doubts(result, cache.path, path)  # nobody has decided anything in it
    text = path.read_text().splitlines()
    path.write_text("\n".join([text[0], f"{text[1]}keep", f"{text[2]}accept", *text[3:]]))
    with pytest.raises(UsageError, match="may hold your decisions, or be another table, so it is kept"):
        write_doubts(result, cache.path, path)
    apply_review(cache.path, path)
    again = doubts(leaks(cache.path))
    assert {rows[0]["path"], rows[1]["path"]}.isdisjoint(doubt.path for doubt in again.doubts)
    assert again.reviewed >= 1


def test_a_photo_under_two_labels_is_listed_first_and_accepting_leaves_one_label(tmp_path):
    photos = write_images(tmp_path / "photos", 20)
    shutil.copy(photos / "red/005.png", photos / "blue/twice.png")
    cache = extract(photos, SMALL, out=tmp_path / "c.h5")
    result = doubts(leaks(cache))
    assert result.photos_of_two_labels == ((("blue/twice.png", "blue"), ("red/005.png", "red")),)
    assert [(doubt.path, doubt.suggested, doubt.same_photo) for doubt in result.doubts[:2]] == [
        ("blue/twice.png", "red", (("red/005.png", "red"),)),
        ("red/005.png", "red", (("blue/twice.png", "blue"),)),
    ]
    assert "blue/twice.png" not in {doubt.path for doubt in result.doubts[2:]}
    path = tmp_path / "labels.csv"
    write_doubts(result, cache.path, path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], f"{lines[1]}accept", f"{lines[2]}accept"]))
    apply_review(cache.path, path)
    assert {labels_of(cache)[name] for name in ("blue/twice.png", "red/005.png")} == {"red"}
    assert doubts(leaks(cache.path)).photos_of_two_labels == ()


@pytest.fixture(scope="module")
def found_copies(tmp_path_factory):
    """Return what `leaks` finds in folders where train has copies of val and test."""
    root = tmp_path_factory.mktemp("leaky")
    for name, per_class, first in (("train", 6, 0), ("val", 2, 20), ("test", 2, 30)):
        write_pictures(root / "photos" / name, per_class, first=first)
    copy(root / "photos/test/iris/030.png", root / "photos/train/iris/a.jpg")
    copy(root / "photos/val/rose/020.png", root / "photos/train/rose/c.jpg")
    return leaks(extract(root / "photos", PIXELS, out=root / "c.h5"))


@pytest.fixture
def leaky(found_copies, tmp_path):
    """Return a copy of that cache, to change."""
    return Cache.open(shutil.copy(found_copies.cache, tmp_path / "c.h5"))


DROP = "test/iris/030.png,iris,,,drop\ntrain/rose/c.jpg,rose,,,change:iris\n"


@pytest.mark.parametrize("order", ["fix, review", "review, fix"])
@pytest.mark.parametrize("back", [(unfix, unapply), (unapply, unfix)], ids=["unfix first", "unapply first"])
@pytest.mark.parametrize("between", [False, True], ids=["", "an extraction between"])
def test_fix_and_review_can_be_undone_in_any_order(order, back, between, found_copies, leaky, table):
    works = [lambda: fix(replace(found_copies, cache=leaky.path)), lambda: apply_review(leaky.path, table(DROP))]
    for work in works if order == "fix, review" else works[::-1]:
        work()
    if between:
        extract(leaky.root, "pixels:size=4", out=leaky.path)
    assert splits_of(leaky)["test/iris/030.png"] == ""
    for take_back in back:
        take_back(leaky.path)
    after = Cache.open(leaky.path)
    assert (after.rows, after.changes) == (leaky.rows, leaky.changes)


def test_a_dropped_image_that_a_fix_joins_comes_back_beside_its_copy(found_copies, leaky, table):
    apply_review(leaky.path, table("train/iris/a.jpg,iris,,,drop\n"))
    fix(replace(found_copies, cache=leaky.path))
    assert splits_of(leaky)["test/iris/030.png"] == "test"  # its copy does not train
    unapply(leaky.path)
    assert splits_of(leaky)["train/iris/a.jpg"] == "test"
    unfix(leaky.path)
    assert Cache.open(leaky.path).rows == leaky.rows


def test_undoing_a_fix_says_what_moved_and_lasts(found_copies, leaky):
    fixed = fix(replace(found_copies, cache=leaky.path))
    done = unfix(leaky.path)
    assert {(move.path, move.after, move.before) for move in done.moved} == {
        (move.path, move.before, move.after) for move in fixed.moved
    }
    assert done.images == fixed.images
    assert extract(leaky.root, PIXELS, out=leaky.path).rows == leaky.rows
    assert unfix(leaky.path).moved == ()


def test_images_added_after_a_fix_get_the_split_of_their_folder_when_it_is_undone(found_copies, leaky, tmp_path):
    photos = shutil.copytree(leaky.root, tmp_path / "photos")
    fix(replace(found_copies, cache=leaky.path))
    shutil.copy(photos / "test/iris/030.png", photos / "test/iris/more.png")
    extract(photos, PIXELS, out=leaky.path)
    assert splits_of(leaky)["test/iris/more.png"] == "train"
    unfix(leaky.path)
    assert splits_of(leaky) == {row.path: row.split for row in leaky.rows} | {"test/iris/more.png": "test"}


def test_a_fix_without_recorded_splits_is_not_undone(leaky):
    joined = {row.path: "" for row in leaky.rows[:2]}
    rows = [row._replace(group="same:1") if row.path in joined else row for row in leaky.rows]
    parts.merge(leaky.path, rows, {}, parts.ImageTable.of(leaky).facts, Changes(joined))
    with pytest.raises(UsageError, match="was fixed by an earlier featcache, which did not record the splits"):
        unfix(leaky.path)
    extract(leaky.root, PIXELS, out=leaky.path)  # as the message says
    unfix(leaky.path)
    assert not Cache.open(leaky.path).joined


def test_a_class_that_exists_wins_over_a_new_one_that_looks_the_same(cache, table):
    folder = cache.root / "cafe\u0301"
    (cache.root / "green").rename(folder)
    cache = extract(cache.root, PIXELS, out=cache.path)
    done = apply_review(cache.path, table("blue/000.png,blue,red,0.1,new:caf\u00e9\n"))
    assert [image.after for image in done.relabelled] == [folder.name]


def test_merged_caches_keep_reviews_and_refuse_two_that_disagree(cache, photos, tmp_path, table):
    other = shutil.copy(cache.path, tmp_path / "other.h5")
    apply_review(cache.path, table())
    merged = merge_caches([other, cache.path], tmp_path / "all.h5")
    assert (merged.rows, merged.changes) == (Cache.open(cache.path).rows, Cache.open(cache.path).changes)
    merge_caches([other, cache.path], tmp_path / "all.h5")  # replaces its own
    with pytest.raises(UsageError, match="is there already"):
        merge_caches([other], tmp_path / "all.h5")  # the reviews would be lost
    apply_review(other, table("blue/000.png,blue,,,drop\n", "more.csv"))
    with pytest.raises(DataError, match=r"labelled 'blue', was dropped by the review of .*other\.h5 and changed"):
        merge_caches([other, cache.path], tmp_path / "new.h5")


def test_cache_why_names_the_decision_about_a_file(cache, photos, table):
    apply_review(cache.path, table())
    [review] = why(Cache.open(cache.path), photos / "blue/003.png").reviews
    assert (review.label, review.new_label, review.outcome, review.path) == ("blue", "green", "changed", "blue/003.png")
    assert Review.from_json(review.to_json()) == review


def test_a_test_label_changed_after_a_look_is_reported_and_the_look_stays(tmp_path, table):
    photos = write_images(tmp_path / "photos", 30)
    cache = extract(photos, PIXELS, out=tmp_path / "c.h5")
    run = sweep(cache, "ridge", out=tmp_path / "run")
    of_test = next(row for row in cache.rows if row.split == "test")
    open_test(Run.open(run.path))
    done = apply_review(cache.path, table(f"{of_test.path},{of_test.label},,,drop\n"))
    assert (len(done.of_test), done.looks) == (1, 1)
    tested = open_test(Run.open(run.path))
    opened, scores = tested.run, tested.scores
    assert len(opened.looks()) == 2
    assert [look.get("reviewed") for look in opened.looks()] == [None, 1]
    told = " ".join(text_report(opened, scores).split())
    assert "opened 2 times, in part with other images or labels in it" in told
    assert "By a review of labels 1 test image was changed or dropped, 1 of them after it was first opened" in told
    unapply(cache.path)
    assert [look.get("reviewed") for look in Run.open(run.path).looks()] == [None, 1]


def test_a_run_from_before_a_review_is_not_judged_on_other_labels(cache, tmp_path, table):
    run = sweep(cache, "ridge", out=tmp_path / "run")
    train = next(row for row in cache.rows if row.split == "train" and row.label == "blue")
    apply_review(cache.path, table(f"{train.path},blue,,,change:red\n"))
    with pytest.raises(NotARun, match="labels"):
        Run.open(run.path).cache()
