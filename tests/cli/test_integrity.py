"""Every command that reads features, on a cache with one flipped bit; docs/integrity.md tells what is to happen."""

import shutil

import pytest
from cache.disk import tree
from rot import flip_feature
from tiny import TOY, write_images

from featcache.cache.reader import Cache
from featcache.errors import NotACache
from featcache.extraction import extract
from featcache.sweeps import Run, sweep

TAP = f"{TOY}/top"
REFUSED = f"is damaged: the rows of tap '/taps/{TAP}' do not match their digest. Compute them again: repeat the"
COMMANDS = [
    "cache verify {cache}",
    "cache verify {cache} --recompute 4",
    "cache export {cache} --tap glyphnet:weights=none/top -o {new}.npz",
    "cache merge {cache} -o {new}.h5",
    "leaks {cache}",
    "leaks {cache} --labels",
    "leaks {cache} --fix",
    "leaks {cache} --tap pixels:size=8/top --fix",
    "sweep {cache} --tap glyphnet:weights=none/top --heads ridge -o {new}.run",
    "advise {cache}",
    "handoff {run}@{ridge} -o {new}.keras",
    "handoff {run}@{knn} -o {new}.keras",
    "finetune {run}@{ridge} -o {new}.keras",
    "report {run} --final",
    "report {run} --html {new}.html",
    "report {run} --tensorboard {new}",
]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Return a folder with a cache of two taps, one of them damaged, and a run of a stored and of a kNN head on it."""
    folder = tmp_path_factory.mktemp("damaged")
    photos = write_images(folder / "photos")
    shutil.copy(photos / "red/003.png", photos / "red/copy.png")
    cache = extract(photos, [TOY, "pixels:size=8"], out=folder / "c.h5")
    run = sweep(cache, "ridge,knn", taps=[TAP], out=folder / "r.run")
    assert {trial.head for trial in run.trials} == {"ridge", "knn"}
    flip_feature(folder / "c.h5", "glyphnet")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_reads_damaged_features_refuses_by_name_and_leaves_everything(cli, damaged, command):
    trial_of = {trial.head: trial.trial for trial in reversed(Run.open(damaged / "r.run").trials)}
    filled = command.format(cache=damaged / "c.h5", run=damaged / "r.run", new=damaged / "new", **trial_of)
    before = tree(damaged)
    done = cli(*filled.split())
    assert (done.code, REFUSED in done.err) == (4, True), done.err
    assert "c.h5 is damaged" in done.err
    assert tree(damaged) == before


def test_a_final_report_of_a_head_that_is_fitted_again_refuses_damaged_training_features(cli, damaged):
    """Its head is not stored, so what it learns from is read again."""
    run = Run.open(damaged / "r.run")
    knn = next(trial for trial in run.trials if trial.head == "knn")
    assert knn.size == 0
    with pytest.raises(NotACache, match=r"c\.h5 is damaged: the rows of tap"):
        run[knn.trial].logits(run.rows(run.cache(), "test"))
    assert Run.open(damaged / "r.run").test_opened == ()


def test_what_needs_no_features_still_works(cli, damaged):
    assert cli("cache", "info", damaged / "c.h5").code == 0
    assert cli("show", damaged / "r.run").code == 0
    cache = Cache.open(damaged / "c.h5")
    assert cache.arrays(tap="pixels:size=8/top")[0].shape == (37, 192)
