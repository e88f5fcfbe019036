"""What a report says to type makes the same features of the same splits again."""

import shlex
from dataclasses import replace

import numpy as np
import pytest
from tiny import TOY, write_images
from typer.testing import CliRunner

from featcache.cache.changes import Changes, Review
from featcache.cache.reader import Cache
from featcache.extraction import extract
from featcache.images.manifest import scan
from featcache.reports.commands import commands
from featcache.sweeps import Run, sweep
from featcache.tuning import Recipe
from featcache_cli.app import app

PIXELS = "pixels:size=8"
MINE = """
def small():
    import keras

    keras.utils.set_random_seed(7)
    convolution = keras.layers.Conv2D(4, 3, name="late")
    return keras.Sequential([keras.Input((16, 16, 3)), convolution])
"""


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
    cache.path.rename(tmp_path / "away.h5")
    for command in commands(run, cache):
        name, *words = shlex.split(command)
        assert name == "featcache"
        done = CliRunner().invoke(app, [*words, "--quiet"])
        assert done.exit_code == 0, done.output
    again = Cache.open(cache.path)
    assert {name: tap.fingerprint for name, tap in again.taps.items()} == {
        name: tap.fingerprint for name, tap in cache.taps.items()
    }
    assert again.rows == cache.rows
    assert [one.score for one in Run.open("AGAIN").trials] == [one.score for one in run.trials]


def test_what_was_fixed_and_fine_tuned_is_made_again_too(tmp_path):
    cache = extract(write_images(tmp_path / "photos", 6), PIXELS, out=tmp_path / "c.h5")
    run = sweep(cache, "ridge", cv=3, out=tmp_path / "run")
    flags = Recipe(learning_rate=1e-4, wise_ft=True, augment="light", views=2).flags
    fixed = replace(cache, changes=Changes(joined={"a": ""}))
    found = commands(run, fixed, [{"trial": 2, "flags": flags}])
    assert found[1:] == [
        f"featcache leaks {cache.path} --fix",
        f"featcache sweep --config {run.path / 'run.json'} -o AGAIN",
        "featcache finetune AGAIN@2 -o again.keras --lr 0.0001 --augment light --views 2 --wise-ft",
    ]
    reviewed = replace(cache, changes=Changes(reviews=(Review("0" * 64, "a", "b", "a/1.png", "train", ""),)))
    assert commands(run, reviewed)[0].endswith("For another one add: --apply TABLE.csv")


def test_groups_of_another_rule_are_mentioned(tmp_path):
    photos = write_images(tmp_path / "photos", 6)
    cache = extract(photos, PIXELS, out=tmp_path / "c.h5", group_from="regex:.*/(00.)")
    found = commands(sweep(cache, "ridge", cv=3, out=tmp_path / "run"), cache)
    assert found[0] == "# The images are in groups: give --group-from again if it was given."


def test_arrays_have_no_command(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    cache = extract(scan(pixels, labels=["a", "b"] * 6), PIXELS, out=tmp_path / "c.h5")
    found = commands(sweep(cache, "ridge", cv=3, out=tmp_path / "run"), cache)
    assert found[0] == "# The images were arrays in Python: extract their features there."
    assert [one.split()[:2] for one in found[1:]] == [["featcache", "sweep"]]
