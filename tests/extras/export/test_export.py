"""An exported file gives the model's probabilities in its own runtime, or there is no file."""

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace

import keras
import numpy as np
import pytest
from tiny import COLOURS, write_images

from featcache.errors import EnvironmentFault, ExportFailed, NoImages, NotAModel, UnknownHead, UsageError
from featcache.extraction import extract
from featcache.extras.export import export, exporting, formats
from featcache.extras.export.formats import FORMATS, labels_text
from featcache.models import handoff
from featcache.models.modelfile import load_model, read_facts, read_reference
from featcache.sweeps import sweep

OUT = {"keras": "m.keras", "savedmodel": "m", "litert": "m.tflite", "onnx": "m.onnx", "openvino": "m.xml"}
EVERY = pytest.mark.parametrize("to", FORMATS)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """Return a function that exports the model, once to each format."""
    folder, done = tmp_path_factory.mktemp("exported"), {}

    def to(name, int8=False):
        if (name, int8) not in done:
            done[name, int8] = export(model, name, folder / f"{int8:d}{OUT[name]}", int8=int8, gates=["accuracy>=0.5"])
        return done[name, int8]

    return to


def facts_in(path, to):
    """Return what stands inside an exported file, as its own runtime finds it."""
    if to == "keras":
        return read_facts(path)
    if to == "savedmodel":
        return json.loads((path / "featcache.json").read_text())
    if to == "litert":
        return json.loads(zipfile.ZipFile(path).read("featcache.json"))
    if to == "onnx":
        import onnxruntime

        return json.loads(onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["featcache"])
    import openvino

    return json.loads(openvino.Core().read_model(path).get_rt_info("featcache").astype(str))


@pytest.mark.slow
@EVERY
def test_the_runtime_of_each_format_gives_the_models_probabilities(to, exported, model, toy_run):
    done = exported(to)
    assert done.path.exists()
    assert done.difference <= 1e-4
    assert (done.agreement, done.images) == (1.0, min(64, toy_run.num_select))
    assert done.scores["accuracy"] == done.model_scores["accuracy"]
    assert done.judged_on == toy_run.num_select
    assert done.sample.startswith("the validation images of ")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    wanted = np.asarray(load_model(model)[0].predict_on_batch(pixels))
    np.testing.assert_allclose(FORMATS[to].read(done.path)(pixels), wanted, atol=1e-4)
    assert [path for path in done.path.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
@EVERY
def test_class_names_and_the_input_travel_inside(to, exported):
    done = exported(to)
    facts = facts_in(done.path, to)
    assert facts["classes"] == [*COLOURS]
    if to != "keras":
        size = None if to == "savedmodel" else 32
        shape = [1 if to == "litert" else None, size, size, 3]
        assert facts["input"] == {"name": "image", "shape": shape, "dtype": "uint8", "channels": "RGB"}
        assert done.input == tuple(shape)
        assert {"run", "trial", "tap", "certificate"} <= facts.keys()


@pytest.mark.slow
def test_8_bits_are_a_smaller_file_with_nearly_the_same_answers(exported):
    small, whole = exported("litert", int8=True), exported("litert")
    assert small.bytes < 0.4 * whole.bytes
    assert small.agreement >= 0.9
    assert small.difference > 1e-4
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(small.path))
    interpreter.allocate_tensors()
    assert interpreter.get_input_details()[0]["dtype"] == np.uint8
    kinds = [tensor["dtype"] for tensor in interpreter.get_tensor_details()]
    assert kinds.count(np.int8) > 0.5 * len(kinds)
    assert facts_in(small.path, "litert")["int8"] is True


@pytest.mark.slow
def test_constants_that_a_graph_captures_are_in_the_file(tmp_path):
    """The mean of ResNet50's and VGG's images is one; Keras' own export leaves it as an input that nobody feeds."""
    layers = keras.layers
    tail = [layers.Conv2D(8, 3, activation="relu"), layers.GlobalAveragePooling2D(), layers.Dense(2)]
    keras.Sequential([keras.Input((16, 16, 3)), *tail]).save(tmp_path / "own.keras")
    photos = write_images(tmp_path / "photos", per_class=20)
    cache = extract(photos, f"{tmp_path / 'own.keras'}:mode=caffe", out=tmp_path / "c.h5")
    run = sweep(cache, "ridge", out=tmp_path / "c.run")
    assert export(f"{run.path}@best", "onnx", tmp_path / "m.onnx").difference < 1e-4


def test_an_export_to_keras_is_the_model_file_itself(model, tmp_path):
    done = export(model, "keras", tmp_path / "new" / "m.keras")
    assert done.path.read_bytes() == model.read_bytes()
    assert (done.scores, done.judged_on, done.input) == ({}, 0, (None, None, None, 3))


@pytest.mark.slow
def test_a_trial_of_a_run_is_exported_as_it_would_be_handed_over(model, tmp_path):
    run = next(path for path in model.parent.iterdir() if path.is_dir())
    done = export(f"{run}@best", "keras", tmp_path / "m.keras")
    assert "certificate" in read_facts(done.path)
    assert read_reference(done.path) is not None
    with pytest.raises(UsageError, match=r"`run` goes with a MODEL\.keras"):
        export(f"{run}@best", "keras", tmp_path / "m.keras", run=run)


# What does not agree


@pytest.fixture
def wrong(monkeypatch):
    """Return a function that makes the runtime of Keras' own format give other probabilities."""

    def make(change):
        right = formats.read_keras

        def read(path):
            runner = right(path)
            return lambda pixels: change(runner(pixels).copy())

        monkeypatch.setitem(FORMATS, "keras", replace(FORMATS["keras"], read=read))

    return make


def moved(probabilities):
    probabilities[3, 1] += 0.25
    return probabilities


def test_a_file_that_gives_other_probabilities_is_not_written(model, wrong, tmp_path):
    wrong(moved)
    with pytest.raises(ExportFailed, match=r"does not give the model's.*\.png, class 'green', .* \(allowed 0\.0001\)"):
        export(model, "keras", tmp_path / "m.keras")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [lambda p: p * np.nan, lambda p: p[:, :2], lambda found: 1 / 0])
def test_a_file_that_gives_nan_or_does_not_run_is_not_written(change, model, wrong, tmp_path):
    wrong(change)
    with pytest.raises(ExportFailed, match=r"keras file (does not|gives).* Nothing was written"):
        export(model, "keras", tmp_path / "m.keras")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_file_that_agrees_only_at_one_size_is_not_written(model, monkeypatch, tmp_path):
    right = formats.read_keras

    def read(path):
        runner = right(path)
        return lambda pixels: runner(pixels) if pixels.shape[1] == 32 else runner(pixels)[:, ::-1]

    monkeypatch.setitem(FORMATS, "keras", replace(FORMATS["keras"], read=read))
    with pytest.raises(ExportFailed, match=r"does not give the model's probabilities"):
        export(model, "keras", tmp_path / "m.keras")


def test_a_model_that_cannot_be_converted_is_refused_in_one_line(model, monkeypatch, tmp_path):
    def write(*arguments):
        raise RuntimeError("an operation\nthat is not known")

    monkeypatch.setitem(FORMATS, "keras", replace(FORMATS["keras"], write=write))
    with pytest.raises(ExportFailed, match=r"keras file cannot be made: an operation that is not known\. Nothing"):
        export(model, "keras", tmp_path / "m.keras")


@pytest.mark.slow
def test_an_8_bit_file_that_predicts_other_classes_is_refused(model, monkeypatch, tmp_path):
    read = FORMATS["keras"].read
    formats_ = replace(
        FORMATS["keras"], name="litert", suffix=".tflite", any_size=False,
        write=lambda origin, path, facts, pixels: shutil.copy(origin.name, path.with_suffix(".keras")),
        read=lambda path: lambda pixels: read(path.with_suffix(".keras"))(pixels)[:, ::-1],
    )  # fmt: skip
    monkeypatch.setitem(FORMATS, "litert", formats_)
    with pytest.raises(ExportFailed, match=r"predicts the model's class on only .*% of .*, less than 90%"):
        export(model, "litert", tmp_path / "m.tflite", int8=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_old_file_stays_when_the_new_one_fails(model, wrong, tmp_path):
    (tmp_path / "m.keras").write_text("old")
    wrong(moved)
    with pytest.raises(ExportFailed):
        export(model, "keras", tmp_path / "m.keras", force=True)
    assert (tmp_path / "m.keras").read_text() == "old"


# Gates


def test_a_gate_that_is_missed_writes_nothing_and_names_the_split(model, tmp_path):
    message = r"`gates=log_loss<=1e-09` is not met: 0\.\d+ on \d+ of the validation images of .*Nothing was written"
    with pytest.raises(ExportFailed, match=message):
        export(model, "keras", tmp_path / "m.keras", gates=["accuracy>=0.1", "log_loss<=1e-9"])
    assert list(tmp_path.iterdir()) == []


def test_gates_that_hold_are_named_with_their_scores(model, tmp_path):
    done = export(model, "keras", tmp_path / "m.keras", gates=["macro_f1>=0.5"])
    assert done.gates == ("macro_f1>=0.5",)
    assert [*done.scores] == ["accuracy", "macro_f1"]
    assert done.scores == done.model_scores


@pytest.mark.slow
def test_own_images_check_an_export_by_their_folders(model, tmp_path):
    photos = write_images(tmp_path / "photos", per_class=4, seed=3)
    (photos / "red").rename(photos / "crimson")
    done = export(model, "keras", tmp_path / "m.keras", images=photos, gates=["accuracy>=0.1"])
    assert (done.images, done.judged_on, done.sample) == (12, 8, f"the images of {photos}")
    for name in ("blue", "green"):
        (photos / name).rename(photos / f"dark {name}")
    with pytest.raises(UsageError, match=r"None of the images of .*photos is in a folder named after a class"):
        export(model, "keras", tmp_path / "m.keras", images=photos, gates=["accuracy>=0.1"])


def test_images_that_a_head_was_fitted_on_do_not_judge_it(toy, tmp_path):
    run = sweep(toy, "ridge", taps=["glyphnet:weights=none/top"], out=tmp_path / "r.run", refit=True)
    handoff(run["refit"], tmp_path / "m.keras")
    assert read_facts(tmp_path / "m.keras")["refit"] is True
    with pytest.raises(UsageError, match=r"fitted on the validation images of .* too, so they cannot test it"):
        export(tmp_path / "m.keras", "keras", tmp_path / "n.keras", gates=["accuracy>=0.5"])


# Which images, and what is missing


@pytest.mark.slow
def test_a_model_without_its_run_says_what_to_give(model, toy_run, tmp_path):
    alone = shutil.copy(model, tmp_path / "alone.keras")
    with pytest.raises(UsageError, match=r"Its run 'toy\.run' is not beside it. Give `run=RUN`, or `images=FOLDER`"):
        export(alone, "keras", tmp_path / "m.keras")
    assert export(alone, "keras", tmp_path / "m.keras", run=toy_run.path).images > 0


@pytest.mark.slow
def test_another_run_of_the_same_name_is_not_its_run(model, toy, tmp_path):
    run = sweep(toy, "svm,logreg,gnb,ridge", taps=["glyphnet:weights=none/top"], out=tmp_path / "toy.run")
    with pytest.raises(
        UsageError, match=r"model\.keras did not come from .*toy\.run, but from a run that was called toy\.run"
    ):
        export(model, "keras", tmp_path / "m.keras", run=run.path)
    alone = shutil.copy(model, tmp_path / "alone.keras")
    with pytest.raises(UsageError, match=r"is not beside it"):
        export(alone, "keras", tmp_path / "m.keras")


@pytest.mark.parametrize(
    ("to", "module", "extra"),
    [
        ("onnx", "tf2onnx", "onnx"),
        ("litert", "ai_edge_litert", "litert"),
        ("openvino", "openvino", "openvino"),
    ],
)
def test_a_missing_package_says_what_to_install(to, module, extra, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EnvironmentFault, match=rf"Exporting to {to} needs .*pip install 'featcache\[{extra}\]'"):
        export(tmp_path / "gone.keras", to, tmp_path / OUT[to])


@pytest.mark.parametrize(
    ("to", "out", "how", "message"),
    [
        ("onyx", "m.onnx", {}, r"`to` takes keras, .*got 'onyx' \(did you mean onnx"),
        ("onnx", "m.tflite", {}, r"`to=onnx` takes an `out` that ends in \.onnx"),
        ("onnx", "m.onnx", {"int8": True}, r"`int8` goes with `to=litert`; got `to=onnx`"),
        ("savedmodel", "full", {}, r"full is there already and is no savedmodel export of featcache"),
        ("keras", "m.keras", {"gates": ["accuracy>0.9"]}, r"`gates` takes a metric and a value"),
        ("keras", "m.keras", {"gates": ["acuracy>=0.9"]}, r"`gates` takes .*did you mean accuracy"),
        (
            "keras",
            "m.keras",
            {"gates": ["accuracy<=0.9"]},
            r"Higher accuracy is better, so `gates` takes accuracy>=0\.9; got 'accuracy<=0\.9'",
        ),
        ("keras", "m.keras", {"gates": ["ece>=0.1"]}, r"Lower ece is better, so `gates` takes ece<=0\.1"),
        ("keras", "m.keras", {"gates": ["accuracy>=e"]}, r"`gates` takes a metric and a value"),
    ],
)
def test_invalid_options_are_refused_before_the_model_is_opened(to, out, how, message, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match=message):
        export(tmp_path / "gone.keras", to, tmp_path / out, **how)


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(NotAModel, match=r"No model at .*gone\.keras"):
        export(tmp_path / "gone.keras", "keras", tmp_path / "m.keras")


def test_another_backend_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(EnvironmentFault, match=r"KERAS_BACKEND=tensorflow \(now jax\)"):
        export(tmp_path / "gone.keras", "keras", tmp_path / "m.keras")


def test_a_label_is_one_line_whatever_its_name():
    names = ["rose", "line\nbreak", "café", "\udce9", "tab\t"]
    lines = labels_text({"classes": names}).splitlines()
    assert lines == ["rose", "line\\nbreak", "café", "\\udce9", "tab\\t"]


def test_a_folder_that_was_exported_is_replaced(tmp_path):
    for text in ("old", "new"):
        made = tmp_path / f"aside-{text}" / "m"
        made.mkdir(parents=True)
        (made / "featcache.json").write_text(text)
        (made / f"{text}.txt").write_text(text)
        exporting.place(made, tmp_path / "m")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["featcache.json", "new.txt"]


@pytest.mark.slow
def test_an_export_to_openvino_reports_nothing_to_its_makers():
    code = (
        "import sys; from featcache.extras.export.formats import FORMATS\n"
        "FORMATS['openvino'].require()\n"
        "print('openvino' in sys.modules, sys.modules['openvino_telemetry'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True None\n"


def test_the_name_of_the_file_says_the_format_and_a_missing_package_is_told_before_keras_starts(
    toy_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    monkeypatch.setattr(exporting, "start_keras", lambda: pytest.fail("Keras was started"))
    with pytest.raises(EnvironmentFault, match=r"Exporting to onnx needs tf2onnx, which is not .* 'featcache\[onnx\]'"):
        export(f"{toy_run.path}@best", None, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"ends in \.keras, \.tflite, .* got .*m.pb. Or name the format: `to`"):
        export(f"{toy_run.path}@best", None, tmp_path / "m.pb")


def test_a_wrong_model_or_folder_is_named_before_keras_starts(toy_run, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "start_keras", lambda: pytest.fail("Keras was started"))
    with pytest.raises(NotAModel, match=r"No model at missing.keras"):
        export("missing.keras", "keras", tmp_path / "m.keras")
    with pytest.raises(UnknownHead, match=r"got '99'"):
        export(f"{toy_run.path}@99", "keras", tmp_path / "m.keras")
    with pytest.raises(NoImages, match=r"nowhere does not exist"):
        export(f"{toy_run.path}@best", "keras", tmp_path / "m.keras", images="nowhere")
