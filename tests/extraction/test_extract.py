"""Nothing is computed twice, no image kills a job, and what is stored is what the backbone says."""

import inspect
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
from PIL import Image
from tiny import TOY, write_images

from featcache.cache.reader import Cache
from featcache.errors import DiskFault, NoImages, UnknownBackbone, UnreadableImages, UsageError
from featcache.extraction import Options, extract
from featcache.extraction.engines import PixelEngine
from featcache.images.manifest import scan

from .counting import Killed

PIXELS = "pixels:size=8"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "cache.h5"


def rows_of(path, tap):
    with h5py.File(path) as file:
        group = file["taps"][tap]
        return dict(zip(group["digest"][()].tolist(), group["features"][()].tolist(), strict=True))


# Options


def test_every_option_reaches_the_job_under_the_default_of_options(photos, out, monkeypatch):
    """`extract` lists its options for editors and readers, so it could forget to pass one on."""
    parameters = dict(inspect.signature(extract).parameters)
    names = parameters.keys() - {"images", "out", "force", "progress"}
    assert {name: parameters[name].default for name in names} == vars(Options())

    values = {name: object() for name in names}
    received = []

    def record(images, out, options, *_, **__):
        received.append(vars(options))
        raise Killed

    monkeypatch.setattr("featcache.extraction.api.open_extraction", record)
    with pytest.raises(Killed):
        extract(photos, out=out, **values)
    assert received == [values]


# Nothing is computed twice


def test_a_second_run_computes_nothing_and_builds_nothing(photos, out, work):
    first = extract(photos, [TOY, PIXELS], out=out)
    assert (first.report.images, first.report.computed, work.images, work.builds) == (36, 72, 72, 1)
    before, stamp = out.read_bytes(), out.stat().st_mtime_ns
    second = extract(photos, [TOY, PIXELS], out=out)
    assert (second.report.hits, second.report.computed, work.images, work.builds) == (36, 0, 72, 1)
    assert (out.read_bytes(), out.stat().st_mtime_ns) == (before, stamp)
    assert second.rows == first.rows


def test_a_second_run_does_not_import_keras(photos, out):
    extract(photos, TOY, out=out)
    code = (
        "import sys, featcache as fc\n"
        f"report = fc.extract({str(photos)!r}, {TOY!r}, out={str(out)!r}).report\n"
        "print(report.hits, report.computed, *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    hits, computed, *modules = done.stdout.split()
    assert (hits, computed) == ("36", "0")
    assert not {"keras", "tensorflow"} & set(modules)


def test_adding_ten_images_costs_ten_forward_passes(photos, out, work):
    extract(photos, TOY, out=out)
    for number in range(10):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(photos / "red" / f"new{number}.png")
    cache = extract(photos, TOY, out=out)
    assert (cache.report.hits, cache.report.computed, work.images) == (36, 10, 46)
    assert len(cache.usable()) == 46


def test_renaming_moving_and_relabelling_cost_nothing(photos, out, work):
    features = rows_of(extract(photos, PIXELS, out=out).path, "pixels:size=8/top")
    (photos / "red" / "000.png").rename(photos / "red" / "renamed.jpeg")
    (photos / "red" / "001.png").rename(photos / "blue" / "relabelled.png")
    (photos / "green" / "deep").mkdir()
    (photos / "green" / "000.png").rename(photos / "green" / "deep" / "000.png")
    photos.rename(photos.with_name("elsewhere"))
    cache = extract(photos.with_name("elsewhere"), PIXELS, out=out)
    assert (cache.report.hits, cache.report.computed, work.images) == (36, 0, 36)
    assert rows_of(out, "pixels:size=8/top") == features
    labels = {row.path: row.label for row in Cache.open(out).rows}
    assert labels["blue/relabelled.png"] == "blue"
    assert {"red/renamed.jpeg", "green/deep/000.png"} < set(labels)
    assert Cache.open(out).root == photos.with_name("elsewhere")


def test_exchanging_the_contents_of_two_files_exchanges_their_features(photos, out, work):
    one, two = photos / "red" / "000.png", photos / "blue" / "000.png"
    before = extract(photos, PIXELS, out=out)
    features = {row.path: before.features([row])[0].tolist() for row in before.rows}
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    after = extract(photos, PIXELS, out=out)
    found = {row.path: after.features([row])[0].tolist() for row in after.rows}
    assert work.images == 36
    assert found["red/000.png"] == features["blue/000.png"]
    assert found["blue/000.png"] == features["red/000.png"]


def test_copies_are_computed_once_and_counted(photos, out, work):
    for copy in ("blue/copy.png", "red/copy.png"):
        (photos / copy).write_bytes((photos / "blue" / "000.png").read_bytes())
    report = extract(photos, PIXELS, out=out).report
    assert (report.images, report.computed, report.copies, work.images) == (38, 36, 2, 36)
    assert extract(photos, PIXELS, out=out).report.copies == 0


def test_copies_of_a_broken_image_are_skipped_and_no_copies(photos, out):
    for name in ("blue/broken.png", "red/broken.png"):
        (photos / name).write_bytes(b"broken")
    report = extract(photos, PIXELS, out=out).report
    assert (report.images, report.computed, report.copies, len(report.failed)) == (38, 36, 0, 2)


def test_editing_one_file_in_place_costs_one(photos, out, work):
    extract(photos, PIXELS, out=out)
    Image.new("RGB", (20, 16), "white").save(photos / "red" / "000.png")
    cache = extract(photos, PIXELS, out=out)
    assert (cache.report.hits, cache.report.computed, work.images) == (35, 1, 37)
    row = next(row for row in cache.rows if row.path == "red/000.png")
    assert (cache.features([row]) == 1.0).all()


def test_copies_are_computed_once_and_each_has_its_features(photos, out, work):
    for number in range(5):
        shutil.copy(photos / "red" / "000.png", photos / "red" / f"copy{number}.png")
    cache = extract(photos, PIXELS, out=out)
    assert (cache.report.images, cache.report.computed, work.images) == (41, 36, 36)
    assert cache.features(cache.rows).shape == (41, 192)


def test_removed_images_leave_the_manifest_and_cost_nothing_when_they_come_back(photos, out, work):
    extract(photos, PIXELS, out=out)
    shutil.move(photos / "red" / "000.png", photos.parent / "kept.png")
    assert len(extract(photos, PIXELS, out=out).rows) == 35
    shutil.move(photos.parent / "kept.png", photos / "red" / "000.png")
    assert len(extract(photos, PIXELS, out=out).rows) == 36
    assert work.images == 36


def test_a_second_backbone_and_another_pooling_are_added_to_the_same_file(photos, out, work):
    extract(photos, PIXELS, out=out)
    before = rows_of(out, "pixels:size=8/top")
    extract(photos, TOY, out=out)
    cache = extract(photos, TOY, out=out, pool="max", tap="block_2_relu")
    assert list(cache.taps) == [f"{TOY}/block_2_relu:max", f"{TOY}/top", "pixels:size=8/top"]
    assert work.batches == [32, 4] * 3
    assert rows_of(out, "pixels:size=8/top") == before


def test_several_taps_of_one_backbone_are_read_in_one_pass(photos, out, work):
    cache = extract(photos, TOY, out=out, tap=["block_1_relu", "block_3_relu", "top"])
    assert (cache.report.computed, work.images) == (36, 36)
    assert {one.tap.rpartition("/")[2]: one.width for one in cache.report.taps} == {
        "block_1_relu": 32,
        "block_3_relu": 64,
        "top": 256,
    }


def test_weights_of_another_content_under_the_same_name_are_another_tap(photos, out, tmp_path, work):
    from featcache.backbones.glyphnet import glyphnet, save_weights

    weights = tmp_path / "mine.npz"
    save_weights(glyphnet(), weights)
    before = rows_of(extract(photos, "glyphnet", weights=str(weights), out=out).path, "glyphnet:weights=mine/top")
    save_weights(glyphnet(), weights)
    cache = extract(photos, "glyphnet", weights=str(weights), out=out)
    kept, new = sorted(cache.taps)
    assert (kept, new[:-6]) == ("glyphnet:weights=mine/top", "glyphnet:weights=mine/top#")
    assert rows_of(out, kept) == before
    assert rows_of(out, new) != before
    assert cache.report.taps[0].tap == new
    assert work.images == 72
    assert extract(photos, "glyphnet", weights=str(weights), out=out).report.computed == 0


def test_weights_are_known_by_their_values_not_by_their_file(photos, out, tmp_path, work):
    from featcache.backbones.glyphnet import glyphnet, save_weights

    save_weights(glyphnet(), tmp_path / "mine.npz")
    extract(photos, "glyphnet", weights=str(tmp_path / "mine.npz"), out=out)
    shutil.copy(tmp_path / "mine.npz", tmp_path / "copy.npz")
    assert extract(photos, "glyphnet", weights=str(tmp_path / "copy.npz"), out=out).report.computed == 0
    assert work.images == 36


def test_a_long_name_of_weights_does_not_become_the_taps(photos, out, tmp_path, work, monkeypatch):
    from featcache.backbones import parse
    from featcache.backbones.glyphnet import glyphnet, save_weights

    weights = tmp_path / f"{'w' * 60}.npz"
    save_weights(glyphnet(), weights)
    with monkeypatch.context() as earlier:  # a cache from when names were not shortened
        earlier.setattr(parse, "LONGEST_STEM", 99)
        extract(photos, "glyphnet", weights=str(weights), out=out)
    long_name = f"glyphnet:weights={'w' * 60}/top"
    cache = extract(photos, "glyphnet", weights=str(weights), out=out)
    assert (list(cache.taps), cache.tap(long_name).name) == ([long_name], long_name)
    assert work.images == 36  # nothing was computed again

    fresh = extract(photos, "glyphnet", weights=str(weights), out=tmp_path / "fresh.h5").tap()
    assert fresh.name == f"glyphnet:weights={fresh.weights_digest[:8]}/top"
    assert fresh.fingerprint == cache.tap().fingerprint


# No image kills a job


@pytest.fixture
def with_bad(photos):
    (photos / "red" / "html.jpg").write_text("<html>404</html>")
    (photos / "red" / "none.jpg").write_bytes(b"")
    (photos / "blue" / "dead.png").symlink_to("/proc/self/mem")
    return photos


def test_images_that_cannot_be_used_are_named_with_their_reason_and_the_others_are_cached(with_bad, out, work):
    cache = extract(with_bad, PIXELS, out=out)
    assert [(one.path, one.status) for one in cache.report.failed] == [
        ("blue/dead.png", "unreadable"),
        ("red/html.jpg", "unknown_format"),
        ("red/none.jpg", "empty"),
    ]
    assert (cache.report.images, work.images, len(cache.usable())) == (39, 36, 36)
    assert Cache.open(out).failures == cache.report.failed
    assert cache.arrays()[0].shape == (36, 192)


def test_the_same_bad_bytes_are_not_tried_again(with_bad, out, monkeypatch):
    extract(with_bad, PIXELS, out=out)
    stamp = out.stat().st_mtime_ns

    def tried(*args):
        raise AssertionError("decoded again")

    monkeypatch.setattr("featcache.extraction.pipeline.decode_picture", tried)
    again = extract(with_bad, PIXELS, out=out)
    assert (len(again.report.failed), again.report.computed, out.stat().st_mtime_ns) == (3, 0, stamp)


def test_a_repaired_image_is_computed(with_bad, out, work):
    extract(with_bad, PIXELS, out=out)
    Image.new("RGB", (9, 9), "red").save(with_bad / "red" / "html.jpg")
    cache = extract(with_bad, PIXELS, out=out)
    assert (work.images, len(cache.report.failed)) == (37, 2)
    assert "red/html.jpg" in {row.path for row in cache.usable()}


def test_strict_refuses_after_everything_else_was_cached(with_bad, out, work):
    with pytest.raises(UnreadableImages, match=r"3 of 39 images cannot be used, such as blue/dead.png: .* All others"):
        extract(with_bad, PIXELS, out=out, strict=True)
    assert (work.images, len(Cache.open(out).usable())) == (36, 36)
    assert extract(with_bad, PIXELS, out=out).report.computed == 0


def test_without_one_usable_image_there_is_no_cache(tmp_path, out):
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "photos" / "a" / "1.jpg").write_text("no")
    with pytest.raises(NoImages, match=r"None of the 1 images in .* can be used; a/1.jpg: not an image"):
        extract(tmp_path / "photos", PIXELS, out=out)
    assert not out.exists()


def test_an_image_that_changes_after_the_scan_is_stored_as_what_was_decoded(photos, out):
    images = scan(photos)
    Image.new("RGB", (9, 9), "white").save(photos / "red" / "000.png")
    (photos / "red" / "001.png").unlink()
    cache = extract(images, PIXELS, out=out)
    row = next(row for row in cache.rows if row.path == "red/000.png")
    assert row.digest == next(row for row in scan(photos).rows if row.path == "red/000.png").digest
    assert (cache.features([row]) == 1.0).all()
    assert [(one.path, one.reason) for one in cache.failures] == [("red/001.png", "No such file or directory")]


def test_features_that_are_not_finite_are_failures_never_rows(photos, out, monkeypatch):
    forward = PixelEngine.forward

    def broken(engine, batch):
        (features,) = forward(engine, batch)
        features[:2, 5] = np.nan, np.inf
        return [features]

    with monkeypatch.context() as patched:
        patched.setattr(PixelEngine, "forward", broken)
        cache = extract(photos, PIXELS, out=out)
    assert len(cache.failures) == 4
    assert {(one.status, one.reason) for one in cache.failures} == {
        ("nonfinite", "tap pixels:size=8/top gives features that are not finite")
    }
    assert np.isfinite(cache.arrays()[0]).all()
    assert len(rows_of(out, "pixels:size=8/top")) == 32
    healed = extract(photos, PIXELS, out=out, rehash=True)
    assert (healed.report.computed, healed.failures) == (4, ())


# What goes in, what comes out


def test_a_flat_folder_is_cached_without_labels(photos, out):
    cache = extract(photos / "red", PIXELS, out=out)
    assert (cache.classes, cache.splits, len(cache.rows)) == ((), {}, 12)
    assert cache.features(cache.rows).shape == (12, 192)


def test_folders_that_are_splits_decide(tmp_path, out):
    for seed, name in enumerate(("train", "val", "test")):
        write_images(tmp_path / "photos" / name, 4, seed=seed)
    cache = extract(tmp_path / "photos", PIXELS, out=out)
    assert cache.splits == {"train": 12, "val": 12, "test": 12}


def test_names_that_are_not_utf8_go_all_the_way(photos, out):
    (photos / "red" / "000.png").rename(photos / "red" / "caf\udce9.png")
    (photos / "blue").rename(photos / "bl\udcfc")
    cache = Cache.open(extract(photos, PIXELS, out=out).path)
    assert cache.classes == ("bl\udcfc", "green", "red")
    assert "red/caf\udce9.png" in {row.path for row in cache.usable()}


def test_progress_counts_every_image(photos, out):
    ticks = []
    extract(photos, PIXELS, out=out, batch=10, progress=ticks.append)
    assert [(tick.done, tick.total) for tick in ticks if tick.step == "extract pixels:size=8/top"] == [
        (0, 36),
        (10, 36),
        (20, 36),
        (30, 36),
        (36, 36),
    ]


def test_provenance_says_what_computed(photos, out):
    extract(photos, [PIXELS, TOY], out=out)
    with h5py.File(out) as file:
        assert b'"engine":"numpy"' in file["taps"]["pixels:size=8/top"].attrs["provenance"]
        assert b'"engine":"keras ' in file["taps"][f"{TOY}/top"].attrs["provenance"]


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_holds_at_least_one_image(photos, out, batch):
    with pytest.raises(UsageError, match=rf"`batch` takes auto or a number of images from 1; got {batch}"):
        extract(photos, PIXELS, out=out, batch=batch)


def test_nothing_is_written_for_a_request_that_cannot_be_meant(photos, out):
    with pytest.raises(UnknownBackbone):
        extract(photos, [PIXELS, "mobilnet_v2x"], out=out)
    assert list(out.parent.iterdir()) == [photos]


def test_a_file_that_is_no_cache_is_not_overwritten(photos, out):
    out.write_text("my thesis")
    with pytest.raises(UsageError, match=r"is there already and is no cache of featcache, so it is kept"):
        extract(photos, PIXELS, out=out)
    assert out.read_text() == "my thesis"


def test_force_keeps_the_old_file_until_the_new_cache_is_there(photos, tmp_path):
    old = tmp_path / "c.h5"
    old.write_bytes(b"mine")
    with pytest.raises(UsageError):
        extract(photos, "pixels:size=4", out=old)
    with pytest.raises(UnknownBackbone):
        extract(photos, "pixel:size=4", out=old, force=True)
    with pytest.raises(UsageError):
        extract(photos, "glyphnet", tap="nowhere", out=old, force=True)
    assert old.read_bytes() == b"mine"
    cache = extract(photos, "pixels:size=4", out=old, force=True)
    assert len(cache.rows) == 36
    assert not list(tmp_path.glob("c.h5.parts/part*"))


def test_an_extraction_with_nothing_to_do_needs_no_place_to_write(photos, tmp_path, monkeypatch):
    first = extract(photos, "pixels:size=4", out=tmp_path / "c.h5")

    def refused(path):
        raise DiskFault(f"Cannot write {path}: Read-only file system. Choose another place")

    monkeypatch.setattr("featcache.outputs.check_writable", refused)
    again = extract(photos, "pixels:size=4", out=tmp_path / "c.h5")
    assert again.report.computed == 0
    assert again.rows == first.rows
