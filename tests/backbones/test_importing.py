"""Models that Keras 2 saved compute what they computed there; an import shows it; code is run on trust only."""

import base64
import json
import shutil
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from featcache.backbones import importing, own
from featcache.backbones import saved as saved_model
from featcache.backbones.build import build
from featcache.backbones.importing import import_model
from featcache.backbones.parse import requests
from featcache.errors import NotAModel, ParityFailed, UnknownBackbone, UnknownBlock, UsageError
from featcache.extraction import extract

GOLDEN = Path(__file__).parent / "golden"
OUTPUTS = dict(np.load(GOLDEN / "outputs.npz"))
FILES = sorted(one.name for one in GOLDEN.iterdir() if one.suffix in (".keras", ".h5", ".hdf5"))


def test_every_kind_of_file_is_among_the_golden_ones():
    assert len(FILES) == 9
    assert {Path(name).suffix for name in FILES} == {".h5", ".hdf5", ".keras"}


@pytest.fixture(autouse=True)
def no_keras_2(monkeypatch):
    """Let every machine be one without tf_keras."""
    monkeypatch.setattr(importing, "find_spec", lambda name: None)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(path, trust=False):
    return own.load(own.parse(str(path))[0], None, trust)


def given(model, layer):
    cut = keras.Model(model.inputs[0], model.get_layer(layer).output)
    return keras.ops.convert_to_numpy(cut(OUTPUTS["images"], training=False))


@pytest.mark.parametrize("name", FILES)
def test_a_model_of_keras_2_computes_at_every_layer_what_it_computed_there(name):
    stem = Path(name).stem
    layers = [key.partition("/")[2] for key in OUTPUTS if key.startswith(f"{stem}/")]
    assert len(layers) == 3
    model = loaded(GOLDEN / name)
    for layer in layers:
        theirs = OUTPUTS[f"{stem}/{layer}"]
        assert np.abs(given(model, layer) - theirs).max() < 1e-5 * np.abs(theirs).max()


def test_plain_keras_reads_none_of_the_nested_ones():
    """Once it does, there is less to do here."""
    for name in ("nested.h5", "nested.keras", "nested_functional.h5"):
        with pytest.raises(Exception, match=r"deserializ|locate class"):
            keras.saving.load_model(GOLDEN / name, compile=False)


@pytest.mark.parametrize(("name", "layer", "weights"), [
    ("nested.hdf5", "flatten_1", 10), ("nested_functional.keras", "hidden", 12), ("sequential.h5", "flatten_1", 9),
])  # fmt: skip
def test_an_import_is_a_file_of_keras_3_with_the_weights_of_the_original(here, name, layer, weights):
    found = import_model(GOLDEN / name, layer)
    assert (found.model, found.layer, found.weights, found.difference) == (
        f"{Path(name).stem}.keras", layer, weights, None
    )  # fmt: skip
    assert found.against.endswith("pip install tf_keras")
    theirs = OUTPUTS[f"{Path(name).stem}/{layer}"]
    model = keras.saving.load_model(here / found.model)
    assert np.abs(model.predict(OUTPUTS["images"], verbose=0) - theirs).max() < 1e-5 * np.abs(theirs).max()


def test_top_is_what_enters_the_classifier(here):
    assert import_model(GOLDEN / "nested.h5").layer == "hidden"


@pytest.mark.parametrize(("tap", "layer"), [("-3", "flatten_1"), ("3", "flatten_1"), ("flatten", "flatten_1")])
def test_a_layer_is_named_by_place_or_end(here, tap, layer):
    assert import_model(GOLDEN / "nested.h5", tap).layer == layer


@pytest.mark.parametrize(
    ("tap", "error", "message"),
    [
        ("relu", UsageError, r"`tap=relu` may mean stem_relu, last_relu of '.*two.keras'; name one of them"),
        ("7", UnknownBlock, r"has 4 layers, so `tap` takes 0 to 3, or -1 for the last; got 7"),
        ("-5", UnknownBlock, r"has 4 layers, so `tap` takes 0 to 3, or -1 for the last; got -5"),
        ("rel", UnknownBlock, r"has no layer 'rel'"),
    ],
)
def test_what_may_mean_several_layers_or_none_is_refused(here, tap, error, message):
    layers = [
        keras.layers.ReLU(name="stem_relu"),
        keras.layers.Conv2D(2, 1, name="x"),
        keras.layers.ReLU(name="last_relu"),
    ]
    keras.Sequential([keras.Input((8, 8, 3)), *layers]).save("two.keras")
    with pytest.raises(error, match=message):
        import_model("two.keras", tap, "out.keras")
    assert not Path("out.keras").exists()


def test_a_tap_goes_by_its_full_name_however_it_is_asked_for(photos, tmp_path):
    text = f"{GOLDEN / 'nested.h5'}:mode=tf"
    for tap, computed in [("flatten", 36), ("-3", 0), ("flatten_1", 0)]:
        cache = extract(photos, text, tap=tap, out=tmp_path / "c.h5")
        assert (list(cache.taps), cache.report.computed) == (["nested/flatten_1"], computed)
    with pytest.raises(UnknownBlock, match=r"has no layer 'flat'"):
        extract(photos, text, tap="flat", out=tmp_path / "c.h5")
    cache = extract(photos, text, tap="-3,flatten,hidden", out=tmp_path / "c.h5")
    assert (list(cache.taps), cache.report.computed) == (["nested/flatten_1", "nested/hidden"], 36)


def test_features_of_a_keras_2_file_are_those_of_its_import(photos, here):
    import_model(GOLDEN / "nested.h5", "flatten_1")
    one = extract(photos, f"{GOLDEN / 'nested.h5'}:mode=tf", tap="flatten_1", out="c.h5")
    two = extract(photos, "nested.keras:mode=tf", out="d.h5")
    assert np.allclose(one.features(one.rows), two.features(one.rows), atol=1e-5)


def test_an_import_replaces_an_import_and_nothing_else(here):
    import_model(GOLDEN / "nested.h5", "flatten_1", "cut.keras")
    import_model(GOLDEN / "nested.h5", "hidden", "cut.keras")
    for name in ("sequential.keras", "functional.keras"):
        shutil.copy(GOLDEN / name, here)
    with pytest.raises(UsageError, match=r"functional.keras is there already and is no import of featcache"):
        import_model("sequential.keras", "flatten_1", "functional.keras")
    for _ in range(2):  # first by force, then as an import
        with pytest.raises(UsageError, match=r"sequential.keras is kept, even with `force=True`"):
            import_model("sequential.keras", "flatten_1", "sequential.keras", force=True)
        import_model("functional.keras", "top", "sequential.keras", force=True)
    with pytest.raises(UsageError, match=r"`out` takes a .keras file; got cut.h5"):
        import_model(GOLDEN / "nested.h5", "flatten_1", "cut.h5")


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".hdf5"])
def test_an_import_is_compared_with_an_original_that_runs(here, suffix):
    """A nested one of Keras 3, frozen in part, whose file gives the order of arrays another meaning than its layers."""
    inner = keras.Sequential(
        [keras.Input((16, 16, 3)), keras.layers.Conv2D(3, 3), keras.layers.BatchNormalization(),
         keras.layers.Conv2D(3, 3), keras.layers.BatchNormalization()]
    )  # fmt: skip
    draw = np.random.default_rng(0)
    inner.set_weights([draw.uniform(0.1, 1, one.shape) for one in inner.get_weights()])
    inner.layers[0].trainable = inner.layers[1].trainable = False
    model = keras.Sequential(
        [keras.Input((16, 16, 3)), inner, keras.layers.Flatten(name="flat"), keras.layers.Dense(2)]
    )
    model.save(f"mine{suffix}")
    found = import_model(f"mine{suffix}", "flat", "cut.keras")
    assert (found.weights, found.difference, found.against) == (12, 0.0, "the file as Keras 3 reads it")
    cut = keras.saving.load_model("cut.keras")
    assert np.allclose(cut.predict(OUTPUTS["images"], verbose=0), given(model, "flat"), rtol=1e-5, atol=1e-5)


def test_an_import_that_computes_something_else_is_withheld(here, monkeypatch, capsys, run):
    other = {1: lambda images: OUTPUTS["nested/flatten_1"][:1] * np.ones((8, 1)), 2: lambda images: np.nan}
    for number, original in other.items():
        monkeypatch.setattr(importing, "original_of", lambda *of, it=original: ("the oracle", it))
        with pytest.raises(ParityFailed, match=r"gives other numbers than the oracle: by up to .* Nothing was written"):
            import_model(GOLDEN / "nested.h5", "flatten_1", f"cut{number}.keras")
        assert run("backbones", "import", GOLDEN / "nested.h5", "--tap", "flatten_1")[0] == 3
    assert list(here.glob("*.keras")) == []


def test_an_import_with_other_weights_is_withheld(here, monkeypatch):
    real = own.load

    def shifted(*arguments):
        model = real(*arguments)
        model.get_layer("hidden").bias.assign_add([1, 0, 0, 0, 0, 0])
        return model

    monkeypatch.setattr(own, "load", shifted)
    with pytest.raises(ParityFailed, match=r"1 of 12 weight arrays of the import differ from .*nested.h5"):
        import_model(GOLDEN / "nested.h5", "hidden")


@pytest.fixture
def run(monkeypatch, capsys):
    import signal
    import sys

    from featcache_cli.app import main

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["featcache", *map(str, arguments)])
        handler = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as leaving:
            main()
        signal.signal(signal.SIGTERM, handler)
        return leaving.value.code, *capsys.readouterr()

    return call


def test_the_command_prints_what_was_compared(here, run):
    keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Flatten(name="flat"), keras.layers.Dense(2)]).save("a.h5")
    code, out, _ = run("backbones", "import", "a.h5", "--json")
    assert (code, json.loads(out)) == (0, {
        "model": "a.keras", "layer": "flat", "weights": 0, "difference": 0.0, "against": "the file as Keras 3 reads it",
    })  # fmt: skip
    code, out, _ = run("backbones", "import", GOLDEN / "nested.h5", "--tap", "flatten")
    assert code == 0
    assert "up to 'flatten_1': 10 weight arrays equal to the file's; not compared with the original: Keras 3" in out
    assert "Next: featcache extract IMAGES -b nested.keras:mode=MODE --tap flatten_1 -o CACHE.h5" in out
    for bad in ("glyphnet", "shop.networks:small"):
        code, _, err = run("backbones", "import", bad)
        assert (code, "takes a .keras, .h5 or .hdf5 file or a SavedModel folder" in err) == (2, True)


def edited(name, change, to):
    """Return a copy of a golden file with another configuration."""
    shutil.copy(GOLDEN / name, to)
    with h5py.File(to / name, "r+") as file:
        text = file.attrs["model_config"]
        changed = change(text)
        assert changed != text
        file.attrs["model_config"] = changed
    return to / name


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("nested.h5", '"LeakyReLU"', '"Swoosh"', r"layer 'leaky' is a Swoosh, which Keras 3 does not have"),
        ("nested.h5", '"LeakyReLU"', '"deserialize"', r"layer 'leaky' is a deserialize, which Keras 3 does not have"),
        (
            "sequential.h5",
            '"tanh"',
            '"hard_sigmoid"',
            r"'hidden' \(Dense\) has activation=hard_sigmoid, which is another",
        ),
        (
            "sequential.h5",
            '"momentum": 0.99',
            '"adjustment": 2',
            r"'bn' \(BatchNormalization\) has adjustment=2, which",
        ),
        ("sequential.h5", '"tanh"', '{"class_name": "x"}', r"'hidden' \(Dense\) has activation={.*}, which Keras 3"),
        ("sequential.h5", '"tanh"', '"warp"', r"'hidden' \(Dense\) of Keras 2 does not fit Keras 3: .*warp"),
        ("functional.h5", '"nn.relu"', '"nn.erosion"', r"\(TFOpLambda\) computes tf.nn.erosion, which has no layer in"),
        ("functional.h5", '"block/shared"', '"bn"', r"layer 'bn' takes a tensor that no layer of the model makes"),
        ("functional.h5", '[["classifier", 0, 0]]', '[["gone", 0, 0]]', r"is not one that Keras 2 writes"),
        (
            "functional.h5",
            '[["pool", 0, 0, {}]]',
            '[["gone", 0, 0, {}]]',
            r"takes a tensor that no layer of the model makes",
        ),
        ("nested.h5", '"filters": 4', '"filters": 5', r"its array 'stem/conv/kernel:0' of layer .* is \(3, 3, 3, 4\)"),
        (
            "nested.h5",
            '"name": "stem_relu"',
            '"name": "stem_conv"',
            r"layers 'stem/conv' and 'stem_conv' would both be",
        ),
    ],
)
def test_what_keras_3_would_compute_otherwise_is_refused_by_name(tmp_path, name, old, new, message):
    path = edited(name, lambda text: text.replace(old, new), tmp_path)
    with pytest.raises(NotAModel, match=rf"{name} was written by Keras 2 and cannot be converted: .*{message}"):
        loaded(path)


def changed_arrays(change, to):
    shutil.copy(GOLDEN / "nested.h5", to)
    with h5py.File(to / "nested.h5", "r+") as file:
        change(file["model_weights"])
    return to / "nested.h5"


def lose(group):
    names = group["base"].attrs["weight_names"]
    group["base"].attrs["weight_names"] = [one for one in names if one != "stem/bn/gamma:0"]


def stray(group):
    group["base"]["odd/kernel:0"] = np.zeros(3)
    group["base"].attrs["weight_names"] = [*group["base"].attrs["weight_names"], "odd/kernel:0"]


def extra(group):
    group["hidden"]["hidden/third:0"] = np.zeros(3)
    group["hidden"].attrs["weight_names"] = [*group["hidden"].attrs["weight_names"], "hidden/third:0"]


def forget(group):
    group.attrs["layer_names"] = [one for one in group.attrs["layer_names"] if one != "hidden"]


def another_layer(group):
    group.move("hidden", "concealed")
    group.attrs["layer_names"] = ["concealed" if one == "hidden" else one for one in group.attrs["layer_names"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose, r"layer 'stem/bn' \(BatchNormalization\) has 4 arrays in Keras 3, 3 in the file"),
        (stray, r"the name of its array 'odd/kernel:0' under 'base' fits no layer of the model"),
        (extra, r"layer 'hidden' \(Dense\) has 2 arrays in Keras 3, 3 in the file"),
        (forget, r"it has no array for 'kernel' of layer 'hidden' \(Dense\)"),
        (another_layer, r"it has arrays of a layer 'concealed', which is not in its model"),
    ],
)
def test_every_array_of_a_file_is_used_exactly_once(tmp_path, change, message):
    with pytest.raises(NotAModel, match=message):
        loaded(changed_arrays(change, tmp_path))


def test_arrays_go_by_name_in_whatever_order_they_are_listed(tmp_path):
    """Keras 2 lists those that are frozen last, which they are not in the model that is made."""

    def turn(group):
        group["base"].attrs["weight_names"] = list(group["base"].attrs["weight_names"])[::-1]

    model = loaded(changed_arrays(turn, tmp_path))
    assert np.allclose(given(model, "flatten_1"), OUTPUTS["nested/flatten_1"], atol=1e-5)


def test_long_lists_of_names_come_in_pieces(tmp_path):
    def cut(group):
        names = list(group["base"].attrs["weight_names"])
        del group["base"].attrs["weight_names"]
        group["base"].attrs["weight_names0"], group["base"].attrs["weight_names1"] = names[:4], names[4:]

    model = loaded(changed_arrays(cut, tmp_path))
    assert np.allclose(given(model, "flatten_1"), OUTPUTS["nested/flatten_1"], atol=1e-5)


def test_calls_of_nested_models_may_be_counted_from_0_or_1(tmp_path):
    """Keras 2 counts the call that made a nested model, unless it was made by being called."""
    path = edited("nested_functional.h5", lambda text: text.replace('["base", 1, 0', '["base", 0, 0'), tmp_path)
    assert np.allclose(given(loaded(path), "pool"), OUTPUTS["nested_functional/pool"], atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layers/dense/vars/1", None, r"it has no array for 'bias' of layer 'hidden' \(Dense\)"),
        ("layers/dense/vars/1", "layers/dense/vars/2", r"its array 'vars/2' of layer 'hidden' \(Dense\) has no place"),
        (
            "layers/dense/vars/1",
            "layers/dense_7/vars/1",
            r"it has an array 'layers/dense_7/vars/1', which belongs to no layer",
        ),
    ],
)
def test_every_array_of_an_archive_is_used_exactly_once(tmp_path, old, new, message):
    with zipfile.ZipFile(GOLDEN / "nested.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (tmp_path / "w.h5").write_bytes(members["model.weights.h5"])
    with h5py.File(tmp_path / "w.h5", "r+") as file:
        if new:
            file[new] = file[old][()]
        del file[old]
    members["model.weights.h5"] = (tmp_path / "w.h5").read_bytes()
    with zipfile.ZipFile(tmp_path / "bad.keras", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(NotAModel, match=message):
        loaded(tmp_path / "bad.keras")


def test_a_truncated_file_of_keras_2_is_named(tmp_path):
    (tmp_path / "half.h5").write_bytes((GOLDEN / "nested.h5").read_bytes()[:9000])
    with pytest.raises(NotAModel, match=r"half.h5"):
        loaded(tmp_path / "half.h5")


def doubling(path, factor):
    layers = [keras.layers.Lambda((lambda x: x * 2) if factor == 2 else (lambda x: x * 3)), keras.layers.Flatten()]
    keras.Sequential([keras.Input((8, 8, 3)), *layers]).save(path)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_code_in_a_file_is_run_on_trust_and_is_part_of_the_fingerprint(photos, tmp_path, suffix):
    path = tmp_path / f"code{suffix}"
    doubling(path, 2)
    text = f"{path}:mode=unit"
    with pytest.raises(NotAModel, match=r"carries code .* unless told to trust the file: `trust=True`"):
        extract(photos, text, out=tmp_path / "c.h5")
    with pytest.raises(NotAModel, match=r"`trust=True`"):
        import_model(path, out=tmp_path / "out.keras")
    one = extract(photos, text, out=tmp_path / "c.h5", trust=True)
    doubling(path, 3)
    two = extract(photos, text, out=tmp_path / "c.h5", trust=True)
    assert (two.report.computed, len(two.taps)) == (36, 2)
    first, second = (two.features(one.rows, name) for name in two.taps)
    assert np.allclose(second, first * 1.5, atol=1e-5) or np.allclose(first, second * 1.5, atol=1e-5)
    assert import_model(path, out=tmp_path / "out.keras", trust=True).difference == 0.0


def test_code_in_a_file_of_keras_2_is_run_on_trust(tmp_path):
    function = keras.layers.Lambda(lambda x: x * 3).get_config()["function"]["config"]
    base64.b64decode(function["code"])
    as_in_keras_2 = json.dumps([function["code"], None, None])

    def with_code(text):
        return text.replace('"class_name": "LeakyReLU"', '"class_name": "Lambda"').replace(
            '"alpha": 0.10000000149011612', f'"function": {as_in_keras_2}, "function_type": "lambda", "arguments": {{}}'
        )

    path = edited("nested.h5", with_code, tmp_path)
    with pytest.raises(NotAModel, match=r"nested.h5 carries code .*`trust=True`"):
        loaded(path)
    assert not np.allclose(given(loaded(path, trust=True), "flatten_1"), OUTPUTS["nested/flatten_1"])


def saved(path, seed=0, activation="relu"):
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Conv2D(4, 3, activation=activation), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((16, 16, 3)), *layers])
    model.export(path, verbose=False)
    return model


def test_a_saved_model_is_a_frozen_backbone_on_trust(photos, tmp_path):
    path = tmp_path / "graph"
    model, text = saved(path), f"{path}:mode=tf"
    with pytest.raises(NotAModel, match=r"graph is a SavedModel: a graph of TensorFlow, .* to trust it: `trust=True`"):
        extract(photos, text, out=tmp_path / "c.h5")
    cache = extract(photos, text, out=tmp_path / "c.h5", trust=True)
    assert (list(cache.taps), cache.arrays()[0].shape) == (["graph/top"], (36, 4))
    assert extract(photos, text, out=tmp_path / "c.h5", trust=True).report.computed == 0
    backbone = build(requests(text, trust=True)[0].spec, 16, "avg", trust=True)
    pixels = OUTPUTS["images"]
    assert np.allclose(backbone.network(pixels), model(pixels), atol=1e-6)
    assert import_model(path, trust=True) == importing.Imported(str(path), "top", 2, 0.0, "its serving signature")


def test_another_graph_or_other_variables_are_another_tap(photos, tmp_path):
    path = tmp_path / "graph"
    for number, settings in enumerate([{}, {"seed": 1}, {"activation": "tanh"}], 1):
        shutil.rmtree(path, ignore_errors=True)
        saved(path, **settings)
        cache = extract(photos, f"{path}:mode=tf", out=tmp_path / "c.h5", trust=True)
        assert (cache.report.computed, len(cache.taps)) == (36, number)


def test_the_digests_of_a_saved_model_cover_its_graph_and_every_variable_and_asset(tmp_path):
    for name in ("saved_model.pb", "variables/v.data", "variables/v.index", "assets/words.txt", "fingerprint.pb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("as it was")
    values, graph = saved_model.digests(tmp_path)
    for name, changes in [("saved_model.pb", (False, True)), ("variables/v.data", (True, False)),
                          ("assets/words.txt", (True, False)), ("fingerprint.pb", (False, False))]:  # fmt: skip
        (tmp_path / name).write_text("changed")
        found = saved_model.digests(tmp_path)
        assert (found[0] != values, found[1] != graph) == changes
        (tmp_path / name).write_text("as it was")
    (tmp_path / "assets/more.txt").write_text("new")
    assert saved_model.digests(tmp_path)[0] != values


def test_of_a_saved_model_only_the_output_is_known(tmp_path, monkeypatch):
    path = tmp_path / "graph"
    saved(path)
    with pytest.raises(UsageError, match=r"of which only the output is known: `tap='top'`; got conv2d"):
        import_model(path, "conv2d", trust=True)
    with pytest.raises(UsageError, match=r"stays where it is: use `backbone='.*graph'`, without `out`"):
        import_model(path, out=tmp_path / "a.keras", trust=True)
    with pytest.raises(UsageError, match=r"'graph' is a SavedModel, which computes as it was saved; got `precision=bf"):
        build(own.parse(str(path))[0], 16, "avg", "bfloat16", trust=True)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UsageError, match=r"SavedModel, which runs on TensorFlow only; Keras is on jax"):
        import_model(path, trust=True)


def test_a_folder_without_a_saved_model_is_none(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotAModel, match=r"empty is a folder without saved_model.pb. Name a SavedModel"):
        requests(f"{tmp_path / 'empty'}:mode=tf")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownBackbone):
        requests("empty")
    (tmp_path / "empty" / "saved_model.pb").write_bytes(b"nothing")
    with pytest.raises(NotAModel, match=r"empty cannot be used: its serving_default must take and give one tensor"):
        requests("empty:mode=tf", trust=True)
    (tmp_path / "glyphnet").mkdir()
    (tmp_path / "glyphnet" / "saved_model.pb").write_bytes(b"nothing")
    assert requests("glyphnet")[0].spec.origin == "registry"


def test_a_file_that_only_refers_to_a_folder_is_refused(tmp_path):
    saved(tmp_path / "graph")
    layer = keras.layers.TFSMLayer(str(tmp_path / "graph"), call_endpoint="serving_default")
    pixels = keras.Input((16, 16, 3))
    [outputs] = layer(pixels).values()
    keras.Model(pixels, outputs).save(tmp_path / "refers.keras")
    with pytest.raises(NotAModel, match=r"carries code"):
        loaded(tmp_path / "refers.keras")
    with pytest.raises(
        NotAModel, match=r"refers.keras only refers to the SavedModel .*graph. Name that folder: `backbone='"
    ):
        loaded(tmp_path / "refers.keras", trust=True)
