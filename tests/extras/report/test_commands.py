"""What a report says to type makes the same features of the same splits again."""

import html
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import TOY, write_images
from typer.testing import CliRunner

from featcache.cache.changes import Changes, Review
from featcache.cache.exchange import merge_caches
from featcache.extraction import extract
from featcache.extras.report.commands import commands
from featcache.extras.report.html import write_report
from featcache.images.manifest import scan
from featcache.sweeps import Run, sweep
from featcache.sweeps.records import read_record
from featcache.tuning import Recipe, finetune
from featcache_cli.app import app

PIXELS = "pixels:size=8"
MINE = """
def small():
    import keras

    keras.utils.set_random_seed(7)
    convolution = keras.layers.Conv2D(4, 3, name="late")
    return keras.Sequential([keras.Input((16, 16, 3)), convolution])
"""


def printed_by(page):
    """Return the commands that a page tells to type."""
    lines = re.search(r"To make it again</h3>\s*<pre>(.*?)</pre>", page.read_text(), re.S)[1]
    return html.unescape(lines).splitlines()


def type_in(command):
    name, *words = shlex.split(command)
    assert name == "featcache"
    done = CliRunner().invoke(app, [*words, "--quiet"])
    assert done.exit_code == 0, done.output


def require_same(again, run):
    """Compare a run and its cache with those that were made again."""
    new, old = again.cache(), run.cache()
    assert {name: tap.fingerprint for name, tap in new.taps.items()} == {
        name: tap.fingerprint for name, tap in old.taps.items()
    }
    assert new.rows == old.rows
    assert (new.images_from, new.split_spec) == (old.images_from, old.split_spec)
    assert [trial.score for trial in again.trials] == [trial.score for trial in run.trials]


def write_table(tmp_path):
    """Write a table of some of the images in a folder, with columns that are not called as usual, and one outside."""
    photos = write_images(tmp_path / "my photos" / "all", 9)
    write_images(tmp_path / "elsewhere", 1, first=20)
    listed = [path for path in sorted(photos.rglob("*.png")) if int(path.stem) < 6]
    rows = [f"all/{path.parent.name}/{path.name},{path.parent.name},{path.name}" for path in listed]
    rows.append("../elsewhere/red/020.png,red,20")
    table = photos.parent / "some of them.csv"
    table.write_text("\n".join(["place,species,burst", *rows]))
    return table


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"backbone": PIXELS, "decode": "draft", "bits": 12, "split": "60/40", "seed": 3},
        {"backbone": [PIXELS, TOY], "views": "flip", "dtype": "float16"},
        {"backbone": "glyphnet", "tap": "block_3_add,top", "pool": "max", "resize": "crop", "precision": "bfloat16"},
        {"backbone": "my_small_net:small:mode=unit", "tap": "late"},
    ],
    ids=["draft", "views", "layers", "own model"],
)
def test_the_commands_make_the_same_taps_and_splits(how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_small_net.py").write_text(MINE)
    cache = extract(write_images(tmp_path / "my photos", 6), out=tmp_path / "it's.h5", **how)
    run = sweep(cache, "ridge", taps=list(cache.taps), cv=3, out=tmp_path / "a run")
    made = commands(run, cache)
    cache.path.rename(tmp_path / "away.h5")
    for command in made:
        type_in(command)
    (tmp_path / "away.h5").rename(cache.path)
    require_same(Run.open("a run-again.run"), run)


def test_the_commands_remake_the_cache_and_leave_the_original_alone(tmp_path, monkeypatch):
    columns = {"path_column": "place", "label_column": "species", "group_from": "csv:burst", "allow_outside": True}
    cache = extract(write_table(tmp_path), PIXELS, out=tmp_path / "c.h5", **columns)
    run = sweep(cache, "ridge", out=tmp_path / "r.run")
    page = write_report(run)
    before = {path: path.read_bytes() for path in (cache.path, run.path / "run.json")}
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    for command in printed_by(page):
        type_in(command)
    assert {path: path.read_bytes() for path in before} == before
    require_same(Run.open("r-again.run"), run)


@pytest.mark.slow
def test_the_page_makes_every_fine_tuned_model_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = sweep(extract(write_images(tmp_path / "photos", 8), TOY, out="c.h5", split="50/50"), "ridge", out="r.run")
    for number in (1, 2):
        model = f"{number}.keras"
        finetune(run[number], model, epochs=1, learning_rate=1e-3, unfreeze="none", controls=("frozen",)[: number - 1])
    for command in printed_by(write_report(Run.open(run.path))):
        type_in(command)
    again = Run.open("r-again.run")
    require_same(again, run)
    assert sorted(Path(file).name for file in again.tuned) == ["r-again-1.keras", "r-again-2.keras"]
    for old, new in zip(sorted_records(run), sorted_records(again), strict=True):
        assert (new["trial"], new["flags"]) == (old["trial"], old["flags"])
        assert [epoch["val"] for epoch in new["history"]] == [epoch["val"] for epoch in old["history"]]
        assert list(new["controls"]) == list(old["controls"])


def sorted_records(run):
    return sorted(map(read_record, (run.path / "tuned").glob("*.json")), key=lambda record: record["trial"])


def test_the_commands_repeat_fixes_and_fine_tunings(tmp_path):
    cache = extract(write_images(tmp_path / "photos", 6), PIXELS, out=tmp_path / "c.h5")
    run = sweep(cache, "ridge", cv=3, out=tmp_path / "run")
    flags = Recipe(learning_rate=1e-4, wise_ft=True, augment="light", views=2).flags
    record = {"trial": 2, "flags": flags, "controls": {"frozen": [], "scratch": []}}
    lines = commands(run, replace(cache, changes=Changes(joined={"a": ""})), [record])
    assert lines[1:] == [
        "featcache leaks run-again.h5 --fix",
        f"featcache sweep run-again.h5 --config {run.path / 'run.json'} -o run-again.run",
        "featcache finetune run-again.run@2 -o run-again.keras --lr 0.0001 --augment light --views 2 --wise-ft "
        "--controls frozen,scratch",
    ]
    reviewed = replace(cache, changes=Changes(reviews=(Review("0" * 64, "a", "b", "a/1.png", "train", ""),)))
    assert commands(run, reviewed)[0].startswith("# Labels were reviewed: add --apply TABLE.csv")


def test_a_cache_that_was_merged_is_merged_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caches = []
    for number in (1, 2):
        photos = write_images(tmp_path / f"{number}", 6, first=10 * number)
        for path in photos.rglob("*.png"):
            path.rename(path.with_name(f"{number}-{path.name}"))
        caches.append(extract(photos, PIXELS, out=f"{number}.h5").path)
    run = sweep(merge_caches(caches, "all.h5"), "ridge", cv=3, out="r.run")
    for command in commands(run, run.cache()):
        type_in(command)
    require_same(Run.open("r-again.run"), run)


def test_the_page_says_what_an_earlier_version_did_not_record(tmp_path):
    cache = extract(write_images(tmp_path / "photos", 6), PIXELS, out=tmp_path / "c.h5")
    lines = commands(sweep(cache, "ridge", cv=3, out=tmp_path / "run"), replace(cache, listing=None))
    assert lines[0].startswith("# How the images were listed is not recorded, since an earlier version made this cache")
    assert lines[1].startswith(f"featcache extract {tmp_path / 'photos'} -o run-again.h5")


def test_arrays_have_no_command(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    cache = extract(scan(pixels, labels=["a", "b"] * 6), PIXELS, out=tmp_path / "c.h5")
    lines = commands(sweep(cache, "ridge", cv=3, out=tmp_path / "run"), cache)
    assert lines[0].startswith("# The images were arrays in Python: extract their features there")
    assert [line.split()[:2] for line in lines[1:]] == [["featcache", "sweep"]]
