"""No file names code that runs: a run, a cache and a model that want to run some, opened by every command that can."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import pytest
from tiny import write_images

import featcache as fc
from featcache.backbones.lineage import Lineage, Lineages
from featcache.cache import layout
from featcache.cache.rows import content_digest
from featcache.files import write_sealed
from featcache.models.modelfile import save_model
from featcache.spec import Tap
from featcache.sweeps import Run
from featcache.sweeps.records import write_record
from featcache.tuning.tuned import record_of

MODULE = """
from pathlib import Path
Path("marker").write_text("imported")
from sklearn.linear_model import LogisticRegression
class Head(LogisticRegression):
    pass
def network():
    import keras
    keras.utils.set_random_seed(7)
    return keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(4, 3, name="late")])
"""


def write_module(folder, name):
    """Write a module that leaves a file `marker` where it is imported."""
    (folder / f"{name}.py").write_text(MODULE)
    return name


def change_run(run, change):
    """Write run.json again after `change(facts)`."""
    facts = json.loads((run / "run.json").read_text())
    change(facts)
    write_sealed(run / "run.json", facts)  # whoever can write a run can write its checksum, too


def name_head(run, head, params):
    """Have run.json name this class with these parameters for its only trial, as if it were not stored."""

    def change(facts):
        [trial] = facts["trials"]
        trial.update(head=head, params=params, size=0)
        facts["settings"].update(heads=[head], grid=None)

    change_run(run, change)


def name_backbone(cache, run=None, **names):
    """Have a cache, and a run on it, name another backbone for the tap, with digests that fit."""
    with h5py.File(cache, "r+") as file:
        for group in layout.tap_groups(file, cache):
            tap = json.loads(layout.text_of(group, "tap"))
            tap["backbone"] |= names
            fingerprint = Tap.from_json(json.dumps(tap)).fingerprint
            layout.put_text(group, "tap", json.dumps(tap))
            layout.put_text(group, "fingerprint", fingerprint)
            layout.put_text(group, "content_digest", content_digest(group, cache))
        layout.put_text(file, "content_digest", layout.held_digest(file, cache))
    if run is not None:
        change_run(run, lambda facts: facts.update(fingerprints=dict.fromkeys(facts["fingerprints"], fingerprint)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with photos, a cache of raw pixels, and a run on it. Do not change it."""
    folder = tmp_path_factory.mktemp("made")
    cache = fc.extract(write_images(folder / "photos", 12), "pixels:size=8", out=folder / "c.h5")
    fc.sweep(cache, "ridge", cv=2, grid={"ridge": {"alpha": [1.0]}}, out=folder / "run")
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """Return a copy of what was made as the current folder, and forget the modules that are imported from it."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    change_run(tmp_path / "run", lambda facts: facts["settings"].update(cache=str(tmp_path / "c.h5")))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


RUN_COMMANDS = {
    "handoff run@best -o new.keras": 2,
    "finetune run@best -o new.keras": 2,
    "export run@best --to keras -o new.keras": 2,
    "report run --final": 2,
    "report run --html new.html": 2,
    "sweep --config run/run.json -o again": 2,
    "report run": 0,
    "show run": 0,
    "show run@best": 0,
    "show run --plot": 0,
    "compare run@1 run@1": 2,  # two of the same
}


@pytest.mark.parametrize("command", RUN_COMMANDS)
@pytest.mark.parametrize(
    ("head", "params"),
    [
        ("subprocess:Popen", {"args": "touch marker; sleep 1", "shell": True}),
        ("hostile_heads_of_a_test:Head", {}),
    ],
)
def test_a_run_runs_no_code(head, params, command, here, cli):
    write_module(here, "hostile_heads_of_a_test")
    name_head(here / "run", head, params)
    done = cli(*command.split())
    assert done.code == RUN_COMMANDS[command], done
    if done.code and not command.startswith("compare"):
        assert f"The class {head} is named by a file" in done.err
        assert f"--allow {head} " in done.err
        assert len(done.err.splitlines()) == 1
    assert not list(here.glob("new*"))
    assert not (here / "again").exists()
    assert not (here / "marker").exists()
    assert "hostile_heads_of_a_test" not in sys.modules


def test_what_is_allowed_must_be_a_classifier(here, cli):
    name_head(here / "run", "subprocess:Popen", {"args": "touch marker", "shell": True})
    done = cli("handoff", "run@best", "-o", "new.keras", "--allow", "subprocess:Popen")
    assert (done.code, "the class is no classifier, since it lacks fit or predict" in done.err) == (2, True), done
    assert not (here / "marker").exists()


def test_a_run_cannot_allow_what_it_names(here, cli):
    head = f"{write_module(here, 'self_allowed_of_a_test')}:Head"
    name_head(here / "run", head, {})
    change_run(here / "run", lambda facts: facts["settings"].update(allow=[head]))
    done = cli("sweep", "--config", "run/run.json", "-o", "again")
    assert (done.code, "sets 'allow', which is no setting of a run" in done.err) == (2, True), done
    assert not (here / "marker").exists()


def test_a_class_of_ones_own_is_used_where_the_user_names_it(here, cli):
    head = f"{write_module(here, 'own_heads_allowed_in_a_test')}:Head"
    name_head(here / "run", head, {"C": 0.5})
    assert cli("report", "run", "--final").code == 2
    done = cli("report", "run", "--final", "--json", "--allow", head)
    assert (done.code, json.loads(done.out)["test"]["metric"]) == (0, "accuracy"), done
    assert (here / "marker").exists()


def test_a_run_is_swept_again_with_the_classes_that_the_user_names(here, cli):
    head = f"{write_module(here, 'own_heads_swept_in_a_test')}:Head"
    name_head(here / "run", head, {})
    assert cli("sweep", "--config", "run/run.json", "-o", "again").code == 2
    done = cli("sweep", "--config", "run/run.json", "-o", "again", "--allow", head)
    assert (done.code, done.out.splitlines()[-1]) == (
        0,
        f"Next: featcache handoff again@best -o model.keras --allow {head}",
    ), done


def test_a_settings_file_of_the_users_names_code_as_the_command_line_does(here, cli):
    head = f"{write_module(here, 'own_heads_in_toml_of_a_test')}:Head"
    Path("mine.toml").write_text(f'cache = "c.h5"\nheads = ["{head}"]\ncv = 2\n')
    assert cli("sweep", "--config", "mine.toml", "-o", "again").code == 0
    assert Run.open("again").best.trial.head == head


def lambda_layer():
    """Return a layer whose code leaves a file `marker`."""
    return keras.layers.Lambda(lambda x: (__import__("pathlib").Path("marker").write_text("run"), x)[1])


CACHE_COMMANDS = {
    "cache verify c.h5 --recompute 2": 2,
    "handoff run@best -o new.keras": 2,
    "finetune run@best -o new.keras": 2,
    "export run@best --to keras -o new.keras": 2,
    "cache verify c.h5": 0,
    "cache info c.h5": 0,
    "cache why c.h5 photos/red/000.png": 0,
    "cache export c.h5 -o new.npz": 0,
    "cache merge c.h5 -o new.h5": 0,
    "leaks c.h5": 0,
    "advise c.h5": 0,
    "sweep c.h5 --heads ridge --cv 2 -o again": 0,
    "report run --final": 0,
    "report run --html new.html": 0,
    "show run": 0,
    "extract photos -b pixels:size=8 -o c.h5": 0,
}


@pytest.mark.parametrize("command", CACHE_COMMANDS)
def test_a_cache_runs_no_code(command, here, cli):
    function = f"{write_module(here, 'hostile_nets_of_a_test')}:network"
    name_backbone(here / "c.h5", here / "run", name="network", weights=function, origin="import")
    done = cli(*command.split())
    assert done.code == CACHE_COMMANDS[command], done
    if done.code:
        assert f"The backbone {function} is a function that a file names" in done.err
        assert f"--allow {function} " in done.err
        assert len(done.err.splitlines()) == 1
    assert not (here / "marker").exists()
    assert "hostile_nets_of_a_test" not in sys.modules


def test_a_function_that_is_imported_already_is_not_called_for_a_file(here, cli):
    name_backbone(here / "c.h5", name="getcwd", weights="os:getcwd", origin="import")
    done = cli("cache", "verify", "c.h5", "--recompute", "2")
    assert (done.code, "featcache calls only functions that you name" in done.err) == (2, True), done


def test_a_cache_runs_no_code_of_a_model_file(here, cli):
    """What was trusted when features were extracted is not trusted on the word of the cache."""
    keras.Sequential([keras.Input((8, 8, 3)), lambda_layer()]).save("code.keras")
    (here / "marker").unlink(missing_ok=True)  # Keras calls a layer when a model is made
    name_backbone(here / "c.h5", name="code", weights=str(here / "code.keras"), origin="file")
    done = cli("cache", "verify", "c.h5", "--recompute", "2")
    assert (done.code, "code.keras carries code" in done.err) == (4, True), done
    assert not (here / "marker").exists()


@pytest.mark.slow
def test_a_network_of_ones_own_goes_all_the_way_where_the_user_names_it(here, cli):
    """The module is called otherwise in the cache than when features were extracted, as in another process."""
    first, second = (write_module(here, f"own_nets_of_a_test_{number}") for number in (1, 2))
    assert cli("extract", "photos", "-o", "n.h5", "-b", f"{first}:network:mode=unit").code == 0
    name_backbone(here / "n.h5", weights=f"{second}:network")
    assert cli("sweep", "n.h5", "--heads", "ridge", "--cv", "2", "-o", "own").code == 0
    assert cli("handoff", "own@best", "-o", "new.keras").code == 2
    assert second not in sys.modules
    allowed = ("--allow", f"{second}:network")
    done = cli("handoff", "own@best", "-o", "new.keras", *allowed)
    assert (done.code, done.out.splitlines()[-1]) == (
        0,
        f"Next: featcache finetune own@best -o tuned.keras --allow {second}:network",
    ), done
    assert cli("cache", "verify", "n.h5", "--recompute", "2", *allowed).code == 0
    assert cli("predict", "new.keras", "photos").code == 0


def rewritten_config(path, change):
    """Give the configuration in a .keras file other content."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["config.json"] = change(members["config.json"].decode()).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


CONFIGS = {
    "a Lambda layer": None,
    "another module": lambda text: text.replace(
        '"module": "keras.layers", "class_name": "Dense"', '"module": "hostile_layers_of_a_test", "class_name": "Head"'
    ),
    "a function": lambda text: text.replace(
        '"activation": "linear"',
        '"activation": {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}',
    ),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_model_runs_no_code(what, here, cli):
    write_module(here, "hostile_layers_of_a_test")
    layers = [keras.layers.Flatten(), keras.layers.Dense(3)]
    if CONFIGS[what] is None:
        layers.insert(0, lambda_layer())
    model = keras.Sequential([keras.Input((8, 8, 3), dtype="uint8"), *layers])
    cache = fc.Cache.open("c.h5")
    facts = {"classes": list(cache.classes), "tap": cache.tap(None).to_json()}
    facts |= {"run": "run", "trial": 1, "finetuned": {}}
    save_model(model, Path("model.keras"), facts, Lineages(Lineage(), Lineage()))
    if CONFIGS[what] is not None:
        before = zipfile.ZipFile("model.keras").read("config.json")
        rewritten_config("model.keras", CONFIGS[what])
        assert zipfile.ZipFile("model.keras").read("config.json") != before
    (here / "marker").unlink(missing_ok=True)  # Keras calls a layer when a model is made
    write_record(record_of(Path("run"), Path("model.keras")), {"file": str(here / "model.keras"), "at": ""})
    for command in (
        "predict model.keras photos",
        "export model.keras --to keras -o new.keras --run run",
        "compare run@1 model.keras",
        "report run --final",
    ):
        done = cli(*command.split())
        is_refused = "Keras cannot load" in done.err or "has code of yours in it" in done.err
        assert (done.code, is_refused, len(done.err.splitlines())) == (4, True, 1), (command, done)
    assert not (here / "marker").exists()
    assert "hostile_layers_of_a_test" not in sys.modules


@pytest.mark.slow
def test_packages_in_the_current_folder_do_not_stand_in_for_installed_ones(here):
    """In a process of its own, which has not imported them yet."""
    for package in ("sklearn", "keras", "numpy", "scipy", "tensorflow"):
        Path(package).mkdir()
        for file in ("__init__.py", "svm.py", "linear_model.py"):
            (Path(package) / file).write_text("from pathlib import Path; Path('shadowed').touch(); raise SystemExit(9)")
    (here / "own_heads_of_a_test.py").write_text("import numpy, scipy, sklearn" + MODULE)
    command = [sys.executable, "-P", "-c", "from featcache_cli.app import main; main()", "sweep", "c.h5", "--cv", "2"]
    done = subprocess.run(
        [*command, "--heads", "sklearn.svm:SVC,own_heads_of_a_test:Head", "-o", "again"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {trial.status for trial in Run.open("again").trials} == {"ok"}
    assert Path("marker").exists()
    assert not Path("shadowed").exists()


def test_the_current_folder_is_searched_for_named_code_only(here, cli):
    head = f"{write_module(here, 'own_heads_looked_for_in_a_test')}:Head"
    before = list(sys.path)
    assert cli("sweep", "c.h5", "--heads", head, "--cv", "2", "-o", "again").code == 0
    assert sys.path == before
