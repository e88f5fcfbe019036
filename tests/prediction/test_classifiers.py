"""Any Keras model predicts; what it does not say of itself is said."""

import hashlib
import json
import os
import re
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras.src.backend import config
from keras.src.legacy.saving import legacy_h5_format
from PIL import Image
from tiny import COLOURS, write_images

from featcache.backbones import imagenet
from featcache.errors import DataError, DiskFault, NotAModel, UsageError, WeightsMismatch, WeightsMissing
from featcache.models.modelfile import read_reference
from featcache.prediction import open_classifier, predict, predict_to
from featcache.spec import Preprocess

layers = keras.layers


@pytest.fixture
def photo(tmp_path):
    """Return a folder with one grey photo."""
    (tmp_path / "new").mkdir()
    Image.new("RGB", (20, 20), (100, 100, 100)).save(tmp_path / "new" / "a.png")
    return tmp_path / "new"


def saved(path, *tail, size=8, scaled=True):
    """Write a model that makes (mean red, mean green, mean blue) of an image, and then the tail."""
    head = [layers.Rescaling(1 / 255)] if scaled else []
    model = keras.Sequential([keras.Input((size, size, 3)), *head, layers.GlobalAveragePooling2D(), *tail])
    model.save(path)
    return path


def dense(values, activation=None):
    """Return a layer that gives these values whatever enters."""
    values = np.array(values, np.float32)
    made = layers.Dense(len(values), activation)
    made.build((None, 3))
    made.set_weights([np.zeros((3, len(values))), values])
    return made


def top_of(model, photo):
    """Return the classes and probabilities of the photo, and what is said of the model."""
    rows = []
    tally = predict_to([], model, photo, top=9, seen=rows.append)
    return dict(rows[0].top), " ".join(tally.notes)


def test_a_plain_model_has_numbers_for_classes_and_says_so(tmp_path, photo):
    found, said = top_of(saved(tmp_path / "m.keras", dense(np.log([1, 3]), "softmax")), photo)
    assert found == pytest.approx({"0": 0.25, "1": 0.75})
    assert said == f"{tmp_path / 'm.keras'}: it has no class names; its 2 outputs are called 0 to 1"


def test_logits_become_probabilities_and_it_says_so(tmp_path, photo):
    found, said = top_of(saved(tmp_path / "m.h5", dense(np.log([1, 3]))), photo)
    assert found == pytest.approx({"0": 0.25, "1": 0.75})
    assert "it ends in 'linear'; its outputs are assumed to be logits" in said


@pytest.mark.parametrize(("activation", "kind"), [("sigmoid", "probability"), (None, "logit")])
def test_one_output_is_that_of_class_1(activation, kind, tmp_path, photo):
    found, said = top_of(saved(tmp_path / "m.keras", dense([np.log(3)], activation)), photo)
    assert found == pytest.approx({"0": 0.25, "1": 0.75})
    assert f"its one output is assumed to be the {kind} of class 1" in said


def test_several_sigmoids_stay_as_they_are(tmp_path, photo):
    found, said = top_of(saved(tmp_path / "m.keras", dense([0, np.log(3)], "sigmoid")), photo)
    assert found == pytest.approx({"0": 0.5, "1": 0.75})
    assert "do not add up to 1" in said


def test_a_softmax_layer_and_a_nested_model_are_seen_through(tmp_path, photo):
    inner = keras.Sequential([keras.Input((3,)), dense(np.log([1, 3])), layers.Softmax()])
    other_type = layers.Activation("linear", dtype="float32")  # as models in mixed precision end
    for tail in ([inner], [dense(np.log([1, 3]), "softmax"), other_type]):
        found, said = top_of(saved(tmp_path / "m.keras", *tail), photo)
        assert found == pytest.approx({"0": 0.25, "1": 0.75})
        assert "assumed" not in said


def test_how_pixels_enter_is_assumed_unless_it_is_said(tmp_path, photo):
    path = saved(tmp_path / "m.keras", layers.Activation("sigmoid"), scaled=False)
    found, said = top_of(path, photo)
    assert set(found.values()) == {1.0}  # the sigmoid of 100
    assert f"0..255 as they are is assumed. Else: {path}:mode=tf (-1..1)" in said
    found, said = top_of(f"{path}:mode=unit", photo)
    assert list(found.values()) == pytest.approx([1 / (1 + np.exp(-100 / 255))] * 3)
    assert "0..255" not in said


def test_a_size_is_assumed_unless_it_is_said(tmp_path):
    path = saved(tmp_path / "m.keras", dense([0, 0], "softmax"), size=None)
    found = open_classifier(path)
    assert found.preprocess == Preprocess(224, mode="inside")
    assert f"224 x 224 is assumed. Else: {path}:size=160" in found.notes[0]
    assert open_classifier(f"{path}:size=40").preprocess.size == 40


def test_what_is_no_classifier_is_refused(tmp_path):
    keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3)]).save(tmp_path / "m.keras")
    with pytest.raises(NotAModel, match=r"gives \(None, 6, 6, 4\).*not one value for each class"):
        open_classifier(f"{tmp_path / 'm.keras'}:mode=tf")
    with pytest.raises(UsageError, match=r"takes the options mode=\.\., size=\.\.; got 'mod=tf'"):
        open_classifier(f"{tmp_path / 'm.keras'}:mod=tf")
    with pytest.raises(UsageError, match=r"`mode` takes tf, .*did you mean tf"):
        open_classifier(f"{tmp_path / 'm.keras'}:mode=tff")
    with pytest.raises(NotAModel, match=r"No model at .*gone\.keras(?: \(did you mean .*\))?\. Make one: featcache"):
        open_classifier(tmp_path / "gone.keras")


def test_probabilities_that_are_no_numbers_are_a_row_with_its_reason(tmp_path, photo):
    path = saved(tmp_path / "m.keras", dense([np.nan, 0], "softmax"))
    [row] = predict(path, photo)
    assert (row.status, row.top) == ("nonfinite", ())
    assert "no numbers" in row.reason


# Strange images


def test_images_unlike_those_it_knows_are_unknown(model, tmp_path):
    photos = write_images(tmp_path / "photos", seed=5)
    for at, pixels in enumerate([np.zeros((16, 16, 3)), np.full((16, 16, 3), 255)]):
        (photos / "strange").mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(photos / "strange" / f"{at}.png")
    rows = list(predict(model, photos, reject=0.2))
    threshold = read_reference(model).threshold(0.2).value
    known, strange = ([one for one in rows if one.path.startswith("strange") == which] for which in (False, True))
    assert all(one.unknown == (one.strangeness > threshold) for one in rows)
    assert all((one.predicted == "unknown") == one.unknown for one in rows)
    assert np.mean([one.unknown for one in known]) < 0.5
    assert np.mean([one.strangeness for one in strange]) > np.quantile([one.strangeness for one in known], 0.9)
    assert all(one.top[0][0] in COLOURS for one in rows)


def test_rejected_images_do_not_count_as_right_or_wrong(model, tmp_path):
    photos = write_images(tmp_path / "known", seed=5)
    tally = predict_to([], model, photos, reject=0.5)
    assert tally.unknown == tally.known_unknown > 0
    assert tally.answered == 36 - tally.unknown
    assert tally.threshold == read_reference(model).threshold(0.5)


def test_without_rejection_nothing_is_unknown(model, photos):
    assert all(one.strangeness is None and not one.unknown for one in predict(model, photos))


def test_a_model_without_a_reference_cannot_reject(model, tmp_path, photos):
    bare = tmp_path / "bare.keras"
    with zipfile.ZipFile(model) as full, zipfile.ZipFile(bare, "w") as archive:
        for name in full.namelist():
            if name != "featcache_reference.npz":
                archive.writestr(name, full.read(name))
    with pytest.raises(DataError, match=r"bare\.keras has nothing to tell strange images by.*Make it again"):
        next(predict(bare, photos, reject=0.02))
    assert len(list(predict(bare, photos))) == 36
    with pytest.raises(UsageError, match=r"`reject` needs a model of featcache.*m\.keras is none"):
        next(predict(saved(tmp_path / "m.keras", dense([0, 0], "softmax")), photos, reject=0.02))


# Views


def test_views_give_the_mean_of_their_probabilities(model, tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for name, shown in {"a": pixels, "b": pixels[:, ::-1]}.items():
        (tmp_path / name).mkdir()
        Image.fromarray(shown).save(tmp_path / name / "0.png")
    [one], [other] = (list(predict(model, tmp_path / name, top=3)) for name in "ab")
    [both] = predict(model, tmp_path / "a", top=3, views="flip")
    for label, share in both.top:
        assert share == pytest.approx((dict(one.top)[label] + dict(other.top)[label]) / 2, abs=1e-6)
    assert one.top != both.top


def test_how_strange_an_image_is_does_not_depend_on_views(model, photos):
    plain = [one.strangeness for one in predict(model, photos, reject=0.1)]
    assert [one.strangeness for one in predict(model, photos, reject=0.1, views="8")] == pytest.approx(plain)


def test_views_without_the_whole_image_are_refused(model, photos):
    with pytest.raises(UsageError, match=r"`views` takes flip, or a number of views.*got 'hflip'"):
        next(predict(model, photos, views="hflip"))


# ImageNet


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Put random weights of a small network with its top, and names of classes, where Keras looks for them."""
    home = tmp_path / "keras" / "models"
    home.mkdir(parents=True)
    monkeypatch.setenv("KERAS_HOME", str(home.parent))
    names = {str(number): [f"n{number:08d}", f"thing {number}"] for number in range(1000)}
    content = json.dumps(names).encode()
    (home / "imagenet_class_index.json").write_bytes(content)
    monkeypatch.setattr(imagenet, "CLASS_INDEX_MD5", hashlib.md5(content).hexdigest())
    return home


NETWORK = "mobilenet_v2:alpha=0.35:size=96"


@pytest.mark.slow
def test_a_network_with_its_top_names_imagenets_classes(weights, tmp_path, monkeypatch):
    file = imagenet.imagenet_files(NETWORK)[0]
    assert file == weights / "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96.h5"
    made = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(96, 96, 3))
    with h5py.File(file, "w") as content:
        legacy_h5_format.save_weights_to_hdf5_group(content, made)
    asked = []
    monkeypatch.setattr(
        "keras.src.applications.mobilenet_v2.file_utils.get_file",
        lambda name, *rest, **options: asked.append(name) or str(weights / name),
    )
    photos = write_images(tmp_path / "photos", per_class=1)
    found = list(predict(NETWORK, photos, top=3, imagenet=True))
    assert asked == []
    pixels = np.stack([np.asarray(Image.open(photos / one.path).resize((96, 96), 2)) for one in found])
    shares = made.predict(pixels / 127.5 - 1, verbose=0)
    assert [one.top[0][0] for one in found] == [f"thing {at}" for at in shares.argmax(axis=1)]


def test_another_class_index_is_not_used_and_stays(weights, tmp_path, photo, monkeypatch):
    index = weights / imagenet.CLASS_INDEX
    mine = index.read_bytes()
    monkeypatch.setattr(imagenet, "CLASS_INDEX_MD5", hashlib.md5(b"another").hexdigest())
    model = saved(tmp_path / "m.keras", dense(np.zeros(1000), "softmax"))
    message = rf"^{index} has other bytes than Keras' own file: its MD5 is {hashlib.md5(mine).hexdigest()}, Keras exp"
    with pytest.raises(WeightsMismatch, match=message):
        list(predict(model, photo, imagenet=True))
    assert index.read_bytes() == mine


def test_other_weights_under_the_name_of_imagenets_stay(weights):
    file = imagenet.imagenet_files("mobilenet_v3_small")[0]
    with h5py.File(file, "w") as content:
        content["mine"] = [1, 2, 3]
    mine = file.read_bytes()
    with pytest.raises(WeightsMismatch, match=rf"^{file} has other bytes than Keras' own file: .*It was left as it is"):
        imagenet.imagenet_classifier("mobilenet_v3_small")
    assert file.read_bytes() == mine


def test_a_top_takes_images_of_the_size_that_it_was_trained_at(weights):
    with pytest.raises(UsageError, match=r"^'mobilenet_v3_small' with its top takes images of 224 pixels; got size 96"):
        imagenet.imagenet_classifier("mobilenet_v3_small:size=96")


def test_a_folder_that_cannot_be_written_to_takes_no_download(weights, monkeypatch):
    index = weights / imagenet.CLASS_INDEX
    index.unlink()
    monkeypatch.setattr(os, "access", lambda folder, mode: False)
    with pytest.raises(DiskFault, match=rf"^{index} is missing, and {weights.parent} cannot be written to"):
        imagenet.class_names()
    with pytest.raises(DiskFault, match=r"^.*mobilenet_v3_small_224_1.0_float.h5 is missing, and"):
        imagenet.imagenet_classifier("mobilenet_v3_small")


def test_a_file_of_1000_classes_may_have_imagenets_names(weights, tmp_path, photo):
    values = np.zeros(1000)
    values[7] = 9
    found, _ = top_of(saved(tmp_path / "m.keras", dense(values, "softmax")), photo)
    assert next(iter(found)) == "7"
    [row] = predict(tmp_path / "m.keras", photo, imagenet=True)
    assert row.top[0][0] == "thing 7"
    with pytest.raises(UsageError, match=r"`imagenet` is about 1000 classes; .* has 2"):
        open_classifier(saved(tmp_path / "n.keras", dense([0, 0], "softmax")), imagenet=True)


def test_without_network_it_says_which_files_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(config, "keras_home", lambda: str(tmp_path))

    def refused(fname=None, origin=None, **options):
        raise Exception(f"URL fetch failure on {origin}: None -- [Errno -2] Name or service not known")

    monkeypatch.setattr("keras.src.applications.mobilenet_v2.file_utils.get_file", refused)
    said = (
        r"Put mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96.h5 \(https://storage.*_0.35_96.h5\) and "
        rf"imagenet_class_index.json \(https://.*json\) into {tmp_path / 'models'} \(KERAS_HOME is {tmp_path}\)"
    )
    with pytest.raises(WeightsMissing, match=said):
        open_classifier(NETWORK, imagenet=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("glyphnet", "takes one network that was trained on ImageNet"),
        ("mobilenet_v2,vgg16", "takes one network that was trained on ImageNet"),
        ("mobilenet_v2:alpha=0.9", "was never trained on ImageNet"),
        ("mobilenetv22", "Unknown backbone"),
    ],
)
def test_what_imagenet_has_no_classes_of_is_refused(name, message):
    with pytest.raises(UsageError, match=message):
        open_classifier(name, imagenet=True)


def test_a_model_of_featcache_names_its_classes_itself(model):
    with pytest.raises(UsageError, match=r"names its classes itself\. Leave out `imagenet`"):
        open_classifier(Path(model), imagenet=True)


def test_what_is_no_model_yet_is_told_what_it_is(toy, toy_run, tmp_path):
    trial = f"{toy_run.path}@2"
    exported = tmp_path / "tuned.onnx"
    exported.write_bytes(b"onnx")
    for given, message in {
        trial: f"{trial} is not a model yet. Make one of it: featcache handoff {trial} -o head.keras",
        str(toy_run.path): f"Make one of it: featcache handoff {toy_run.path}@best -o head.keras",
        str(toy.root): f"{toy.root} is a folder, not a model. First the model: featcache predict MODEL.keras IMAGES",
        str(toy.path): f"{toy.path} is a cache of features and no model",
        str(exported): f"{exported} is a model for another runtime, which featcache does not run",
    }.items():
        with pytest.raises(UsageError, match=re.escape(message)):
            open_classifier(given)
    (tmp_path / "tuned.keras").touch()
    with pytest.raises(NotAModel, match=r"No model at .*tund\.keras \(did you mean tuned\.keras\?\)"):
        open_classifier(tmp_path / "tund.keras")
