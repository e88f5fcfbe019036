"""A network that was converted once starts later commands without Keras, and is never trusted without a proof."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tiny import TOY, write_images

from featcache import home
from featcache.errors import DiskFault, EnvironmentFault
from featcache.extraction import extract, kept_networks
from featcache.extraction.agreement import made_images
from featcache.extraction.openvino_engine import ConvertedNetwork
from featcache.extras.report.final import open_test
from featcache.extras.report.tuned_models import model_on_val
from featcache.files import read_arrays, write_arrays
from featcache.models import handoff
from featcache.prediction import model_networks, predict, predict_to
from featcache.sweeps import Run, sweep
from featcache.tuning import finetune

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")

# Runs the code that it is given where Keras and TensorFlow cannot be imported.
WITHOUT_KERAS = """
import sys
sys.modules["keras"] = sys.modules["tensorflow"] = None
import json
import featcache as fc
exec(sys.argv[1])
"""


def without_keras(folder, code):
    """Return what `code` prints as JSON in a process that has no Keras, with the kept files of the folder."""
    environment = {**os.environ, "FEATCACHE_HOME": str(folder / "home")}
    command = [sys.executable, "-c", WITHOUT_KERAS, code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def first_day(tmp_path_factory):
    """Return a folder after the first extraction, handoff and prediction: photos, first.h5, model.keras, home/."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATCACHE_HOME", str(folder / "home"))
        cache = extract(write_images(folder / "photos"), TOY, out=folder / "first.h5", engine="openvino")
        run = sweep(cache, "ridge", grid={"ridge": {"alpha": [1.0]}}, out=folder / "run")
        handoff(run.best, folder / "model.keras")
        answers = [[row.path, *row.top[0]] for row in predict(folder / "model.keras", folder / "photos")]
        (folder / "answers.json").write_text(json.dumps(answers))
    return folder


@pytest.fixture
def kept(first_day, tmp_path, monkeypatch):
    """Return a copy of the cache folder of the first day, which is the one in use."""
    folder = shutil.copytree(first_day / "home", tmp_path / "home")
    monkeypatch.setenv("FEATCACHE_HOME", str(folder))
    return folder


def kept_of_backbone(folder):
    """Return the file of the backbone, which has one output; that of the model has three."""
    files = sorted((folder / "networks").iterdir())
    assert len(files) == 2
    [file] = [file for file in files if "output_1" not in read_arrays(file)]
    return file


def test_a_second_extraction_and_prediction_need_no_keras(first_day):
    code = """
cache = fc.extract("photos", "TOY", out="second.h5")
first = fc.Cache.open("first.h5")
answers = [[row.path, *row.top[0]] for row in fc.predict("model.keras", "photos")]
rows = [tap.engine for tap in cache.report.taps], list(first.taps) == list(cache.taps)
difference = abs(cache.features(cache.rows) - first.features(cache.rows)).max()
print(json.dumps([*rows, float(difference), answers]))
"""
    engines, has_same_taps, difference, answers = without_keras(first_day, code.replace("TOY", TOY))
    assert [engine.split()[0] for engine in engines] == ["openvino"]
    assert has_same_taps
    assert difference == 0
    assert answers == json.loads((first_day / "answers.json").read_text())


@pytest.mark.slow
def test_a_second_report_and_comparison_with_models_need_no_keras(first_day, tmp_path):
    folder = shutil.copytree(first_day, tmp_path / "day")
    run = Run.open(folder / "run")
    finetune(run.best, folder / "tuned.keras", unfreeze="none", epochs=1, learning_rate=1e-6)
    code = """
from featcache.extras.report.final import open_test
from featcache.extras.report.tuned_models import model_on_val
run = fc.Run.open("run")
models = [model_on_val(run, model) for model in ("model.keras", "tuned.keras")]
differences = [fc.compare(run.best, model).difference for model in models]
print(json.dumps([[model.val_logits.tolist() for model in models], differences, open_test(run).scores]))
"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATCACHE_HOME", str(folder / "home"))
        first_logits = [model_on_val(run, folder / name).val_logits for name in ("model.keras", "tuned.keras")]
        scores = open_test(run).scores
    logits, differences, second_scores = without_keras(folder, code)
    np.testing.assert_array_equal(logits, first_logits)
    np.testing.assert_allclose(logits[0], run.best.logits(run.rows(run.cache(), "val")), atol=1e-4)
    assert differences[0] == 0
    assert len(scores) == 2
    assert second_scores == {name: list(score) for name, score in scores.items()}


def test_stored_rows_are_computed_again_without_keras(first_day):
    code = """
from featcache.extraction.recheck import recompute
print(json.dumps([row.difference for row in recompute(fc.Cache.open("first.h5"), 4)]))
"""
    [difference] = without_keras(first_day, code)
    assert difference < 1e-6


def test_keras_computes_where_it_is_asked_for(kept, first_day, tmp_path):
    cache = extract(first_day / "photos", TOY, out=tmp_path / "c.h5", engine="keras")
    assert {tap.engine.split()[0] for tap in cache.report.taps} == {"keras"}
    by_keras = [row.top[0][1] for row in predict(first_day / "model.keras", first_day / "photos", engine="keras")]
    kept_answers = [answer[2] for answer in json.loads((first_day / "answers.json").read_text())]
    assert by_keras != kept_answers  # another engine rounds in another way
    np.testing.assert_allclose(by_keras, kept_answers, atol=1e-5)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def emptied(file):
    file.write_bytes(b"")


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def of_other_weights(file):
    arrays = read_arrays(file)
    weights = arrays["weights"].view(np.float32) * np.float32(1.01)
    write_arrays(file, {**arrays, "weights": weights.view(np.uint8)})


def without_facts(file):
    arrays = read_arrays(file)
    del arrays["facts"]
    write_arrays(file, arrays)


@pytest.mark.parametrize("damage", [cut, emptied, flipped, of_other_weights, without_facts])
def test_a_damaged_or_foreign_network_is_made_again(kept, first_day, tmp_path, damage):
    file = kept_of_backbone(kept)
    good = read_arrays(file)
    damage(file)
    cache = extract(first_day / "photos", TOY, out=tmp_path / "c.h5", engine="openvino")
    first = extract(first_day / "photos", TOY, out=first_day / "first.h5")  # nothing is missing in it
    assert np.array_equal(cache.features(cache.rows), first.features(cache.rows))
    assert np.array_equal(read_arrays(file)["weights"], good["weights"])


@pytest.mark.parametrize("look_up", ["version", "installed_version"])  # the second: of keras-hub
def test_other_versions_make_other_files(look_up, kept, first_day, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_networks, look_up, lambda name: "99.0")
    extract(first_day / "photos", TOY, out=tmp_path / "c.h5", engine="openvino")
    assert len(list((kept / "networks").iterdir())) == 3


def test_a_damaged_record_of_digests_is_not_believed(kept, first_day, tmp_path):
    [record] = (kept / "weights").iterdir()
    content = record.read_text()
    weights = json.loads(content)["weights"]
    record.write_text(content.replace(weights, "0" * len(weights)))
    cache = extract(first_day / "photos", TOY, out=tmp_path / "c.h5")
    assert [tap.weights_digest for tap in cache.taps.values()] == [weights]
    assert record.read_text() == content


@pytest.mark.parametrize("is_layer", [True, False], ids=["a layer", "an activation"])
def test_a_model_with_code_of_the_user_is_not_kept(kept, first_day, tmp_path, is_layer):
    import keras

    @keras.saving.register_keras_serializable("tests")
    class Doubled(keras.layers.Layer):
        def call(self, inputs):
            return inputs * 2

    @keras.saving.register_keras_serializable("tests")
    def doubled(inputs):
        return inputs * 2

    own = Doubled() if is_layer else keras.layers.Activation(doubled)
    layers = [keras.Input((8, 8, 3)), own, keras.layers.Conv2D(4, 3), keras.layers.Flatten()]
    keras.Sequential([*layers, keras.layers.Dense(3, "softmax")]).save(tmp_path / "own.keras")
    before = sorted(kept.rglob("*"))
    list(predict(f"{tmp_path / 'own.keras'}:mode=unit", first_day / "photos"))
    tap = f"{tmp_path / 'own.keras'}:mode=unit"
    extract(first_day / "photos", tap, tap="top", out=tmp_path / "c.h5", engine="openvino")
    assert sorted(kept.rglob("*")) == before


def test_a_network_that_disagrees_on_made_images_is_not_kept(first_day):
    arrays = read_arrays(kept_of_backbone(first_day / "home"))
    network = ConvertedNetwork(arrays["graph"].tobytes(), arrays["weights"])
    engine = kept_networks.OpenVINOEngine(network, 4, "float32")
    kept_networks.prove(engine, 32, engine.forward)
    with pytest.raises(EnvironmentFault, match="OpenVINO does not agree with Keras: cosine"):
        kept_networks.prove(engine, 32, lambda images: [array[::-1] for array in engine.forward(images)])


@pytest.mark.parametrize("size", [1, 5, 32, 224])
def test_made_images_are_the_same_everywhere(size):
    images = made_images(4, size)
    assert (images.shape, images.dtype) == ((4, size, size, 3), np.uint8)
    assert np.array_equal(images, made_images(4, size))
    assert len(np.unique(images.reshape(4, -1), axis=0)) == 4


def to_file(folder, monkeypatch):
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("")
    return "File exists|Not a directory|cannot be written"


def of_another_user(folder, monkeypatch):
    folder.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    os.chown(folder, 54321, -1)
    return "belongs to another user"


def open_to_all(folder, monkeypatch):
    folder.mkdir()
    folder.chmod(0o777)
    return "can be written to by everybody"


def read_only(folder, monkeypatch):
    folder.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    return "cannot be written to"


def full(folder, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    return "No space left on device"


@pytest.mark.parametrize("trouble", [to_file, of_another_user, open_to_all, read_only, full])
def test_trouble_with_the_folder_is_one_line_and_stops_nothing(tmp_path, monkeypatch, trouble):
    if trouble is of_another_user and os.geteuid() != 0:
        pytest.skip("giving a folder to another user takes root")
    folder = tmp_path / "home"
    monkeypatch.setenv("FEATCACHE_HOME", str(folder))
    reason = trouble(folder, monkeypatch)
    lines = []
    home.keep("networks/a.npz", lambda sink: sink.write(b"content"), lines.append)
    [line] = lines
    assert "\n" not in line
    assert line.startswith("Nothing is kept for a faster start next time: ")
    assert line.endswith("Set FEATCACHE_HOME to a folder that only you can write to")
    assert any(part in line for part in reason.split("|"))
    assert home.find("networks/a.npz") is None


def test_files_of_another_user_are_not_read(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    monkeypatch.setenv("FEATCACHE_HOME", str(folder))
    home.keep("networks/a.npz", lambda sink: sink.write(b"content"))
    assert home.find("networks/a.npz") is not None
    folder.chmod(0o777)
    assert home.find("networks/a.npz") is None


def without_permission(monkeypatch):
    def refuse(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)  # for root every folder opens
    return "/root/home"


@pytest.mark.parametrize("place", [without_permission, lambda patch: "~nobody-here/home", lambda patch: "a" * 300])
def test_nothing_is_found_in_a_folder_that_cannot_be_read(monkeypatch, place):
    monkeypatch.setenv("FEATCACHE_HOME", place(monkeypatch))
    assert home.find("networks/a.npz") is None


def test_a_folder_that_cannot_be_listed_is_one_line(monkeypatch):
    monkeypatch.setenv("FEATCACHE_HOME", "a" * 300)
    with pytest.raises(DiskFault, match="File name too long"):
        home.prune()


def test_a_folder_that_is_deleted_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATCACHE_HOME", str(tmp_path / "home"))
    for content in (b"first", b"second"):
        home.keep("networks/a.npz", lambda sink, content=content: sink.write(content))
        path = home.find("networks/a.npz")
        assert path.read_bytes() == content
        shutil.rmtree(tmp_path / "home")


def test_set_to_nothing_it_keeps_nothing_and_says_nothing(monkeypatch):
    monkeypatch.setenv("FEATCACHE_HOME", "")
    lines = []
    home.keep("networks/a.npz", lambda sink: sink.write(b"content"), lines.append)
    assert (lines, home.home(), home.find("networks/a.npz"), home.entries()) == ([], None, None, [])


def test_by_default_the_system_says_where_it_is(monkeypatch):
    monkeypatch.delenv("FEATCACHE_HOME")
    assert home.home().name == "featcache"
    assert home.home().is_absolute()


def test_pruning_removes_only_files_of_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATCACHE_HOME", str(tmp_path))
    (tmp_path / "networks").mkdir()
    mine = tmp_path / "networks" / "letter.txt"
    mine.write_text("mine")
    for name in ("networks/old.npz", "networks/new.npz"):
        home.keep(name, lambda sink: sink.write(b"content"))
    long_ago = home.find("networks/new.npz").stat().st_mtime - 40 * 86_400
    os.utime(tmp_path / "networks" / "old.npz", (long_ago, long_ago))
    assert [entry.path.name for entry in home.entries()] == ["new.npz", "old.npz"]
    assert [entry.path.name for entry in home.prune(days=30)] == ["old.npz"]
    assert [entry.path.name for entry in home.prune()] == ["new.npz"]
    assert [path.name for path in Path(tmp_path, "networks").iterdir()] == ["letter.txt"]


def test_a_model_that_featcache_did_not_write_is_kept_too(kept, first_day):
    import keras

    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(1, "sigmoid")]
    keras.Sequential(layers).save(first_day / "plain.keras")
    expected = [row.top[0] for row in predict(f"{first_day / 'plain.keras'}:mode=unit", first_day / "photos")]
    shutil.copytree(kept, first_day / "home", dirs_exist_ok=True)
    code = """
from featcache.prediction import open_classifier
classifier = open_classifier("plain.keras:mode=unit")
top = [row.top[0] for row in fc.predict("plain.keras:mode=unit", "photos")]
print(json.dumps([top, classifier.notes, classifier.network.name]))
"""
    top, notes, engine = without_keras(first_day, code)
    assert top == [list(answer) for answer in expected]
    assert any("its one output is assumed to be the probability of class 1" in note for note in notes)
    assert engine.startswith("openvino")


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_model_of_16_bit_layers_stays_in_keras(kept, first_day, tmp_path, policy, caplog):
    import keras

    layers = [
        keras.Input((8, 8, 3)),
        keras.layers.Conv2D(16, 3, activation="relu", dtype=policy),
        keras.layers.Flatten(),
        keras.layers.Dense(3, "softmax"),
    ]
    keras.Sequential(layers).save(tmp_path / "half.keras")
    model = f"{tmp_path / 'half.keras'}:mode=unit"
    with caplog.at_level("INFO", "featcache"):
        auto, in_keras = (list(predict(model, first_day / "photos", engine=engine)) for engine in ("auto", "keras"))
    assert auto == in_keras
    assert "Converting" not in caplog.text
    with suppress(EnvironmentFault):  # one line, where OpenVINO itself raises a RuntimeError of many
        list(predict(model, first_day / "photos", engine="openvino"))


def test_predict_says_that_nothing_can_be_kept(first_day, tmp_path, monkeypatch):
    folder = tmp_path / "home"
    monkeypatch.setenv("FEATCACHE_HOME", str(folder))
    open_to_all(folder, monkeypatch)
    tally = predict_to([], first_day / "model.keras", first_day / "photos")
    [note] = tally.notes
    assert note.startswith("Nothing is kept for a faster start next time: ")
    assert list(folder.iterdir()) == []


def test_a_model_that_openvino_cannot_compute_is_converted_once(kept, first_day, tmp_path, monkeypatch):
    tries = []

    def convert(model):
        tries.append(model)
        raise EnvironmentFault("OpenVINO cannot convert this network: no such operation. Use `engine='keras'`")

    monkeypatch.setattr(model_networks, "convert", convert)
    model = shutil.copy(first_day / "model.keras", tmp_path / "model.keras")
    with zipfile.ZipFile(model, "a") as archive:
        archive.writestr("remark.txt", "the same model in another file")
    for _ in range(2):
        answers = [[row.path, row.top[0][0]] for row in predict(model, first_day / "photos")]
        assert answers == [answer[:2] for answer in json.loads((first_day / "answers.json").read_text())]
    assert len(tries) == 1
    with pytest.raises(EnvironmentFault, match="OpenVINO cannot convert"):
        next(predict(model, first_day / "photos", engine="openvino"))
