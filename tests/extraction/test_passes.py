"""What one extraction does for several backbones, views and kinds of storage."""

import os
import shutil
from collections import Counter as Count

import h5py
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image, ImageOps
from tiny import TOY, write_images

from featcache.cache import parts
from featcache.cache.check import verify
from featcache.cache.reader import Cache
from featcache.errors import DiskFault, NoImages, NotACache, UsageError
from featcache.extraction import estimate, extract, pipeline
from featcache.extraction.compute import Timing
from featcache.extraction.engines import KerasEngine, PixelEngine
from featcache.images.decode import Undecodable
from featcache.images.manifest import scan

PIXELS = "pixels:size=8"
TOP = "glyphnet:weights=none/top"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "cache.h5"


@pytest.fixture
def decoded(monkeypatch):
    """Return how often each image was decoded."""
    times, decode = Count(), pipeline.decode_picture

    def counting(data, preprocess, views, digest):
        times[digest] += 1
        return decode(data, preprocess, views, digest)

    monkeypatch.setattr(pipeline, "decode_picture", counting)
    return times


def test_backbones_that_take_the_same_pixels_share_one_decoding(photos, out, decoded, work):
    extract(photos, ["glyphnet:weights=none", "pixels", "glyphnet:weights=none:seed=3"], out=out)
    assert set(decoded.values()) == {1}
    assert (len(decoded), work.images) == (36, 108)


def test_backbones_of_other_sizes_decode_anew(photos, out, decoded):
    extract(photos, [TOY, PIXELS], out=out)
    assert set(decoded.values()) == {2}


def test_in_one_pass_each_backbone_computes_only_what_it_lacks(photos, out, work):
    extract(photos, "pixels", out=out)
    write_images(photos, 4, first=12)
    before = work.images
    report = extract(photos, ["pixels", TOY], out=out).report
    assert (report.computed, work.images - before) == (12 + 48, 60)
    alone = extract(photos, ["pixels", TOY], out=out.with_name("fresh.h5"))
    assert np.array_equal(Cache.open(out).arrays(tap=TOP)[0], alone.arrays(tap=TOP)[0])


def test_a_mirrored_view_has_the_features_of_mirrored_images(photos, out, tmp_path):
    for path in photos.rglob("*.png"):
        mirrored = tmp_path / "mirrored" / path.relative_to(photos)
        mirrored.parent.mkdir(parents=True, exist_ok=True)
        ImageOps.mirror(Image.open(path)).save(mirrored)
    cache = extract(photos, TOY, out=out, views="flip")
    other = extract(tmp_path / "mirrored", TOY, out=tmp_path / "mirrored.h5")
    assert list(cache.taps) == [TOP, f"{TOP}@hflip"]
    flipped = {row.path: cache.features([row], f"{TOP}@hflip")[0] for row in cache.rows}
    for row in other.rows:
        assert np.allclose(other.features([row])[0], flipped[row.path], atol=1e-5)


def test_views_are_rows_of_their_own_and_only_new_ones_are_computed(photos, out, work):
    extract(photos, PIXELS, out=out)
    cache = extract(photos, PIXELS, out=out, views="4")
    assert list(cache.taps) == [f"{PIXELS}/top{view}" for view in ("", "@crop-1", "@crop-2", "@hflip")]
    X, y = cache.arrays("train", views=True)
    plain, labels = cache.arrays("train")
    assert np.array_equal(X[: len(plain)], plain)
    assert (len(X), list(y)) == (4 * len(plain), 4 * list(labels))
    assert cache.tap().name == f"{PIXELS}/top"
    assert extract(photos, PIXELS, out=out, views="4").report.computed == 0


def test_without_pooling_the_maps_are_kept_and_average_to_the_pooled_features(photos, out):
    cache = extract(photos, TOY, out=out, pool="none")
    maps = cache.features(cache.rows)
    assert maps.ndim == 4
    pooled = extract(photos, TOY, out=out)
    assert np.allclose(maps.mean(axis=(1, 2)), pooled.features(cache.rows, TOP), atol=1e-5)
    assert pooled.vectors == (TOP,)
    assert verify(out).problems == ()


def test_halved_storage_is_a_tap_of_its_own_and_rounds(photos, out):
    whole = extract(photos, TOY, out=out).arrays(tap=TOP)[0]
    cache = extract(photos, TOY, out=out, dtype="float16")
    name = next(name for name in cache.taps if name != TOP)
    with h5py.File(out) as file:
        assert file[f"taps/{name}/features"].dtype == np.float16
    halved = cache.arrays(tap=name)[0]
    assert halved.dtype == np.float32
    assert np.array_equal(halved, whole.astype(np.float16).astype(np.float32))


def test_what_float16_cannot_hold_is_refused_and_named(photos, out, monkeypatch):
    def forward(self, batch):
        return [np.array([[7e4 if image.max() == 255 else 65504.0] for image in batch], np.float32)]

    Image.new("RGB", (9, 9), (255, 0, 0)).save(photos / "red" / "bright.png")
    for path in photos.rglob("0*.png"):
        path.unlink()
    Image.new("RGB", (9, 9), (25, 0, 0)).save(photos / "red" / "dark.png")
    monkeypatch.setattr(PixelEngine, "forward", forward)
    cache = extract(photos, PIXELS, out=out, dtype="float16")
    [failure] = cache.failures
    assert (failure.path, failure.status) == ("red/bright.png", "nonfinite")
    assert failure.reason.endswith("gives features that are too large for float16; use `dtype='float32'`")
    assert cache.features(cache.usable()).tolist() == [[65504.0]]
    assert not any(one.status == "nonfinite" for one in extract(photos, PIXELS, out=out.with_name("b.h5")).failures)


@pytest.mark.slow
def test_a_cache_may_stay_a_folder_of_parts(photos, out, work, tmp_path):
    folder = tmp_path / "cache"
    cache = extract(photos, [TOY, PIXELS], out=folder, layout="parts", batch=5)
    one_file = extract(photos, [TOY, PIXELS], out=out)
    for tap in one_file.taps:
        assert np.array_equal(cache.arrays(tap=tap)[0], one_file.arrays(tap=tap)[0])
    assert Cache.open(folder).taps == one_file.taps
    assert len(list(folder.glob("part-*.h5"))) == 2  # small parts are put together
    before = work.images
    assert extract(photos, [TOY, PIXELS], out=folder).report.hits == 36
    write_images(photos, 1, first=12)
    assert extract(photos, [TOY, PIXELS], out=folder).report.computed == 6
    assert work.images - before == 6
    assert verify(folder).problems == ()


@pytest.mark.parametrize(("first", "second"), [("file", "parts"), ("parts", "file")])
def test_a_cache_of_one_layout_does_not_become_the_other(photos, tmp_path, first, second):
    extract(photos, PIXELS, out=tmp_path / "c", layout=first)
    with pytest.raises(UsageError, match=rf"for `layout={second}` use another `out`"):
        extract(photos, PIXELS, out=tmp_path / "c", layout=second)


def test_an_estimate_writes_nothing_and_says_what_is_missing(photos, out, work):
    extract(photos, TOY, out=out)
    write_images(photos, 10, first=12)
    before = sorted((path, path.stat().st_mtime_ns) for path in out.parent.iterdir())
    expected = estimate(photos, [TOY, PIXELS], out=out)
    assert (expected.images, expected.hits, expected.missing) == (66, 0, 30 + 66)
    assert expected.bytes == 30 * 256 * 4 + 66 * 192 * 4
    assert expected.seconds > 0
    assert expected.free_bytes > 10**6
    assert expected.taps == (TOP, f"{PIXELS}/top")
    assert sorted((path, path.stat().st_mtime_ns) for path in out.parent.iterdir()) == before


def test_an_estimate_of_what_is_all_there_costs_nothing(photos, out, work):
    extract(photos, TOY, out=out)
    images = work.images
    expected = estimate(photos, TOY, out=out)
    assert (expected.hits, expected.missing, expected.bytes, expected.seconds) == (36, 0, 0, 0.0)
    assert (work.images, work.builds) == (images, 1)


def test_a_disk_that_cannot_hold_the_features_is_refused_before_the_work(photos, out, work, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 20_000}))
    with pytest.raises(DiskFault, match=r"cache.h5 would need .* MB until it is merged, and its disk has 0 MB free"):
        extract(photos, PIXELS, out=out)
    assert len(work.batches) == 1


def test_a_row_that_is_not_finite_stays_named_until_it_is_computed_again(photos, out, monkeypatch):
    forward = KerasEngine.forward

    def with_a_hole(engine, batch):
        features = forward(engine, batch)
        features[0][0] = np.inf
        return features

    with monkeypatch.context() as broken:
        broken.setattr(KerasEngine, "forward", with_a_hole)
        [failure] = extract(photos, TOY, out=out, batch=64).failures
    assert (failure.status, failure.reason) == ("nonfinite", f"tap {TOP} gives features that are not finite")
    assert extract(photos, PIXELS, out=out).failures == (failure,)
    assert extract(photos, TOY, out=out).report.computed == 0
    whole = extract(photos, TOY, out=out, rehash=True)
    assert (whole.failures, whole.report.computed) == ((), 1)


def test_an_extraction_waits_for_another_one_and_uses_what_it_computed(photos, out, work):
    said = []

    def first_one_ends(tick):
        said.append(tick.note)
        if tick.step == "wait":
            parts.lock(out, lambda: None)  # looked at only: the lock of the other is released below
            held.release()

    folder = parts.parts_folder(out)
    folder.mkdir()
    held = FileLock(folder / ".lock")
    held.acquire()
    extract(photos, PIXELS, out=out, progress=first_one_ends)
    assert f"Another extraction is at work on {out}; waiting for it to end" in said
    assert (work.images, folder.exists()) == (36, False)


def test_the_tap_that_is_not_finite_is_the_one_that_is_named(photos, out, monkeypatch):
    forward = KerasEngine.forward

    def with_a_hole(engine, batch):
        features = forward(engine, batch)
        features[1][0] = np.nan
        return features

    monkeypatch.setattr(KerasEngine, "forward", with_a_hole)
    [failure] = extract(photos, TOY, tap="block_1_relu,top", out=out, batch=64).failures
    assert failure.reason.startswith("tap glyphnet:weights=none/top gives")


def test_adding_a_view_computes_that_view_only(photos, out, work):
    extract(photos, TOY, out=out)
    report = extract(photos, TOY, out=out, views="flip").report
    assert (report.computed, work.images) == (36, 72)


def test_a_copy_stands_in_for_an_image_that_goes_meanwhile(photos, out):
    shutil.copy(photos / "blue" / "000.png", photos / "red" / "copy.png")
    images = scan(photos)
    (photos / "blue" / "000.png").unlink()
    cache = extract(images, PIXELS, out=out)
    assert [one.path for one in cache.failures] == ["blue/000.png"]
    assert len(cache.features(cache.usable())) == 36


def test_a_lack_of_memory_is_not_held_against_an_image(photos, out, monkeypatch):
    def full(*args):
        raise Undecodable("no_memory", "no memory for it")

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "decode_picture", full)
        with pytest.raises(NoImages, match="no memory for it"):
            extract(photos, PIXELS, out=out)
    assert extract(photos, PIXELS, out=out).failures == ()


def test_asking_twice_is_asking_once(photos, out, work):
    extract(photos, [TOY, TOY], tap="top,top", out=out)
    assert work.images == 36


def test_raw_pixels_are_what_they_are(photos, out):
    cache = extract(photos, PIXELS, out=out, precision="bfloat16", pool="avg", engine="openvino")
    assert (cache.tap().name, cache.tap().precision, cache.tap().pooling) == (f"{PIXELS}/top", "float32", "flatten")
    with pytest.raises(UsageError, match=r"'pixels' has no layers, so `tap` takes top; got deep"):
        extract(photos, PIXELS, tap="deep", out=out)


def test_a_folder_that_is_no_cache_stays_as_it_is(photos, tmp_path):
    with pytest.raises(UsageError, match=r"photos is a folder, not a cache. Give `out` .* such as photos.h5"):
        extract(photos, PIXELS, out=photos)
    before = sorted(photos.iterdir())
    estimate(photos, PIXELS, out=tmp_path / "new", layout="parts")
    assert (sorted(photos.iterdir()), (tmp_path / "new").exists()) == (before, False)


@pytest.mark.parametrize("layout", ["parts", None])
def test_a_folder_of_parts_that_was_stopped_before_its_first_part_is_gone_on_with(layout, photos, tmp_path):
    for image in photos.rglob("*.png"):
        os.utime(image, (0, 0))  # what was written just now is not in an index
    folder = tmp_path / "c"
    scan(photos, index=folder / "index.json")
    for name in (".lock", "part-0.damaged", ".tmp-elsewhere+7+00000000+00000000"):
        (folder / name).touch()
    with pytest.raises(NotACache, match=rf"No cache at {folder}. An extraction was begun; finish it"):
        Cache.open(folder)
    with pytest.raises(UsageError, match=r"is a folder of parts; for `layout=file` use another `out`"):
        extract(photos, PIXELS, out=folder, layout="file")
    assert len(extract(photos, PIXELS, out=folder, layout=layout).rows) == 36


def test_a_folder_with_an_index_of_others_is_no_cache(photos, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.json").write_text("{}")
    with pytest.raises(UsageError, match=r"site is a folder, not a cache"):
        extract(photos, PIXELS, out=tmp_path / "site")
    assert (tmp_path / "site" / "index.json").read_text() == "{}"


def test_what_a_kill_left_of_the_folder_of_parts_goes_unless_another_extraction_is_at_work(photos, out):
    extract(photos, PIXELS, out=out)
    folder = out.with_name("cache.h5.parts")
    folder.mkdir()
    with FileLock(folder / ".lock"):
        extract(photos, PIXELS, out=out)
        assert folder.exists()
    extract(photos, PIXELS, out=out)
    assert not folder.exists()


def test_splits_decided_by_hash_stay_whatever_comes_beside_them(photos, out, tmp_path):
    table = tmp_path / "photos.csv"
    paths = sorted(path.relative_to(tmp_path) for path in photos.rglob("*.png"))
    rows = [f"{path},{path.parent.name},{'val' if path.name == '000.png' else ''}" for path in paths]
    table.write_text("\n".join(["path,label,split", *rows[:-11]]))
    before = {row.digest: row.split for row in extract(table, PIXELS, out=out).rows}
    table.write_text("\n".join(["path,label,split", *rows]))
    after = {row.digest: row.split for row in extract(table, PIXELS, out=out).rows}
    assert {digest: after[digest] for digest in before} == before


# Which options cost a forward pass


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "glyphnet:weights=none:seed=1"},
        {"size": 40},
        {"resize": "crop"},
        {"pool": "max"},
        {"pool": "none"},
        {"tap": "stem_relu"},
        {"dtype": "float16"},
        {"views": "hflip"},
        {"precision": "bfloat16"},
        {"decode": "draft"},
    ],
)
def test_what_changes_the_numbers_is_computed(photos, out, work, change):
    asked = {"backbone": TOY}
    names = set(extract(photos, **asked, out=out).taps)
    changed = extract(photos, **(asked | change), out=out)
    assert (changed.report.computed, work.images) == (36, 72)
    assert len(set(changed.taps) - names) == 1


@pytest.mark.parametrize(
    "change", [{"batch": 3}, {"engine": "keras"}, {"device": "cpu"}, {"strict": True}, {"rehash": True}, {"views": "1"}]
)
def test_what_does_not_change_the_numbers_costs_nothing(photos, out, work, change):
    before = extract(photos, TOY, out=out).path.read_bytes()
    assert extract(photos, TOY, out=out, **change).report.computed == 0
    assert (work.images, out.read_bytes()) == (36, before)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"batch": 0}, r"`batch` takes auto or a number of images from 1; got 0"),
        ({"batch": "many"}, r"`batch` takes auto or a number"),
        ({"engine": "kears"}, r"`engine` takes auto, keras, openvino; got 'kears' \(did you mean keras"),
        ({"decode": "fast"}, r"`decode` takes exact, draft"),
        ({"layout": "zip"}, r"`layout` takes file, parts"),
        ({"precision": "int4"}, r"`precision` takes"),
        ({"precision": "int8", "engine": "keras"}, r"`precision='int8'` is computed by OpenVINO; got `engine='keras'`"),
        ({"precision": "int8", "device": "gpu:1"}, r"`precision='int8'` is computed on the CPU; got `device='gpu:1'`"),
        ({"dtype": "float64"}, r"`dtype` takes"),
        ({"views": "many"}, r"`views` takes"),
        ({"pool": "sum"}, r"`pool` takes"),
    ],
)
def test_options_that_cannot_be_meant_are_named(photos, out, asked, message):
    with pytest.raises(UsageError, match=message):
        extract(photos, PIXELS, out=out, **asked)
    assert not out.exists()


def test_the_speed_of_a_backbone_leaves_out_the_batch_in_which_it_compiles():
    timing = Timing()
    assert timing.forward_s_each == 0
    timing.add(6.4, 32)
    assert timing.forward_s_each == pytest.approx(0.2)  # nothing better is known
    timing.add(3.2, 64)
    timing.add(1.6, 32)
    assert timing.forward_s_each == pytest.approx(0.05)
    assert timing.images == 128
