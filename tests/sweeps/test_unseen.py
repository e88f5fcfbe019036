"""Images that trained a backbone are never left out for it, and never choose or judge a head on it."""

import errno
import json
import shutil
import zipfile
from dataclasses import replace
from typing import NamedTuple

import keras
import numpy as np
import pytest
from tiny import TOY, write_images

import featcache as fc
from featcache.backbones.importing import import_model
from featcache.backbones.lineage import IMAGE_ROLE, MEMBER, lineages_in
from featcache.cache import layout
from featcache.cache.exchange import merge_caches
from featcache.cache.reader import Cache, stored_rows
from featcache.errors import DataError, DiskFault, UsageError
from featcache.extraction import extract
from featcache.extras.export import export
from featcache.extras.leaks import doubts, fix, leaks
from featcache.extras.leaks.results import Pair
from featcache.extras.report.final import open_test
from featcache.extras.report.html import write_report
from featcache.extras.report.table import text_report, trials_table
from featcache.models import handoff
from featcache.models.probe import Probe
from featcache.sweeps import Run, advise, compare, sweep
from featcache.sweeps.unseen import roles
from featcache.tuning import finetune

from .conftest import edit

CLEAN = f"{TOY}/top"
# Standardising would make the rounding errors of dead features as large as the others: a random network has some.
RAW = "none"
HOW = {"unfreeze": "last", "epochs": 1, "learning_rate": 1e-4, "batch": 32}


class Scene(NamedTuple):
    """A model that was tuned on photos, and a cache of its features beside those of the backbone it began from."""

    photos: object
    cache: Cache  # of the first backbone alone
    tuned: object  # MODEL.keras
    features: Cache  # of both


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Return a scene. Do not change it."""
    folder = tmp_path_factory.mktemp("scene")
    photos = write_images(folder / "photos", per_class=20)
    cache = extract(photos, TOY, out=folder / "first.h5")
    path = folder / "tuned.keras"
    finetune(sweep(cache, "ridge", out=folder / "first.run").best, path, **HOW)
    write_images(photos, per_class=4, first=100)  # what is new
    return Scene(photos, cache, path, extract(photos, [str(path), TOY], out=folder / "both.h5"))


@pytest.fixture
def moved(scene, tmp_path):
    """Return a function that gives a cache of the same images in other splits."""

    def cache(split, name="moved.h5"):
        return extract(scene.photos, str(scene.tuned), out=tmp_path / name, split=split, seed=3)

    return cache


def numbers(rows):
    return frozenset(int(row.digest[:16], 16) for row in rows)


def role_of(cache, tap="tuned/top"):
    """Return {path: role} of all images."""
    return {row.path: role for row, role in zip(cache.rows, roles(cache, cache.rows, tap), strict=True)}


def without_record(path, out):
    """Write a copy of a model as featcache wrote it before it recorded which images trained it."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            if name != MEMBER:
                target.writestr(name, source.read(name))
    return out


def test_a_tuned_model_records_exactly_the_images_that_trained_and_chose_it(scene):
    lineages = lineages_in(scene.tuned)
    assert lineages.features == lineages.scores
    assert lineages.features.trained == numbers(scene.cache.usable("train"))
    assert lineages.features.chose == numbers(scene.cache.usable("val"))
    assert lineages.features.is_complete


def test_rows_say_what_their_images_did_for_the_backbone(scene):
    split_of = {row.path: row.split for row in scene.cache.rows}
    expected = {"train": "trained", "val": "chose", "test": "none", None: "none"}
    assert role_of(scene.features) == {row.path: expected[split_of.get(row.path)] for row in scene.features.rows}
    assert set(role_of(scene.features, CLEAN).values()) == {"none"}


@pytest.mark.slow
def test_a_backbone_that_these_images_trained_is_not_ranked(scene, tmp_path):
    ranking = fc.rank(scene.photos, [str(scene.tuned), TOY, "pixels:size=8"], out=tmp_path / "ranked.h5")
    assert {contender.backbone for contender in ranking.contenders if contender.verdict == "not judged"} == {
        str(scene.tuned)
    }
    assert any("images trained the backbone" in remark for remark in ranking.remarks)
    with pytest.raises(UsageError, match="No backbone can be ranked on these images"):
        fc.rank(scene.photos, str(scene.tuned), tap="auto", out=tmp_path / "layers.h5")


@pytest.mark.slow
def test_a_model_tuned_from_a_tuned_model_records_what_trained_either(scene, tmp_path):
    others = write_images(tmp_path / "others", per_class=16, first=200)
    cache = extract(others, str(scene.tuned), out=tmp_path / "others.h5")
    best = sweep(cache, "ridge", out=tmp_path / "others.run").best
    finetune(best, tmp_path / "again.keras", **HOW)
    found = lineages_in(tmp_path / "again.keras").features
    assert found.trained == numbers(scene.cache.usable("train")) | numbers(cache.usable("train"))
    assert found.chose == numbers(scene.cache.usable("val")) | numbers(cache.usable("val"))


@pytest.mark.parametrize("cv", [3, "loo"])
@pytest.mark.parametrize("taps", ["tuned/top", f"{CLEAN}+tuned/top"])
def test_images_that_trained_the_backbone_are_not_left_out_for_it(scene, tmp_path, cv, taps):
    train = len(scene.features.usable("train"))
    trained = len(scene.cache.usable("train"))
    message = (
        rf"`cv={cv!r}`: {trained} of {train} images trained the backbone of tap 'tuned/top', which knows them, so "
        r"leaving them out tells nothing\. Choose on validation images: leave out `cv`$"
    )
    with pytest.raises(UsageError, match=message):
        sweep(scene.features, "ridge", taps=[taps], cv=cv, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_clean_tap_beside_is_named_and_goes_on_as_before(scene, tmp_path):
    with pytest.raises(UsageError, match=rf"leave out `cv`, or name other taps: `taps='{CLEAN}'`$"):
        sweep(scene.features, "ridge", cv=3, out=tmp_path / "run")
    run = sweep(scene.features, "ridge", cv=3, taps=[CLEAN], out=tmp_path / "run")
    assert run.num_select == len(scene.features.usable("train"))


@pytest.mark.slow
def test_validation_images_choose_as_before(scene, tmp_path):
    notes = []
    run = sweep(scene.features, "ridge", prepare=RAW, out=tmp_path / "run", progress=notes.append)
    assert run.num_select == len(scene.features.usable("val"))
    assert not [tick for tick in notes if "backbone" in tick.note]
    assert "--cv 5" not in trials_table(run)
    assert "--cv 5" in trials_table(sweep(scene.features, "ridge", taps=[CLEAN], out=tmp_path / "clean.run"))
    finetune(run.best, tmp_path / "next.keras", **HOW)


@pytest.mark.slow
def test_validation_images_that_trained_the_backbone_do_not_choose(scene, moved, tmp_path):
    cache, notes = moved("30/40/30"), []
    val = cache.usable("val")
    trained = [row for row in val if role_of(cache)[row.path] == "trained"]
    run = sweep(cache, "ridge,logreg", out=tmp_path / "run", progress=notes.append)
    assert run.num_select == len(val) - len(trained) > 0
    counts = f"{len(trained)} of {len(val)} validation images trained the backbone of tap 'tuned/top'"
    assert f"{counts}, so they do not choose" in [tick.note for tick in notes]
    tuned = finetune(run.best, tmp_path / "next.keras", **HOW)
    assert len(tuned.val_logits) == run.num_select
    assert compare(run.best, tuned).images == run.num_select


@pytest.mark.slow
def test_test_images_that_trained_or_chose_the_backbone_do_not_judge(scene, moved, tmp_path):
    cache = moved("30/30/40")
    run = sweep(cache, "ridge", out=tmp_path / "run")
    test = cache.usable("test")
    judge = [row for row in test if role_of(cache)[row.path] == "none"]
    assert 0 < len(judge) < len(test)
    tested = open_test(run)
    after, scores = tested.run, tested.scores
    X, y = cache.features(judge), cache.labels(judge)
    assert next(iter(scores.values())).value == run.best.estimator.score(X, y)
    left_out = len(test) - len(judge)
    assert f"{left_out} test images are not counted: they trained or chose the backbone." in text_report(after, scores)
    page = write_report(after, tmp_path / "page.html", final=scores).read_text()
    assert f"{left_out} test images are not counted" in page


def test_without_an_image_that_can_judge_nothing_is_judged(scene, tmp_path):
    for row in scene.cache.usable("train"):
        split = "val" if int(row.digest[:2], 16) % 3 else "train"
        split = "test" if int(row.digest[:2], 16) % 5 == 0 else split
        (tmp_path / "splits" / split / row.label).mkdir(parents=True, exist_ok=True)
        shutil.copy(scene.photos / row.path, tmp_path / "splits" / split / row.path)
    cache = extract(tmp_path / "splits", str(scene.tuned), out=tmp_path / "c.h5")
    val, test = len(cache.usable("val")), len(cache.usable("test"))
    message = (
        rf"has 0 validation images to choose on besides {val} that trained the backbone of tap 'tuned/top', as train"
    )
    with pytest.raises(UsageError, match=message):
        sweep(cache, "ridge", out=tmp_path / "run")
    for row in scene.cache.usable("val"):
        shutil.copy(scene.photos / row.path, tmp_path / "splits" / "val" / row.label)
    run = sweep(extract(tmp_path / "splits", str(scene.tuned), out=tmp_path / "c.h5"), "ridge", out=tmp_path / "run")
    with pytest.raises(DataError, match=rf"All {test} test images trained or chose the backbone of tuned/top, so none"):
        open_test(run)
    assert Run.open(run.path).test_opened == ()


def test_advice_looks_at_taps_that_these_images_did_not_train(scene, tmp_path):
    found = advise(scene.features)
    assert [depth.tap for depth in found.curve] == [CLEAN]
    assert "trained the backbone of tap 'tuned/top', which knows them" in found.why[-1]
    only = extract(scene.photos, str(scene.tuned), out=tmp_path / "only.h5")
    with pytest.raises(
        UsageError, match=r"so leaving them out tells nothing\. Ask about features of a backbone that th"
    ):
        advise(only)


@pytest.mark.slow
def test_labels_are_judged_by_features_that_these_images_did_not_train(scene, tmp_path):
    found = leaks(scene.features, tap="tuned/top")
    assert doubts(found).tap == CLEAN
    with pytest.raises(UsageError, match=rf"No label can be judged: .*\. Judge by other features: `tap={CLEAN}`$"):
        doubts(found, tap="tuned/top")
    only = extract(scene.photos, str(scene.tuned), out=tmp_path / "only.h5")
    with pytest.raises(UsageError, match=r"No label can be judged: .*features: featcache extract with a backbone that"):
        doubts(leaks(only))
    run = sweep(only, "ridge", out=tmp_path / "run")
    page = write_report(run, tmp_path / "page.html").read_text()
    assert "which knows them, so leaving them out tells nothing" in page


@pytest.mark.slow
def test_what_rows_say_survives_merging_fixing_and_compaction_and_the_loss_of_the_model(scene, tmp_path):
    model = shutil.copy(scene.tuned, tmp_path / "tuned.keras")
    one = extract(scene.photos, str(model), out=tmp_path / "one.h5")
    expected = role_of(one)
    in_parts = extract(scene.photos, str(model), out=tmp_path / "parts", layout="parts", batch=7)
    other = extract(scene.photos, TOY, out=tmp_path / "other.h5")
    model.unlink()
    assert role_of(Cache.open(in_parts.path)) == expected
    merged = merge_caches([other.path, one.path], tmp_path / "merged.h5")
    assert role_of(merged) == expected
    found = leaks(merged, tap="tuned/top")
    a, b = (row for row in merged.rows[:2])
    pairs = (Pair(a.path, b.path, "near", 1.0, 1.0, (a.split, b.split)),)
    same = replace(found, pairs=pairs, digests={a.path: a.digest, b.path: b.digest})
    fix(same)
    later = extract(scene.photos, "pixels:size=8", out=merged.path)
    assert role_of(later) == expected
    with pytest.raises(UsageError, match="which knows them"):
        sweep(later, "ridge", taps=["tuned/top"], cv=3, out=tmp_path / "run")


@pytest.mark.slow
def test_a_model_without_a_record_is_refused_likewise_and_may_be_recorded_later(scene, tmp_path):
    model, notes = without_record(scene.tuned, tmp_path / "old.keras"), []
    cache = extract(scene.photos, str(model), out=tmp_path / "c.h5")
    message = (
        r"old\.keras, the backbone of tap 'old/top', does not record which images trained it, so leaving images out"
    )
    for refused in (
        lambda: sweep(cache, "ridge", cv=3, out=tmp_path / "cv.run"),
        lambda: advise(cache),
        lambda: doubts(leaks(cache)),
    ):
        with pytest.raises(UsageError, match=message):
            refused()
    run = sweep(cache, "ridge", prepare=RAW, out=tmp_path / "run", progress=notes.append)
    assert run.num_select == len(cache.usable("val"))
    assert any("if validation images did, scores on them are too good" in tick.note for tick in notes)
    finetune(run.best, tmp_path / "next.keras", **HOW)
    assert not lineages_in(tmp_path / "next.keras").features.is_complete
    shutil.copy(scene.tuned, model)
    with pytest.raises(UsageError, match="which knows them"):
        sweep(cache, "ridge", cv=3, out=tmp_path / "cv.run")


def test_rows_of_an_earlier_version_are_known_by_the_model_that_is_there(scene, tmp_path):
    model = shutil.copy(scene.tuned, tmp_path / "tuned.keras")
    cache = extract(scene.photos, str(model), out=tmp_path / "c.h5")

    def forget(file):
        group = file["taps/tuned/top"]
        makers = json.loads(layout.text_of(group, "provenance"))
        layout.put_text(
            group, "provenance", json.dumps([{k: v for k, v in m.items() if k != IMAGE_ROLE} for m in makers])
        )

    edit(cache.path, forget)
    with pytest.raises(UsageError, match="which knows them"):
        sweep(cache.path, "ridge", cv=3, out=tmp_path / "run")


@pytest.mark.slow
def test_a_linear_head_trains_no_features(scene, tmp_path):
    run = sweep(scene.cache, "ridge", out=tmp_path / "run")
    handoff(run.best, tmp_path / "head.keras")
    lineages = lineages_in(tmp_path / "head.keras")
    assert (lineages.features.trained, lineages.features.is_complete) == (frozenset(), True)
    assert lineages.scores.trained == numbers(scene.cache.usable("train"))
    cache = extract(scene.photos, str(tmp_path / "head.keras"), tap="top,logits", out=tmp_path / "c.h5")
    assert sweep(cache, "ridge", taps=["head/top"], cv=3, out=tmp_path / "top.run").trials
    with pytest.raises(UsageError, match="which knows them"):
        sweep(cache, "ridge", taps=["head/logits"], cv=3, out=tmp_path / "logits.run")


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mlp:8", "knn"])
def test_hidden_layers_of_a_head_and_what_a_head_was_taught_are_trained_features(scene, tmp_path, head):
    handoff(sweep(scene.cache, head, out=tmp_path / "run").best, tmp_path / "head.keras")
    assert lineages_in(tmp_path / "head.keras").features.trained == numbers(scene.cache.usable("train"))


@pytest.mark.slow
def test_fine_tuning_of_a_linear_head_alone_trains_no_features(scene, tmp_path):
    best = sweep(scene.cache, "ridge", out=tmp_path / "run").best
    finetune(best, tmp_path / "tuned.keras", **(HOW | {"unfreeze": "none"}))
    assert lineages_in(tmp_path / "tuned.keras").features.trained == frozenset()


@pytest.mark.slow
def test_the_head_as_handed_over_trains_no_features_if_no_epoch_was_better(scene, tmp_path):
    best = sweep(scene.cache, "ridge", out=tmp_path / "run").best
    tuned = finetune(best, tmp_path / "tuned.keras", **(HOW | {"learning_rate": 1e3}))
    assert tuned.best.epoch == 0
    lineages = lineages_in(tmp_path / "tuned.keras")
    assert lineages.features.trained == frozenset()
    assert lineages.scores.trained == numbers(scene.cache.usable("train"))
    cache = extract(scene.photos, str(tmp_path / "tuned.keras"), out=tmp_path / "c.h5")
    assert sweep(cache, "ridge", cv=3, out=tmp_path / "cv.run").trials


def test_a_cut_of_a_tuned_model_carries_its_record(scene, tmp_path):
    import_model(scene.tuned, out=tmp_path / "cut.keras")
    assert lineages_in(tmp_path / "cut.keras").features == lineages_in(scene.tuned).features


@pytest.mark.slow
def test_an_export_that_can_be_a_backbone_carries_the_record(scene, tmp_path):
    for kind, name in [("keras", "out.keras"), ("savedmodel", "out")]:
        export(str(scene.tuned), kind, tmp_path / name, images=scene.photos)
        assert lineages_in(tmp_path / name) == lineages_in(scene.tuned)


def test_a_model_that_featcache_did_not_write_is_not_refused(scene, tmp_path):
    path = tmp_path / "mine.keras"
    layers = [keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3)]
    keras.Sequential(layers).save(path)
    cache = extract(scene.photos, str(path), out=tmp_path / "c.h5")
    assert lineages_in(path) is None
    assert not any(IMAGE_ROLE in maker for rows in stored_rows(cache.path).values() for maker in rows.makers)
    assert sweep(cache, "ridge", cv=3, out=tmp_path / "run").trials


def test_a_damaged_record_is_as_good_as_none(scene, tmp_path):
    bare = without_record(scene.tuned, tmp_path / "bare.keras")
    with zipfile.ZipFile(bare, "a") as archive:
        archive.writestr(MEMBER, b"PK no arrays")
    assert not lineages_in(bare).features.is_complete


def test_folds_of_one_backbone_are_as_before(scene, tmp_path):
    [maker] = stored_rows(scene.cache.path)[scene.cache.tap().fingerprint].makers
    assert set(json.loads(maker)) == {"engine", "featcache", "numpy", "pillow", "weights_source"}
    assert np.isfinite(sweep(scene.cache, "ridge", cv="loo", out=tmp_path / "run").best.trial.score)


def test_a_tuned_model_at_the_path_of_another_says_nothing_of_its_rows(scene, tmp_path):
    path = tmp_path / "mine.keras"
    keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3)]).save(path)
    cache = extract(scene.photos, str(path), out=tmp_path / "c.h5")
    shutil.copy(scene.tuned, path)
    assert set(roles(cache, cache.rows, cache.tap().name)) == {"none"}


def test_a_record_that_the_system_does_not_let_be_read_is_no_missing_one(tmp_path, monkeypatch):
    def refused(*args):
        raise OSError(errno.EMFILE, "Too many open files")

    assert lineages_in(tmp_path / "gone.keras") is None
    monkeypatch.setattr("zipfile.ZipFile", refused)
    with pytest.raises(DiskFault, match="Too many open files"):
        lineages_in(tmp_path / "tuned.keras")


def test_only_files_of_the_user_are_inputs_of_a_model(scene, tmp_path):
    cache = extract(scene.photos, "pixels:size=4", out=tmp_path / "pixels.h5")
    assert Probe.open(sweep(cache, "ridge", out=tmp_path / "run").best).files == [cache.path]
    best = sweep(scene.features, "ridge", taps=["tuned/top"], out=tmp_path / "tuned.run").best
    assert Probe.open(best).files == [scene.features.path, scene.tuned]
