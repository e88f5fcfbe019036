"""Every recipe runs at small size, says what it lacks in one line, and has a place in the docs."""

import io
import json
import pickle
import shlex
import struct
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from keras.src.backend import config
from tiny import write_images

from featcache.backbones.tutorials import write_small_model
from featcache.errors import DataError, NoImages, UsageError, WeightsMismatch, WeightsMissing
from featcache.extras.recipes import RECIPES, Naming, Training, cifar, find, parse_settings, run_recipe, weights_of
from featcache.images.augment import augmentation_of
from featcache.images.embedded import write_digits
from featcache.images.manifest import scan
from featcache.models import load_model
from featcache.sweeps import Run
from featcache.tuning import Recipe
from featcache_cli.app import app

QUICK = {"extract": {"backbone": "pixels:size=8", "pool": None, "size": None, "weights": None}}
PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()


@pytest.fixture(autouse=True)
def no_weights(tmp_path, monkeypatch):
    """Keep these tests from the weights of whoever runs them."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(config, "keras_home", lambda: str(tmp_path / "keras"))


@pytest.fixture
def no_network(monkeypatch):
    """Let every download fail, as on a machine without network."""

    def refuse(*arguments, **options):
        raise URLError("no route to host")

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", refuse)


def batches(folder: Path, per_class: int = 2) -> Path:
    """Write CIFAR-10 as its authors do, with few images; the first pixel of each is its label."""
    folder.mkdir(parents=True)
    for name in (*cifar.TRAIN_BATCHES, "test_batch"):
        labels = [number % 10 for number in range(10 * per_class)]
        data = np.random.default_rng(len(name)).integers(0, 255, (len(labels), 3072), dtype=np.uint8)
        data[:, 0] = labels
        (folder / name).write_bytes(pickle.dumps({b"data": data, b"labels": labels}, protocol=2))
    return folder


def of_python_2(data, labels) -> bytes:
    """Return a batch with the very operations that its authors' Python 2 wrote."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        + b"(K\x01(J"
        + struct.pack("<i", len(data))
        + b"M\x00\x0ctcnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
        + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T"
        + struct.pack("<i", data.size)
        + data.tobytes()
        + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + numbers + b"u."


# What the recipes are


def test_the_docs_name_every_recipe():
    assert [name for name in RECIPES if f"`featcache recipe {name}" not in PAGE] == []


@pytest.mark.parametrize("name", [name for name, one in RECIPES.items() if isinstance(one, Training)])
def test_its_settings_are_those_that_the_rooms_take(name):
    from featcache.heads.estimators import settings
    from featcache.heads.softmax import DenseSoftmax, check

    options = RECIPES[name].options
    Recipe(**{option: value for option, value in options["finetune"].items() if option != "controls"})
    head = options["sweep"]["heads"]
    [setting] = settings(head, {head: {key: [value] for key, value in options["head"].items()}})
    check(DenseSoftmax(**setting.params))


def test_the_set_ups_are_those_of_the_tutorials():
    flowers, hotdog, photos, cifar10, own = (one for one in RECIPES.values() if isinstance(one, Training))
    assert flowers.options["extract"]["backbone"] == "inception_v3"
    assert flowers.options["sweep"]["heads"] == "mlp:1024"
    assert [flowers.options["head"][name] for name in ("batch_size", "epochs", "steps_per_epoch")] == [64, 2, 800]
    tune = flowers.options["finetune"]
    assert [tune[name] for name in ("batch", "epochs", "steps_per_epoch")] == [64, 2, 800]
    assert [tune[name] for name in ("optimizer", "learning_rate")] == ["adagrad", 1e-4]
    assert [tune[name] for name in ("unfreeze", "augment")] == ["mixed0", "tutorial"]
    assert flowers.options["sweep"]["class_weight"] == "balanced"
    assert (flowers.options["sweep"]["train_views"], tune["augment_val"]) == (True, True)
    assert all(augmentation_of(view) for view in flowers.options["extract"]["views"].split(",")[1:])
    assert hotdog.options["extract"] == {"backbone": "resnet50_v2", "size": 224, "pool": "flatten"}
    assert hotdog.options["sweep"]["heads"] == "softmax"
    tune = hotdog.options["finetune"]
    assert [tune[name] for name in ("batch", "epochs", "steps_per_epoch", "controls")] == [32, 3, 10, "scratch"]
    assert hotdog.test_as_val
    assert photos.options["sweep"]["heads"] == "mlp:1024-512"
    assert photos.options["head"]["dropout"] == 0.2
    assert photos.options["scan"]["split"] == "80/20"
    assert photos.options["finetune"]["unfreeze"] == "4"
    assert (cifar10.options["extract"]["size"], cifar10.options["sweep"]["heads"]) == (139, "mlp:512")
    assert sum(cifar10.per_class.values()) * 10 == 12_000
    assert (own.options["extract"], own.options["scan"]) == ({"tap": "flatten_1"}, {"split": "90/10"})
    assert (own.options["sweep"]["heads"], own.options["finetune"]["controls"]) == ("mlp:1024", "own")
    for step, batch in (("head", "batch_size"), ("finetune", "batch")):
        values = own.options[step]
        assert [values[name] for name in ("optimizer", "learning_rate", "momentum")] == ["sgd", 1e-3, 0.9]
        assert [values[name] for name in (batch, "epochs", "patience")] == [64, 200, 10]
    assert own.options["head"]["nesterov"]


def test_the_last_8_layers_of_the_whole_mobilenet_model_are_4_of_the_backbone():
    from featcache.backbones.build import build
    from featcache.spec import BackboneSpec

    network = build(BackboneSpec("mobilenet_v2", weights="none"), 32, "avg").network
    last = int(RECIPES["flower-photos"].options["finetune"]["unfreeze"])
    assert [layer.name.partition("2d")[0] for layer in network.layers[-last:]] == [
        "Conv_1",
        "Conv_1_bn",
        "out_relu",
        "global_average_pooling",
    ]


# Other options


def test_every_option_of_a_step_can_be_set_and_is_printed():
    texts = ["scan.group_from=parent", "extract.size=160", "sweep.metric=macro_f1", "head.dropout=0.5"]
    texts += ["finetune.lr=3e-5", "finetune.unfreeze=8", "finetune.controls=frozen"]
    recipe = find("flowers").with_settings(parse_settings(texts))
    extract, sweep, finetune = recipe.commands("my photos", Path("out"))
    assert extract.startswith("featcache extract 'my photos' -o out/features.h5 -b inception_v3")
    assert " --size 160 " in extract
    assert " --group-from parent" in extract
    assert " --metric macro_f1 " in sweep
    assert " --class-weight balanced" in sweep
    assert "--grid mlp:1024.dropout=0.5" in sweep
    assert "--unfreeze 8 --epochs 2 --lr 3e-05" in finetune
    assert finetune.endswith("--controls frozen")
    assert find("flowers").options["extract"]["size"] == 299


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs=5", r"`settings` takes STEP.OPTION=VALUE, such as finetune.epochs=5; got 'epochs=5'"),
        ("finetun.epochs=5", r"`settings` takes scan, extract, sweep, head, finetune; .* \(did you mean finetune\?\)"),
        ("head.epoch=5", r"`settings` head takes .*did you mean epochs"),
        ("extract.out=x", r"`settings` extract takes backbone, tap"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_named(text, message):
    with pytest.raises(UsageError, match=message):
        find("flowers").with_settings(parse_settings([text]))


def test_imagenet_takes_random_weights_and_another_number_of_classes():
    recipe = find("imagenet").with_settings(parse_settings(["predict.weights=none", "predict.top=5"]))
    assert (recipe.weights, recipe.top) == ("none", 5)
    with pytest.raises(UsageError, match=r"`settings` predict.weights takes imagenet, none; got 'nothing'"):
        find("imagenet").with_settings(parse_settings(["predict.weights=nothing"]))


@pytest.mark.slow
def test_images_of_a_test_folder_are_validation_where_the_tutorial_says_so(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / "photos" / split, per_class=4)
        (tmp_path / "photos" / split / "red").rename(tmp_path / f"red-{split}")
    done = run_recipe("hotdog", tmp_path / "photos", tmp_path / "out", small=True, settings=QUICK)
    assert {(row.path.partition("/")[0], row.split) for row in done.images.rows} == {
        ("train", "train"),
        ("test", "val"),
    }
    assert done.run.num_select == 6
    assert "test folder as validation" in "\n".join(done.commands)


def test_small_heads_have_as_many_layers():
    assert find("flower-photos").small().options["sweep"]["heads"] == "mlp:16-8"


# Every recipe at small size


def check(done, folder):
    assert done.small
    assert done.tuned.path == folder / "model.keras"
    as_it_is = "the file's own classifier, as it is"
    assert {line.epochs for line in done.table[1:] if line.name != as_it_is} == {1}
    for line in done.table:
        assert line.interval[0] <= line.val <= line.interval[1]
        assert (line.seconds > 0) is (line.name != as_it_is)
    assert Run.open(folder / "head.run").trials[0].head == done.recipe.options["sweep"]["heads"]
    load_model(folder / "model.keras")
    return [line.name for line in done.table]


@pytest.mark.slow
def test_own_model_makes_a_model_itself_and_cuts_it_at_flatten_1(tmp_path):
    said = []
    done = run_recipe("own-model", out=tmp_path / "own", small=True, progress=said.append)
    assert check(done, tmp_path / "own") == [
        "head on frozen features",
        "the head trained on, stopped and kept by validation accuracy",
        "the file's own classifier, as it is",
        "the file's own classifier, trained on",
    ]
    assert done.table[2].val == done.tuned.controls["own"].start.val.value
    assert (tmp_path / "own" / "model.hdf5").exists()
    assert done.head.taps[0].layer == "flatten_1"
    assert any("mean NOTHING" in tick.note for tick in said)
    assert any(tick.note.startswith("featcache finetune ") for tick in said)
    assert [tick.note for tick in said if tick.note in done.commands] == list(done.commands)
    again = run_recipe("own-model", out=tmp_path / "own", small=True)
    assert (again.extracted.hits, again.extracted.computed) == (90, 0)
    assert again.head.trial == done.head.trial


def test_imagenet_names_three_classes_of_every_photo(tmp_path):
    done = run_recipe("imagenet", out=tmp_path / "imagenet", small=True)
    assert len(done.predictions) == 10
    for one in done.predictions:
        assert [share for _, share in one.top] == sorted((share for _, share in one.top), reverse=True)
        assert len(one.top) == 3
        assert one.top[0][0].startswith("class ")


@pytest.mark.slow
def test_own_model_takes_the_users(tmp_path):
    first = run_recipe("own-model", write_images(tmp_path / "photos"), tmp_path / "one", small=True)
    model = f"{first.folder / 'model.hdf5'}:mode=inside"
    done = run_recipe("own-model", tmp_path / "photos", tmp_path / "two", model=model, tap="flatten", epochs=2)
    assert len(done.images.rows) == 36
    [note] = done.tuned.notes
    assert "left out: the classifier of" in note
    assert "tells 10 classes apart, the images have 3" in note
    assert [line.name for line in done.table][1:] == [done.recipe.tuned]
    assert done.head.trial.params["hidden"] == 1024
    assert 1 <= done.table[1].epochs <= 2


@pytest.mark.slow
def test_the_printed_commands_give_the_same_trials_and_the_same_model(tmp_path, capsys):
    for split, per_class, first in (("train", 6, 0), ("val", 3, 6)):  # no more than a small recipe takes
        write_images(tmp_path / "photos" / split, per_class, first=first)
    model = str(write_small_model(tmp_path / "model.hdf5"))
    done = run_recipe("own-model", tmp_path / "photos", tmp_path / "out", model=model, small=True)

    capsys.readouterr()
    for line in done.commands[1:]:  # the first is a remark
        again = line.replace(str(tmp_path / "out"), str(tmp_path / "again"))
        app([*shlex.split(again)[1:], "--json"], standalone_mode=False)
        answer = json.loads(capsys.readouterr().out)
    trials = []
    for folder in (done.folder, tmp_path / "again"):
        trials.append([(trial.head, trial.params, trial.score) for trial in Run.open(folder / "head.run").trials])
    assert trials[0] == trials[1]
    assert [epoch["val_loss"] for epoch in answer["history"]] == [epoch.val_loss for epoch in done.tuned.history]
    assert answer["notes"] == list(done.tuned.notes)


@pytest.mark.slow
def test_flower_photos_trains_the_last_8_layers(tmp_path):
    done = run_recipe("flower-photos", out=tmp_path, small=True)
    assert check(done, tmp_path) == ["head on frozen features", "fine-tuned, last 8 layers"]
    assert done.images.splits.keys() == {"train", "val"}
    assert done.tuned.unfrozen == "block_16"


@pytest.mark.slow
def test_flowers_trains_all_but_the_first_18_layers(tmp_path):
    done = run_recipe("flowers", out=tmp_path, small=True)
    check(done, tmp_path)
    assert done.tuned.unfrozen == "mixed0"
    layers = done.tuned.model.get_layer("inception_v3").layers
    assert [layer.name.partition("_")[0] for layer in layers[17:18]] == ["max"]
    trains = [bool(layer.trainable_weights) for layer in layers]
    assert trains.index(True) == 18
    assert done.run.settings.class_weight == "balanced"
    assert [len(done.run.fingerprints), done.tuned.val_view] == [5, "tutorial-1"]  # the image and four views of it


@pytest.mark.slow
def test_hotdog_compares_with_training_from_scratch(tmp_path):
    done = run_recipe("hotdog", out=tmp_path, small=True)
    assert check(done, tmp_path) == ["head on frozen features", "fine-tuned, all layers", "from scratch"]
    assert len(done.images.classes) == 2


@pytest.mark.slow
def test_cifar_reads_batches_gives_advice_and_compares_three_ways(tmp_path):
    home = batches(tmp_path / "keras" / "datasets" / "cifar-10-batches-py", per_class=4)
    done = run_recipe("cifar", out=tmp_path / "out", small=True, images=home)
    assert check(done, tmp_path / "out") == ["head on frozen features", "unfrozen", "frozen", "from scratch"]
    assert done.images.splits == {"train": 60, "val": 30}
    assert done.images.classes.keys() == set(cifar.NAMES)
    assert done.advice.case.startswith("small and ")
    assert len(done.advice.curve) == 3


# What CIFAR-10 is read from


def test_batches_become_arrays_with_as_many_images_of_each_class(tmp_path):
    home = batches(tmp_path / "cifar-10-batches-py", per_class=2)
    found = scan(cifar.as_arrays(home, tmp_path / "few.npz", num_train=50, num_val=10))
    assert found.splits == {"train": 50, "val": 10}
    assert found.classes == dict.fromkeys(sorted(cifar.NAMES), 6)  # 5 of train, 1 of val
    with np.load(tmp_path / "few.npz") as arrays:
        assert arrays["x_train"].shape == (50, 32, 32, 3)
        assert [cifar.NAMES[pixel] for pixel in arrays["x_train"][:, 0, 0, 0]] == list(arrays["y_train"])


def test_a_batch_of_python_2_is_read(tmp_path):
    home = batches(tmp_path / "cifar-10-batches-py")
    plain = cifar.as_arrays(home, tmp_path / "plain.npz", 20, 10)
    for file in home.iterdir():
        content = pickle.loads(file.read_bytes())
        file.write_bytes(of_python_2(content[b"data"], content[b"labels"]))
    with np.load(plain) as a, np.load(cifar.as_arrays(home, tmp_path / "old.npz", 20, 10)) as b:
        assert all(np.array_equal(a[name], b[name]) for name in ("x_train", "y_train", "x_val", "y_val"))


@pytest.mark.parametrize("place", ["cifar-10-batches-py", "cifar-10-batches-py-target/cifar-10-batches-py"])
def test_cifar_is_found_where_keras_has_it(place, tmp_path):
    home = batches(tmp_path / "keras" / "datasets" / place)
    assert cifar.at_home() == home


def test_the_archive_is_read_as_it_is(tmp_path):
    home = batches(tmp_path / "cifar-10-batches-py")
    with tarfile.open(tmp_path / cifar.ARCHIVE, "w:gz") as archive:
        archive.add(home, home.name)
    one = cifar.as_arrays(tmp_path / cifar.ARCHIVE, tmp_path / "one.npz", 20, 10)
    other = cifar.as_arrays(tmp_path, tmp_path / "other.npz", 20, 10)  # the folder around the batches
    with np.load(one) as a, np.load(other) as b:
        assert all(np.array_equal(a[name], b[name]) for name in ("x_train", "y_train", "x_val", "y_val"))


def test_images_of_another_kind_are_left_to_scan(tmp_path):
    assert cifar.as_arrays(tmp_path, tmp_path / "few.npz", 10, 10) == tmp_path


class Harmful:
    def __reduce__(self):
        return eval, ("1",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps(Harmful()), r"builtins.eval, which could run code"),
        (pickle.dumps({b"data": np.zeros((2, 5), np.uint8), b"labels": [0, 1]}, protocol=2), r"shape \(2, 5\)"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, protocol=2), "labels run from 10"),
        (b"", "Ran out of input"),
    ],
)
def test_a_bad_batch_is_named_and_runs_no_code(content, reason, tmp_path):
    home = batches(tmp_path / "cifar-10-batches-py")
    (home / "data_batch_3").write_bytes(content)
    with pytest.raises(DataError, match=rf"data_batch_3 in .*{reason}.*again$"):
        cifar.as_arrays(home, tmp_path / "few.npz", 20, 10)
    assert not (tmp_path / "few.npz").exists()


def test_an_archive_without_batches_is_named(tmp_path):
    with tarfile.open(tmp_path / cifar.ARCHIVE, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("nothing"), io.BytesIO())
    with pytest.raises(DataError, match=r"data_batch_1 in .*cifar-10-python.tar.gz is no batch"):
        cifar.as_arrays(tmp_path / cifar.ARCHIVE, tmp_path / "few.npz", 20, 10)


# What is missing


def test_without_cifar_it_says_which_file_to_put_where(tmp_path):
    where = tmp_path / "keras" / "datasets"
    with pytest.raises(NoImages, match=rf"Put cifar-10-python.tar.gz .* into {where}.*featcache recipe cifar PATH"):
        run_recipe("cifar", out=tmp_path / "out")


@pytest.mark.slow
def test_without_weights_imagenet_says_which_files_to_put_where(tmp_path, no_network):
    said = r"Put vgg16_weights_tf_dim_ordering_tf_kernels.h5 \(https.*\) and imagenet_class_index.json \(https.*"
    with pytest.raises(WeightsMissing, match=rf"{said}into {tmp_path / 'keras' / 'models'}") as raised:
        run_recipe("imagenet", write_digits(tmp_path / "photos"))
    assert "\n" not in str(raised.value)


def test_a_damaged_class_index_is_named(tmp_path, no_network):
    folder = tmp_path / "keras" / "models"
    folder.mkdir(parents=True)
    for file in weights_of(find("imagenet")):
        file.write_bytes(b"nothing")
    with pytest.raises((WeightsMissing, WeightsMismatch), match=r"keras.models"):
        run_recipe("imagenet", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flowers", "hotdog", "flower-photos"])
def test_without_weights_it_says_which_file_to_put_where(name, tmp_path, no_network):
    photos = write_images(tmp_path / "photos", per_class=4)
    if name == "hotdog":
        (photos / "red").rename(tmp_path / "red")
    [file] = weights_of(find(name))
    with pytest.raises(WeightsMissing, match=rf"put {file.name} into {file.parent}") as raised:
        run_recipe(name, photos, tmp_path / "out")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"name": "flower"}, r"`recipe` takes list, flowers.*got 'flower' \(did you mean flowers"),
        ({"name": "flowers"}, r"'flowers' takes IMAGES: one folder per class.*flowers17.*`small=True`"),
        ({"name": "flowers", "model": "model.hdf5", "small": True}, "`model` and `tap` go with the recipe own-model"),
        ({"name": "imagenet", "tap": "flatten_1", "small": True}, "`model` and `tap` go with the recipe own-model"),
        ({"name": "own-model", "images": "photos"}, "takes one folder per class, and your model: -m model.hdf5"),
        ({"name": "own-model", "images": "photos", "model": "model.hdf5", "epochs": 0}, "`epochs` takes.*from 1"),
        ({"name": "imagenet", "small": True, "epochs": 1}, "trains nothing, so it takes no `epochs`"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_made(how, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        run_recipe(**how)
    assert list(tmp_path.iterdir()) == []


def test_the_state_of_a_control_that_is_none_is_kept(tmp_path):
    (tmp_path / "model.scratch.state").write_text("mine")
    with pytest.raises(UsageError, match=r"model\.scratch\.state is there already and is no state of a fine-tuning"):
        run_recipe("hotdog", write_images(tmp_path / "photos"), tmp_path, small=True)
    assert not (tmp_path / "features.h5").exists()


def test_hotdog_is_about_two_classes(tmp_path):
    with pytest.raises(DataError, match=r"'hotdog' is about 2 classes; .*photos has 3: blue, green, red"):
        run_recipe("hotdog", write_images(tmp_path / "photos"), tmp_path / "out", small=True)


# The command


def test_the_list_says_what_each_does_and_needs(tmp_path):
    from featcache_cli import recipe

    lines = recipe.list_text()
    text = " ".join(lines.split())  # long lines are folded
    for one in RECIPES.values():
        assert f"\n{one.name}\n" in f"\n{lines}"
        assert one.does in text
        assert one.data in text
        assert f"featcache recipe {one.name}" in text
        for file in weights_of(one):
            assert f"{file} (not there yet)" in text
    assert [one["name"] for one in json.loads(json.dumps(recipe.listed()))["recipes"]] == list(RECIPES)


@pytest.mark.slow
def test_the_result_is_printed_with_a_loud_warning(tmp_path):
    from featcache_cli import recipe

    done = run_recipe("own-model", out=tmp_path / "own", small=True)
    lines = recipe.text(done).splitlines()
    assert sum("mean NOTHING" in line for line in lines) == 2
    assert sum("states no class names: its outputs are taken in the order of the class names" in line for line in lines)
    assert lines[-1] == f"Next: featcache predict {tmp_path / 'own' / 'model.keras'} IMAGES"
    found = json.loads(json.dumps(recipe.document(done)))
    assert found["small"] is True
    assert [line["name"] for line in found["table"]] == [line.name for line in done.table]
    assert found["head"]["setting"]["optimizer"] == "sgd"


def test_named_photos_are_printed(tmp_path):
    from featcache_cli import recipe

    done = run_recipe("imagenet", out=tmp_path, small=True)
    assert isinstance(done.recipe, Naming)
    assert "0/0000.png" in recipe.named_text(done)
    assert len(json.loads(json.dumps(recipe.named_document(done)))["predictions"]) == 10
