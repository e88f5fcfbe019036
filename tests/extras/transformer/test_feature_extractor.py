"""A transformer computes each image once, gives the features of `extract`, and leaves the labels of a cache alone."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from extraction.counting import count
from PIL import Image
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from tiny import TOY, write_images

import featcache as fc
from featcache import trust
from featcache.cache.exchange import merge_caches
from featcache.errors import ImagesNotFound, NotACache, NotImages, UnreadableImages, UsageError, WeightsMismatch

PIXELS = "pixels:size=8"
SEARCH = Path(__file__).with_name("counted_search.py")
GRID = {"logisticregression__C": [0.1, 1.0]}


@pytest.fixture
def work(monkeypatch):
    """Return what counts every image that goes through an engine."""
    return count(monkeypatch)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "features.h5"


@pytest.fixture
def paths(photos):
    return sorted(map(str, photos.rglob("*.png")))


def labels_of(paths):
    return [Path(path).parent.name for path in paths]


def opened(path):
    """Return the picture in a file, read whole so that the file is closed."""
    with Image.open(path) as picture:
        picture.load()
    return picture


# Nothing is computed twice


@pytest.mark.parametrize("backbone", [PIXELS, pytest.param(TOY, marks=pytest.mark.slow)])
def test_a_grid_search_runs_each_image_through_the_backbone_once(paths, out, work, backbone):
    pipeline = make_pipeline(fc.FeatureExtractor(backbone, cache=out), StandardScaler(), LogisticRegression())
    labels = labels_of(paths)
    first = GridSearchCV(pipeline, GRID, cv=2).fit(paths, labels)
    assert work.images == len(paths)
    assert first.best_score_ > 0.5

    second = GridSearchCV(pipeline, GRID, cv=2).fit(paths, labels)
    second.predict(paths)
    assert work.images == len(paths)
    assert second.cv_results_["mean_test_score"].tolist() == first.cv_results_["mean_test_score"].tolist()


@pytest.mark.slow
def test_processes_that_share_a_new_cache_compute_each_image_once(photos, paths, out, tmp_path):
    log = tmp_path / "computed"
    command = [sys.executable, str(SEARCH), str(photos), str(out), str(log)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) > 0.5
    assert log.stat().st_size == len(paths)
    again = fc.FeatureExtractor(PIXELS).fit_transform(paths)
    assert fc.FeatureExtractor(PIXELS, cache=out).fit_transform(paths).tolist() == again.tolist()


def test_without_a_cache_the_features_stay_as_long_as_the_object(paths, work):
    extractor = fc.FeatureExtractor(PIXELS).fit(paths)
    extractor.transform(paths)
    assert work.images == len(paths)
    pickle.loads(pickle.dumps(extractor)).transform(paths[:5])
    assert work.images == len(paths) + 5


@pytest.mark.slow
def test_images_that_come_one_at_a_time_do_not_build_the_network_again(paths, out, work):
    extractor = fc.FeatureExtractor(TOY, cache=out)
    features = [extractor.transform([path])[0].tolist() for path in paths[:4]]
    assert (work.images, work.builds) == (4, 1)
    assert fc.FeatureExtractor(TOY).fit_transform(paths[:4]) == pytest.approx(np.array(features), abs=1e-6)

    # The engine of one layer does not give another.
    other_layer = extractor.set_params(tap="block_3_relu").transform(paths[:1])
    assert other_layer.shape[1] < len(features[0])
    work.builds = 0
    pickle.loads(pickle.dumps(extractor)).transform(paths[4:5])
    assert work.builds == 1


def test_copies_and_repeated_paths_are_computed_once(paths, out, tmp_path, work):
    copy = tmp_path / "copy.png"
    copy.write_bytes(Path(paths[0]).read_bytes())
    features = fc.FeatureExtractor(PIXELS, cache=out).fit_transform([paths[1], paths[0], str(copy), paths[1]])
    assert work.images == 2
    assert features[1].tolist() == features[2].tolist()
    assert features[0].tolist() == features[3].tolist()
    assert features[0].tolist() != features[1].tolist()


# The features of `extract`


def test_features_are_those_of_extract_in_the_order_of_the_images(photos, paths, out, work):
    cache = fc.extract(photos, [TOY, PIXELS], out=out)
    rows = {str(photos / row.path): row for row in cache.rows}
    num_computed = work.images
    shuffled = list(reversed(paths))
    features = fc.FeatureExtractor([TOY, PIXELS], cache=out).fit_transform(shuffled)
    expected = [cache.features([rows[path] for path in shuffled], name) for name in (f"{TOY}/top", f"{PIXELS}/top")]
    assert features.dtype == np.float32
    assert features.tolist() == np.concatenate(expected, axis=1).tolist()
    assert work.images == num_computed


def test_a_labelled_cache_keeps_its_images_labels_and_splits(photos, paths, out, tmp_path, work):
    before = fc.extract(photos, PIXELS, out=out)
    new = sorted(write_images(tmp_path / "new", per_class=2, first=100).rglob("*.png"))
    fc.FeatureExtractor(PIXELS, cache=out).fit([*new, *map(Path, paths)])
    after = fc.Cache.open(out)
    assert (after.rows, after.split_spec, after.listing) == (before.rows, before.split_spec, before.listing)
    assert work.images == len(paths) + len(new)
    written = out.stat()
    fc.FeatureExtractor(PIXELS, cache=out).fit_transform(new)
    assert out.stat() == written  # what is all there writes nothing, not even the time of reading
    assert fc.sweep(after, "ridge").cache().rows == before.rows


def test_extract_takes_over_a_cache_of_a_transformer_with_any_split(photos, paths, out, work):
    fc.FeatureExtractor(PIXELS, cache=out).fit(paths)
    assert fc.Cache.open(out).rows == ()
    cache = fc.extract(photos, PIXELS, out=out, split="50/50")
    assert work.images == len(paths)
    assert len(cache.rows) == len(paths)
    assert cache.splits.keys() == {"train", "val"}


@pytest.mark.parametrize("is_first", [True, False])
def test_a_cache_of_a_transformer_merges_with_a_labelled_one(photos, paths, out, tmp_path, is_first):
    labelled = fc.extract(photos, PIXELS, out=tmp_path / "labelled.h5", split="60/40")
    new = sorted(write_images(tmp_path / "new", per_class=2, first=100).rglob("*.png"))
    features = fc.FeatureExtractor(PIXELS, cache=out).fit_transform(new)
    sources = [out, labelled.path] if is_first else [labelled.path, out]
    merged = merge_caches(sources, tmp_path / "merged.h5")
    assert (merged.rows, merged.split_spec, merged.listing) == (labelled.rows, labelled.split_spec, labelled.listing)
    assert fc.FeatureExtractor(PIXELS, cache=merged.path).fit_transform(new).tolist() == features.tolist()


@pytest.mark.parametrize("kind", ["list", "array", "pillow"])
def test_images_in_memory_have_the_features_of_their_pixels(paths, out, work, kind):
    pictures = list(map(opened, paths))
    pixels = list(map(np.asarray, pictures))
    images = {"list": pixels, "array": np.stack(pixels), "pillow": pictures}[kind]
    extractor = fc.FeatureExtractor(PIXELS, cache=out)
    assert extractor.fit_transform(images).tolist() == extractor.transform(paths).tolist()
    extractor.transform(pixels)
    assert work.images == 2 * len(paths)  # the bytes of a file are not those of its pixels


def test_a_fitted_pipeline_survives_pickling(paths, out):
    pipeline = make_pipeline(fc.FeatureExtractor(PIXELS, cache=out), LogisticRegression()).fit(paths, labels_of(paths))
    again = pickle.loads(pickle.dumps(pipeline))
    assert again.predict_proba(paths).tolist() == pipeline.predict_proba(paths).tolist()


def test_other_features_than_those_of_fit_are_refused(paths, out):
    extractor = fc.FeatureExtractor(PIXELS, cache=out).fit(paths)
    with pytest.raises(WeightsMismatch, match=f"^FeatureExtractor was fitted on {PIXELS}/top, and would now give"):
        extractor.set_params(resize="pad").transform(paths)


# A run of featcache


def test_the_best_head_of_a_run_and_its_extractor_are_one_pipeline(toy_run, tmp_path):
    cache = toy_run.cache()
    rows = cache.usable("val")
    paths = [str(cache.root / row.path) for row in rows]
    pipeline = make_pipeline(fc.FeatureExtractor.for_trial(toy_run.best), toy_run.best.estimator)
    expected = toy_run.best.estimator.predict(toy_run.best.features(rows))
    assert pipeline.predict(paths).tolist() == expected.tolist()
    assert len(pipeline[0].get_feature_names_out()) == pipeline[0].transform(paths).shape[1]
    with pytest.raises(WeightsMismatch):
        pipeline.set_params(featureextractor__size=48, featureextractor__cache=tmp_path / "other.h5").predict(paths)


def test_the_extractor_of_a_trial_has_the_options_of_its_extraction(photos, out, tmp_path):
    options = {"resize": "pad", "pool": "max", "dtype": "float16", "tap": ["block_3_relu", "top"]}
    cache = fc.extract(photos, f"{TOY}:seed=3", out=out, size=48, **options)
    run = fc.sweep(cache, "ridge", taps="+".join(cache.taps), cv=3, out=tmp_path / "run")
    extractor = fc.FeatureExtractor.for_trial(run.best)
    paths = [str(cache.root / row.path) for row in cache.rows]
    assert extractor.transform(paths).tolist() == run.best.features(cache.rows).tolist()


def test_a_trial_on_two_backbones_needs_two_extractors(photos, out, tmp_path):
    cache = fc.extract(photos, [PIXELS, "pixels:size=4"], out=out)
    run = fc.sweep(cache, "ridge", taps="+".join(cache.taps), cv=3, out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"which one extraction does not give. Join one FeatureExtractor for each tap"):
        fc.FeatureExtractor.for_trial(run.best)


@pytest.mark.parametrize("is_named", [False, True])
def test_a_function_that_only_a_run_names_is_not_called(photos, out, tmp_path, monkeypatch, is_named):
    (tmp_path / "shop_nets.py").write_text(
        "def tiny():\n"
        "    import keras\n"
        "    keras.utils.set_random_seed(0)\n"
        "    images = keras.Input((16, 16, 3))\n"
        "    return keras.Model(images, keras.layers.Conv2D(4, 3)(images))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cache = fc.extract(photos, "shop_nets:tiny:mode=unit", out=out)
    run = fc.sweep(cache, "ridge", cv=3, out=tmp_path / "run")
    paths = [str(photos / row.path) for row in cache.rows]
    monkeypatch.setattr(trust, "ALLOWED", set())
    if is_named:
        fc.allow("shop_nets:tiny")
        features = fc.FeatureExtractor.for_trial(run.best).transform(paths)
        assert features.tolist() == run.best.features(cache.rows).tolist()
    else:
        with pytest.raises(UsageError, match=r"names shop_nets:tiny. If you trust that code: .*fc.allow"):
            fc.FeatureExtractor.for_trial(run.best)


# Columns


def test_a_column_of_paths_goes_beside_other_columns(paths, out):
    frame = pd.DataFrame({"photo": paths, "camera": ["a", "b", "c"] * 12}, index=range(100, 136))
    for column in ("photo", ["photo"]):
        columns = ColumnTransformer(
            [("image", fc.FeatureExtractor(PIXELS, cache=out), column), ("camera", OneHotEncoder(), ["camera"])],
            sparse_threshold=0,
        ).set_output(transform="pandas" if column == "photo" else "default")
        columns.set_params(camera__sparse_output=False)
        columns.fit(frame)
        names = columns.get_feature_names_out()
        assert names[0] == f"image__{PIXELS}/top_0"
        assert columns.transform(frame).shape == (36, 192 + 3) == (36, len(names))
        assert make_pipeline(columns, LogisticRegression()).fit(frame, labels_of(paths)).predict(frame[:1]) == ["blue"]


def test_pandas_output_keeps_the_index_and_names_tap_and_number(paths, out):
    frame = pd.DataFrame({"photo": paths}, index=[f"row {number}" for number in range(len(paths))])
    features = fc.FeatureExtractor(PIXELS, cache=out).set_output(transform="pandas").fit_transform(frame)
    assert list(features.index) == list(frame.index)
    assert list(features.columns[:2]) == [f"{PIXELS}/top_0", f"{PIXELS}/top_1"]


def test_another_column_than_in_fit_is_refused(paths, out):
    extractor = fc.FeatureExtractor(PIXELS, cache=out).fit(pd.DataFrame({"photo": paths}))
    with pytest.raises(ValueError, match="feature names should match"):
        extractor.transform(pd.DataFrame({"path": paths}))


# Bad input: each is one line, and what users of scikit-learn catch


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([], r"^No images: X has 0 sample\(s\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"^The array has no images: its shape is \(0, 8, 8, 3\)"),
        ("photos", r"^X is the text 'photos', not a list of images"),
        (Image.new("RGB", (8, 8)), r"^X is one Pillow image, not a list .* Put it into a list: \[image\]"),
        (5, "^X is of type int. Give a list of paths"),
        ([5], "^Sample 0 is 5 .int., not a path or an image"),
        (["a.png", float("nan")], "^Sample 1 is nan .float., not a path, as the first is"),
        ([Image.new("RGB", (8, 8)), "a.png"], "^Sample 1 is 'a.png' .str., not an image, as the first is"),
        (np.zeros((20, 5)), r"^The array holds float64, images are uint8 or uint16"),
        (np.zeros((20, 5), np.uint8), r"^The array has shape \(20, 5\), images are \(N, H, W\)"),
        (np.zeros((4, 8, 8, 3)), r"^The array holds float64.* \(x \* 255\).astype\('uint8'\)"),
        (np.zeros((4, 3, 8, 8), np.uint8), r"np.moveaxis\(x, 1, -1\)"),
        (np.zeros((8, 8, 3), np.uint8), r"may be one image or 8 narrow ones. Give X\[None\] for one image"),
        (pd.DataFrame({"path": ["a"], "label": ["b"]}), r"with 2 columns \(path, label\); images stand in one"),
        (np.array([["a", "b"]]), r"^X is an array of shape \(1, 2\) and type <U1"),
    ],
    ids=lambda value: "",
)
def test_what_is_no_list_of_images_is_refused_in_one_line(X, message, out):
    with pytest.raises(NotImages, match=message) as refused:
        fc.FeatureExtractor(PIXELS, cache=out).fit(X)
    assert isinstance(refused.value, ValueError)
    assert "\n" not in str(refused.value)
    assert not out.exists()


def test_paths_that_do_not_exist_are_all_named_before_anything_is_computed(paths, out, work):
    with pytest.raises(
        FileNotFoundError, match=r"^2 images of 38 cannot be found: gone.png, /a/b.png. The cur"
    ) as raised:
        fc.FeatureExtractor(PIXELS, cache=out).fit([*paths, "gone.png", "/a/b.png"])
    assert isinstance(raised.value, ImagesNotFound)
    assert not work.images


def test_images_that_cannot_be_read_are_all_named_and_the_others_kept(paths, out, tmp_path, work):
    broken = [tmp_path / "empty.png", tmp_path / "text.png"]
    broken[0].write_bytes(b"")
    broken[1].write_text("text")
    extractor = fc.FeatureExtractor(PIXELS, cache=out)
    with pytest.raises(
        ValueError, match=r"^2 images of 38 cannot be used: .*empty.png \(.*\), .*text.png \("
    ) as raised:
        extractor.fit([*paths, *broken])
    assert isinstance(raised.value, UnreadableImages)
    assert "on_error='nan'" in str(raised.value)

    features = extractor.set_params(on_error="nan").transform([broken[0], paths[0], *broken, "gone.png"])
    assert np.isnan(features).all(axis=1).tolist() == [True, False, True, True, True]
    assert work.images == len(paths)
    with pytest.raises(UnreadableImages, match=r"^1 image of 1 cannot be used: .*empty.png"):
        extractor.transform([broken[0]])


def test_the_images_of_many_that_are_named_fit_on_a_line(out):
    with pytest.raises(ImagesNotFound, match=r"^100 images of 100 cannot be found: 0.png, .*, 19.png and 80 more. The"):
        fc.FeatureExtractor(PIXELS, cache=out).fit([f"{number}.png" for number in range(100)])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"backbone": "mobilnet"}, "^Unknown backbone 'mobilnet' .did you mean mobilenet"),
        ({"backbone": None}, "^`backbone` takes names, as a text or a list of texts; got None"),
        ({"tap": "block_9"}, "^'pixels' has no layers, so `tap` takes top; got block_9"),
        ({"pool": "none"}, "^`pool='none'` gives maps of features"),
        ({"resize": 3}, "^`resize` takes stretch, crop, pad; got '3'"),
        ({"on_error": "skip"}, "^`on_error` takes raise, nan; got 'skip'"),
        ({"cache": 3}, "^`cache` takes the path of a file, or None; got 3"),
        ({"precision": "int8", "cache": None}, "^`precision='int8'` needs a `cache`"),
        ({"batch": 0}, "^`batch` takes auto or a number of images from 1"),
    ],
    ids=lambda value: "",
)
def test_parameters_that_cannot_be_meant_are_refused_by_fit_and_not_before(parameters, message, paths, out):
    extractor = fc.FeatureExtractor(**{"backbone": PIXELS, "cache": out, **parameters})
    with pytest.raises(ValueError, match=message) as raised:
        extractor.fit(paths)
    assert isinstance(raised.value, UsageError)


def test_a_file_that_is_no_cache_stays_as_it_is(paths, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(NotACache, match="is not an HDF5 file"):
        fc.FeatureExtractor(PIXELS, cache=file).fit(paths)
    assert file.read_text() == "mine"


def test_a_folder_that_is_no_cache_is_refused_by_the_name_of_our_parameter(paths, tmp_path):
    with pytest.raises(ValueError, match=f"^{tmp_path} is a folder, not a cache. Give `cache` the name of a file"):
        fc.FeatureExtractor(PIXELS, cache=tmp_path).fit(paths)
