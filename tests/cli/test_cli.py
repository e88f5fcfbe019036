import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from urllib.error import URLError

import h5py
import numpy as np
import pytest
import typer
from PIL import Image
from tiny import TOY, write_images

import featcache as fc
from featcache import errors
from featcache.heads.estimators import FAMILIES
from featcache.heads.layers import Affine
from featcache.sweeps.presets import PRESETS
from featcache.sweeps.run import Run
from featcache.sweeps.trial import spelt
from featcache_cli.app import EXIT_CODES, app, exit_code_of

PAGE = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
TAP = "glyphnet:weights=none/top"
SMALL = "mobilenet_v2:alpha=0.35:size=96"
FEATCACHE = [sys.executable, "-c", "from featcache_cli.app import main; main()"]


def commands(group=None, path=()):
    """Yield (name as typed, its help) of every command."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command.help


COMMANDS = dict(commands())
every_command = pytest.mark.parametrize("name", COMMANDS)


@pytest.fixture
def run(own_run):
    """Return the folder of a run that may be changed."""
    return own_run.path


@pytest.fixture(scope="module")
def model(toy_run, tmp_path_factory):
    from featcache.models import handoff

    path = tmp_path_factory.mktemp("model") / "model.keras"
    handoff(toy_run[8], path)
    return path


# Help


@every_command
def test_its_help_ends_in_an_example_of_it(name):
    last = COMMANDS[name].strip().splitlines()[-1]
    assert last.startswith(f"Example: featcache {name}")


@every_command
def test_the_page_of_commands_has_it(name):
    assert f"`featcache {name}" in PAGE


@every_command
def test_its_help_is_printed_and_says_json(name, cli):
    done = cli(*name.split(), "--help")
    assert done.code == 0
    assert f"Example: featcache {name}" in " ".join(done.out.split())
    assert "--json" in done.out


@pytest.mark.parametrize("arguments", [[], ["backbones"], ["cache"]])
def test_without_a_command_the_help_page_is_shown_as_a_page(arguments, cli):
    done = cli(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert len(done.err.splitlines()) > 5


def test_the_version_is_printed(cli):
    done = cli("--version")
    assert done == (0, "featcache 0.1.0\n", "")


# What each command prints as JSON


def document(done, keys):
    assert done.code == 0, done.err
    facts = json.loads(done.out, parse_constant=pytest.fail)
    assert keys <= facts.keys()
    return facts


def test_json_of_scan(cli, photos):
    facts = document(cli("scan", photos, "--json"), {"images", "classes", "splits", "unreadable", "duplicates"})
    assert facts["images"] == 36
    assert facts["classes"] == {"blue": 12, "green": 12, "red": 12}


def test_json_of_extract(cli, photos, tmp_path):
    keys = {"cache", "images", "hits", "computed", "failed", "taps", "seconds", "images_per_s"}
    facts = document(cli("extract", photos, "-o", tmp_path / "c.h5", "-b", "pixels:size=8", "--json"), keys)
    assert (facts["hits"], facts["computed"], facts["failed"]) == (0, 36, [])
    assert facts["taps"] == [{"tap": "pixels:size=8/top", "width": 192, "precision": "float32", "engine": "numpy"}]
    again = document(cli("extract", photos, "-o", tmp_path / "c.h5", "-b", "pixels:size=8", "--json"), keys)
    assert (again["hits"], again["computed"]) == (36, 0)


def test_json_of_sweep(cli, toy, tmp_path):
    done = cli("sweep", toy.path, "-o", tmp_path / "run", "--heads", "ridge", "--tap", TAP, "--json")
    facts = document(done, {"run", "trials", "failed", "seconds", "best"})
    assert {"trial", "tap", "head", "metric", "score", "interval"} <= facts["best"].keys()
    assert (facts["trials"], facts["failed"], len(facts["best"]["interval"])) == (5, 0, 2)


def test_json_of_show(cli, run):
    keys = {"trial", "tap", "head", "score", "interval", "fit_s", "handoff"}
    facts = document(cli("show", run, "--json"), {"trials"})
    assert len(facts["trials"]) == 21
    assert all(keys <= trial.keys() for trial in facts["trials"])
    assert document(cli("show", f"{run}@18", "--json"), keys)["head"] == "knn"


def test_json_of_handoff(cli, run, tmp_path):
    facts = document(cli("handoff", f"{run}@8", "-o", tmp_path / "m.keras", "--json"), {"model", "parity", "agreement"})
    assert max(facts["parity"]["inference"], facts["parity"]["training"]) <= 1e-3
    assert Path(facts["model"]).exists()


def test_json_of_finetune(cli, run, tmp_path):
    keys = {"model", "start", "best", "epochs", "seconds_per_epoch", "parity"}
    options = ["-o", tmp_path / "t.keras", "--unfreeze", "none", "--epochs", "1", "--json"]
    facts = document(cli("finetune", f"{run}@8", *options), keys)
    assert facts["best"]["val"] >= facts["start"]["val"]
    assert {"inference", "training"} == facts["parity"].keys()
    assert facts["epochs"] == 1


def test_json_of_predict(cli, model, photos, tmp_path):
    (photos / "bad.jpg").write_text("no image")
    done = cli("predict", model, photos, "--csv", tmp_path / "p.csv", "--top", "2", "--json")
    facts = document(done, {"rows", "failed", "csv"})
    assert facts["rows"] == 37
    assert [one["path"] for one in facts["failed"]] == ["bad.jpg"]
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 38
    assert "predictions" not in facts
    assert facts["statuses"] == {"ok": 36, "unknown_format": 1}


def test_predict_without_a_file_prints_the_rows(cli, model, photos, tmp_path, monkeypatch):
    (photos / "notes.txt").write_text("no image by its name")
    (photos / "red" / "009.png").write_text("no image")
    facts = document(cli("predict", model, photos, "--json", "--reject", "0.5"), {"rows", "failed", "csv", "accuracy"})
    assert [one["path"] for one in facts["predictions"]] == sorted(one["path"] for one in facts["predictions"])
    assert (facts["rows"], len(facts["predictions"]), facts["not_looked_at"]) == (36, 36, {".txt": 1})
    assert facts["unknown"] == sum(one["unknown"] for one in facts["predictions"] if one["status"] == "ok") > 0
    monkeypatch.setattr("featcache_cli.predict.BLOCK", 20)
    done = cli("predict", model, photos, "--top", "2", "--reject", "0.5")
    assert done.out.count("path ") == 2
    assert done.out.count("unknown (") == facts["unknown"]
    low, high = facts["known_unknown_rate"]
    assert f"of the {facts['threshold_images']} known images that set this threshold" in done.out
    assert f"expect {low:.1%} to {high:.1%} (95 % interval) to be called unknown" in done.out
    assert "36 images, 1 could not be read (1 unknown_format)" in done.out
    assert "Not looked at, by their names: 1 file (1 .txt)" in done.out
    assert "skipped red/009.png: unknown_format" in done.err


def test_predict_reads_a_list_on_standard_input(cli, model, photos, tmp_path, monkeypatch):
    listed = b"\0".join([os.fsencode(photos / "red" / "000.png"), b"gone \xe9\n.png"])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listed)))
    out = tmp_path / "p.jsonl"
    facts = document(cli("predict", model, "-", "-o", out, "--json"), {"rows", "failed", "csv", "out"})
    assert (facts["rows"], facts["num_failed"], facts["csv"], facts["out"]) == (2, 1, None, str(out))
    paths = [json.loads(line)["path"] for line in out.read_text().splitlines()]
    assert [os.fsencode(one) for one in paths] == listed.split(b"\0")
    monkeypatch.setattr("featcache_cli.predict.NAMED", 1)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\nc\n")))
    said = cli("predict", model, "-", "-o", out).err.splitlines()
    assert said == ["skipped a: unreadable, No such file or directory", "... and 2 more, which are rows as well"]
    refused(cli("predict", model, "-", "-"), 2, "Standard input has one list: give - once")
    refused(cli("predict", model, photos, "-o", tmp_path / "p.txt"), 2, "ends in .csv, .jsonl, .parquet; got '.txt'")


@pytest.mark.slow
def test_a_report_is_one_page(cli, run, tmp_path):
    page = tmp_path / "r.html"
    done = cli("report", run, "--html", page)
    assert (done.code, done.out.splitlines()[-1]) == (0, f"Report: {page}")
    assert page.read_text().startswith("<!doctype html>")
    assert "Best head: trial" in page.read_text()
    facts = document(cli("report", f"{run}@1", "--html", page, "--json"), {"html", "final", "test"})
    assert facts["html"] == str(page)
    assert '<p class="lead">Head: trial 1, ' in page.read_text()
    refused(cli("report", run, "--html", page, "--images", tmp_path / "gone"), 4, "--images FOLDER")


def test_what_cannot_be_written_is_said_before_test_is_opened(cli, run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "logs" / run.name).mkdir(parents=True)
    (tmp_path / "logs" / run.name / "notes.txt").write_text("mine")
    page = tmp_path / "page.html"
    refused(cli("report", run, "--final", "--html", tmp_path), 2, "is a folder, but a report of featcache is a file")
    refused(cli("report", run, "--final", "--html", tmp_path / "notes.txt" / "x.html"), 5, "Cannot")
    refused(cli("report", run, "--final", "--html", tmp_path / "notes.txt"), 2, "is no report")
    refused(cli("report", run, "--final", "--html", page, "--images", tmp_path / "gone"), 4, "--images FOLDER")
    refused(cli("report", run, "--final", "--tensorboard", tmp_path / "logs"), 2, "is there already")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not page.exists()
    assert Run.open(run).test_opened == ()


@pytest.mark.slow
def test_the_best_is_called_so_when_test_is_open_too(cli, run, tmp_path):
    assert cli("report", f"{run}@best", "--final", "--html", tmp_path / "page.html").code == 0
    assert "Best head: trial" in (tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_json_of_export(cli, run, model, tmp_path):
    out = tmp_path / "new.keras"
    done = cli("export", model, "--to", "keras", "-o", out, "--run", run, "--assert", "accuracy>=0.5", "--json")
    facts = document(done, {"file", "format", "input", "difference", "agreement", "scores", "asserted"})
    assert (facts["file"], facts["difference"], facts["asserted"]) == (str(out), 0.0, ["accuracy>=0.5"])
    assert facts["scores"] == facts["model_scores"]
    done = cli("export", model, "--to", "keras", "-o", out, "--run", run, "--assert", "accuracy>=0.5")
    for part in ("probabilities differ by 0.0e+00 at most", "Asserted and met: accuracy>=0.5", f"File: {out}"):
        assert part in done.out
    never = ["--run", run, "-q", "--assert", "ece<=-1"]
    failed = cli("export", model, "--to", "keras", "-o", tmp_path / "n.keras", *never)
    refused(failed, 3, "--assert ece<=-1 is not met", "of the validation images of")
    assert not (tmp_path / "n.keras").exists()


def test_export_without_its_package_is_exit_code_5(cli, model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    refused(cli("export", model, "--to", "onnx", "-o", tmp_path / "m.onnx"), 5, "pip install 'featcache[onnx]'")


def test_json_of_report(cli, run):
    facts = document(cli("report", run, "--json"), {"html", "final", "test"})
    assert (facts["final"], facts["test"]) == (False, None)
    facts = document(cli("report", run, "--final", "--json"), {"html", "final", "test"})
    assert {"metric", "score", "interval", "images"} <= facts["test"].keys()
    assert facts["test"]["images"] == sum(one["images"] for one in facts["test"]["classes"]) > 0
    assert facts["tests"] == [facts["test"]]
    assert len(Run.open(run).test_opened) == 1
    assert {"run", "trial", "at", "images"} <= facts["looks"][-1].keys()


def test_json_of_cache_info_and_backbones(cli, toy):
    facts = document(cli("cache", "info", toy.path, "--json"), {"cache", "images", "splits", "taps", "failed"})
    assert {tap["name"] for tap in facts["taps"]} == set(toy.taps)
    assert len(document(cli("backbones", "list", "--json"), {"backbones"})["backbones"]) == 45
    assert document(cli("backbones", "show", "resnet50", "--json"), {"name", "size", "weights"})["size"] == 224


def test_a_cache_of_a_transformer_has_no_images_until_they_are_extracted(cli, photos, tmp_path):
    cache = tmp_path / "c.h5"
    fc.FeatureExtractor("pixels:size=8", cache=cache).fit(sorted(photos.rglob("*.png")))
    info = cli("cache", "info", cache)
    assert info.out.startswith("No table of images yet, only features: fc.FeatureExtractor made them")
    assert "pixels:size=8/top    36" in info.out
    assert cli("cache", "verify", cache).code == 0
    refused(cli("sweep", cache), 4, "has no labels")
    done = cli("extract", photos, "-o", cache, "-b", "pixels:size=8")
    assert "36 images: 36 cached, 0 computed" in done.out
    assert "replacing" not in done.err
    assert cli("cache", "info", cache).out.startswith("36 images of ")


def test_backbones_list_marks_those_that_work_without_network(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "efficientnetb0_notop.h5").write_bytes(b"weights")
    rows = [line.split() for line in cli("backbones", "list").out.splitlines()]
    lites = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]  # installed for the tests
    assert [row[0] for row in rows if "yes" in row[1:2]] == ["glyphnet", "pixels", *lites, "efficientnet_b0"]
    backbones = document(cli("backbones", "list", "--json"), {"backbones"})["backbones"]
    assert [facts["name"] for facts in backbones if facts["present"]] == ["glyphnet", *lites, "efficientnet_b0"]
    here = document(cli("backbones", "list", "--here", "--json"), {"backbones", "presets"})
    assert [facts["name"] for facts in here["backbones"]] == ["glyphnet", "pixels", *lites, "efficientnet_b0"]
    assert here["presets"] == []


@pytest.mark.slow
def test_json_of_quickstart(cli, tmp_path):
    photos = write_images(tmp_path / "photos", per_class=12)
    done = cli("quickstart", photos, "-o", tmp_path / "out", "-b", TOY, "--split", "60/20/20", "--json", "--quiet")
    facts = document(done, {"extract", "sweep", "handoff", "finetune", "table"})
    keys = {"name", "train_images", "test_score", "interval", "seconds"}
    assert all(keys <= line.keys() for line in facts["table"])


@pytest.mark.slow
def test_quickstart_prints_each_part_in_turn_and_trains_no_controls_if_told_so(cli, tmp_path):
    photos = write_images(tmp_path / "photos", per_class=12)
    out = tmp_path / "out"
    done = cli("quickstart", photos, "-o", out, "-b", TOY, "--split", "60/20/20", "--no-controls", "--quiet")
    assert done.code == 0, done
    parts = ["36 images, 3 classes", "computed", "Heads on the features", "Parity on", "Epoch 0 is", "train images"]
    assert [done.out.index(part) for part in parts] == sorted(done.out.index(part) for part in parts)
    assert ("frozen features" in done.out, "from scratch" in done.out, "raw pixels" in done.out) == (True, False, False)
    assert [folder.name for folder in (out / "runs").iterdir()] == ["features-all"]


# What each command prints as text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "RUN"], "trials tie at 1.0000"),
        (["show", "RUN@best"], "ridge"),
        (["report", "RUN"], "The test split was not read."),
        (["report", "RUN", "--final"], "on the test split"),
        (["cache", "info", "CACHE"], "90 images of"),
        (["backbones", "list"], "mobilenet_v2"),
        (["backbones", "show", "glyphnet"], "present      yes"),
    ],
)
def test_text(arguments, said, cli, run, toy):
    done = cli(*(one.replace("RUN", str(run)).replace("CACHE", str(toy.path)) for one in arguments))
    assert (done.code, done.err) == (0, "")
    assert said in done.out


def test_the_next_command_is_named_and_parses_as_printed(cli, photos, tmp_path):
    """The fixture `cli` parses every command that is printed; here each of these steps must print one."""
    cache = tmp_path / "my photos.h5"
    written = shlex.quote(str(cache))
    assert f"Next: featcache sweep {written}\n" in cli("extract", photos, "-o", cache, "-b", "pixels:size=8").out
    assert "Next: featcache handoff" in cli("sweep", cache, "--heads", "ridge").out
    assert "Next: featcache sweep" in cli("advise", cache).out


def test_a_missing_refit_is_made_by_the_command_that_is_named(cli, run, tmp_path):
    refused = cli("handoff", f"{run}@refit", "-o", tmp_path / "m.keras")
    assert refused.code == 2
    command = refused.err.strip().partition("Fit one: featcache ")[2]
    assert cli(*shlex.split(command)).out.splitlines()[-1] == f"Next: featcache handoff {run}@refit -o model.keras"


@pytest.mark.slow
def test_the_next_command_can_be_copied_whatever_a_path_is_called(cli, photos, tmp_path, monkeypatch):
    """Each command is the one that the command before names."""
    monkeypatch.chdir(tmp_path)
    cache, names = tmp_path / "my photos.h5", iter(["1", "2"])
    done = cli("extract", photos, "-o", cache, "-b", "glyphnet")
    following = []
    for more in (["--heads", "ridge"], [], ["--epochs", "1"]):
        command = shlex.split(done.out.splitlines()[-1].removeprefix("Next: featcache "))
        command = [f"my {next(names)}.keras" if word.endswith(".keras") else word for word in command]
        following.append(command[:2])
        done = cli(*command, *more)
        assert done.code == 0, done.err
    assert following == [
        ["sweep", str(cache)],
        ["handoff", f"{tmp_path / 'my photos.run'}@best"],
        ["finetune", f"{tmp_path / 'my photos.run'}@best"],
    ]
    assert done.out.splitlines()[-1] == "Next: featcache predict 'my 2.keras' IMAGES"


@pytest.mark.slow
def test_the_next_command_after_the_test_split_runs_as_printed(cli, run, tmp_path, monkeypatch):
    def next_command():
        done = cli("report", run, "--final")
        assert done.code == 0, done.err
        return shlex.split(done.out.splitlines()[-1].removeprefix("Next: featcache "))

    monkeypatch.chdir(tmp_path)
    of_head = next_command()
    assert of_head[0] == "handoff"
    assert cli(*of_head).code == 0

    assert cli("finetune", f"{run}@6", "-o", "t.keras", "--epochs", "2", "--lr", "1e-3").code == 0
    of_model = next_command()
    assert of_model[:2] == ["export", str(tmp_path / "t.keras")]
    assert cli(*of_model).code == 0
    assert "Fine-tuned from head 6: t.keras" in cli("report", run).out
    # The head that was named is the one to use.
    done = cli("report", f"{run}@best", "--final")
    assert "Next: featcache handoff" in done.out.splitlines()[-1]


def test_a_quickstart_with_too_little_to_choose_on_says_what_it_takes_itself(cli, tmp_path):
    done = cli("quickstart", write_images(tmp_path / "photos", 2), "-o", tmp_path / "q", "-b", "glyphnet")
    assert done.code == 4
    assert "validation images, and quickstart chooses on at least 2. Add images, or give more of them" in done.err
    assert "--split 50/50/0" in done.err


def test_settings_come_from_a_file_and_flags_win(cli, toy, tmp_path):
    config = tmp_path / "sweep.toml"
    config.write_text(f'cache = "{toy.path}"\nheads = ["ridge"]\ntaps = ["{TAP}"]\nseed = 3\nmetric = "macro_f1"\n')
    done = cli("sweep", "--config", config, "-o", tmp_path / "a", "--metric", "accuracy", "--json")
    assert done.code == 0, done.err
    settings = json.loads((tmp_path / "a" / "run.json").read_text())["settings"]
    assert (settings["seed"], settings["metric"], settings["heads"]) == (3, "accuracy", ["ridge"])
    assert cli("sweep", "--config", tmp_path / "a" / "run.json", "-o", tmp_path / "b").code == 0
    assert json.loads((tmp_path / "b" / "run.json").read_text())["settings"] == settings


def test_a_setting_that_does_not_exist_is_refused_with_near_names(cli, tmp_path):
    (tmp_path / "s.toml").write_text("hedas = 3")
    done = cli("sweep", "c.h5", "--config", tmp_path / "s.toml")
    assert done.code == 2
    assert "sets 'hedas'" in done.err
    assert "did you mean heads" in done.err


def test_the_tap_of_a_settings_file_may_be_called_as_the_flag_is(cli, toy, tmp_path):
    (tmp_path / "s.toml").write_text(f'heads = "ridge"\ntap = "{TAP}"\n')
    done = cli("sweep", toy.path, "--config", tmp_path / "s.toml", "-o", tmp_path / "run", "--json")
    assert json.loads(done.out)["best"]["tap"] == TAP
    (tmp_path / "s.toml").write_text(f'tap = "{TAP}"\ntaps = "{TAP}"\n')
    refused(cli("sweep", toy.path, "--config", tmp_path / "s.toml"), 2, "s.toml sets both tap and taps")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("trials.json", "{}", "trials.json has no settings of a run"),
        ("list.json", "[1]", "list.json has no settings of a run"),
        ("odd.json", '{"settings": 3}', "odd.json has no settings of a run"),
        ("bad.json", "{", "cannot read"),
        ("sweep.yaml", "heads: ridge\ncv: 5\n", "sweep.yaml"),
        ("folder", None, "Is a directory"),
        ("none.toml", "", "No such file"),
    ],
)
def test_a_settings_file_that_is_none_is_named_with_what_it_takes(name, text, said, cli, tmp_path):
    path = tmp_path / name
    if text is None:
        path.mkdir()
    elif text:
        path.write_text(text)
    refused(
        cli("sweep", "c.h5", "--config", path), 2, f"{path}", said, "It takes the run.json of a run, or a TOML file"
    )


def test_heads_and_presets_are_listed_with_what_they_try(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    facts = document(cli("sweep", "--list-heads", "--json"), {"heads", "presets"})
    assert {one["head"]: one["grid"] for one in facts["heads"]}["ridge"] == {"alpha": [1e4, 1e3, 1e2, 1e1, 1.0]}
    assert sum(len(next(iter(one["grid"].values()))) for one in facts["heads"] if one["default"]) == 21
    assert [one["preset"] for one in facts["presets"]] == list(PRESETS)
    shown = cli("sweep", "--list-heads").out
    for family in FAMILIES.values():
        line = next(line for line in shown.splitlines() if line.startswith(f"{family.name} "))
        assert all(f"{spelt(value)}" in line for params in family.grid for value in params.values())
    for name, preset in PRESETS.items():
        line = next(line for line in shown.splitlines() if line.startswith(f"{name} "))
        assert all(word in line for word in (preset.heads, preset.prepare))
        assert f"{name}: {preset.source}" in shown
    assert "C=1e-06..100000 (45 values)" in shown
    assert "1, 2, 5, 10 per class, 3 draws" in shown
    assert "the last tap, and the last 4 joined" in shown


def test_two_presets_are_refused_wherever_they_are_named(cli, toy, tmp_path):
    (tmp_path / "s.toml").write_text('preset = "dinov2"')
    two = ["--preset", "kornblith", "--preset", "clip"]
    refused(cli("sweep", toy.path, *two), 2, "--preset takes one protocol; got kornblith, clip")
    file = ["--config", tmp_path / "s.toml"]
    refused(cli("sweep", toy.path, *two[:2], *file), 2, "--preset takes one protocol; got kornblith, dinov2")


# Exit codes


def refused(done, code, *said):
    """Check that it was refused with this code in one line that says so, and nothing on stdout."""
    assert done.code == code, done
    assert done.out == ""
    assert done.err.startswith("featcache: ")
    assert len(done.err.splitlines()) == 1
    for words in said:
        assert words in done.err


def test_a_missing_folder(cli, tmp_path):
    for command in (
        ["scan"],
        ["extract", "-o", tmp_path / "c.h5", "-b", "pixels"],
        ["quickstart", "-o", tmp_path / "q"],
    ):
        refused(cli(command[0], tmp_path / "nowhere", *command[1:]), 4, "nowhere does not exist")


def test_an_empty_folder(cli, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(cli("scan", tmp_path / "empty"), 4, "No images in", "empty")


def test_one_class_only(cli, photos):
    for label in ("blue", "green"):
        shutil.rmtree(photos / label)
    refused(cli("scan", photos), 4, "one class only, 'red'")


def test_a_class_with_one_image_is_shown_and_named(cli, photos):
    for path in sorted((photos / "red").iterdir())[1:]:
        path.unlink()
    scanned = cli("scan", photos)
    assert scanned.code == 0
    assert "1 of 3 classes have one image only, which trains and cannot judge: red." in scanned.out


def test_bad_images_are_skipped_named_and_counted(cli, photos, tmp_path):
    (photos / "red" / "text.jpg").write_text("no image")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(photos / "red/cut.jpg")
    (photos / "red" / "cut.jpg").write_bytes((photos / "red" / "cut.jpg").read_bytes()[:900])
    arguments = ["extract", photos, "-o", tmp_path / "c.h5", "-b", "pixels:size=8"]
    done = cli(*arguments)
    assert done.code == 0
    assert "skipped red/text.jpg: unknown_format" in done.err
    assert "skipped red/cut.jpg: truncated" in done.err
    assert "38 images: 0 cached, 36 computed, 2 skipped" in done.out
    facts = json.loads(cli("scan", photos, "--json").out)
    assert {one["path"] for one in facts["unreadable"]} == {"red/text.jpg", "red/cut.jpg"}
    refused(cli(*arguments, "--strict"), 4, "2 of 38 images cannot be used")


def test_a_cache_of_another_version(cli, toy, tmp_path):
    shutil.copy(toy.path, tmp_path / "c.h5")
    with h5py.File(tmp_path / "c.h5", "r+") as file:
        file.attrs["format_version"] = 99
    refused(cli("sweep", tmp_path / "c.h5"), 4, "cache format 99", "Upgrade featcache")


def test_a_cache_that_is_no_hdf5(cli, tmp_path):
    (tmp_path / "c.h5").write_text("no cache")
    refused(cli("cache", "info", tmp_path / "c.h5"), 4, "is not an HDF5 file")


def test_an_unknown_backbone(cli, photos, tmp_path):
    refused(cli("extract", photos, "-o", tmp_path / "c.h5", "-b", "mobilnet_v2"), 2, "mobilenet_v2")
    refused(cli("backbones", "show", "resnet5"), 2, "resnet50")


def test_weights_that_do_not_fit(cli, photos, tmp_path):
    np.savez(tmp_path / "w.npz", stem=np.zeros(3))
    done = cli("extract", photos, "-o", tmp_path / "c.h5", "-b", "glyphnet", "--weights", tmp_path / "w.npz")
    refused(done, 4, "w.npz do not fit backbone 'glyphnet'")


@pytest.mark.slow
def test_a_failed_gate(cli, run, tmp_path, monkeypatch):
    # leave the features as they are instead of standardising them
    monkeypatch.setattr(Affine, "standardising", lambda mean, scale: Affine(np.ones_like(scale), np.zeros_like(mean)))
    for command in ("handoff", "finetune"):
        refused(cli(command, f"{run}@8", "-o", tmp_path / "m.keras", "-q"), 3, "Parity failed for", "toy.run@8")
    assert not (tmp_path / "m.keras").exists()


def test_usage(cli, run, tmp_path):
    refused(cli("sweeep"), 2, "No such command 'sweeep'")
    refused(cli("sweep", "c.h5", "--cv", "x"), 2, "--cv takes a number of folds from 2, or loo; got x")
    refused(cli("sweep", "c.h5", "--shots", "x"), 2, "--shots", "See: featcache sweep --help")
    refused(cli("sweep"), 2, "Name a cache")
    refused(cli("show", f"{run}@99"), 2, "got '99'")


def test_a_fault_of_ours_is_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["featcache", "scan", "x"])
    monkeypatch.setattr("featcache.images.manifest.scan", lambda *a, **k: 1 / 0)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as leaving:
        import_module("featcache_cli.app").main()
    signal.signal(signal.SIGTERM, handler)
    told = capsys.readouterr().err
    assert (leaving.value.code, told.splitlines()[0]) == (1, "Traceback (most recent call last):")
    assert "ZeroDivisionError" in told


def test_every_kind_of_error_has_its_exit_code():
    kinds = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.FeatcacheError)]
    assert len(kinds) > 15
    assert sorted(set(EXIT_CODES.values())) == [2, 3, 4, 5]
    assert {kind.__name__ for kind in kinds if exit_code_of(kind("")) == 1} == {"FeatcacheError"}


# In a process of its own


def light(*arguments, heavy=()):
    """Run a command and return which heavy modules it has imported."""
    code = (
        f"heavy = {heavy}\n"
        "import atexit, sys; sys.argv = ['featcache', *sys.argv[1:]]; from featcache_cli.app import main\n"
        "heavy = ('tensorflow', 'keras', *heavy)\n"
        "atexit.register(lambda: print('imported', [one for one in heavy if one in sys.modules], file=sys.stderr))\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["scan", "PHOTOS"],
        ["cache", "info", "CACHE"],
        ["sweep", "CACHE", "-o", "NEW", "--heads", "ridge,logreg,svm,knn"],
        ["show", "RUN"],
        ["report", "RUN"],
        ["backbones", "list"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_needs_no_network_does_not_wait_for_tensorflow(arguments, photos, toy, toy_run, tmp_path):
    places = {"PHOTOS": photos, "CACHE": toy.path, "RUN": toy_run.path, "NEW": tmp_path / "new"}
    assert light(*(places.get(one, one) for one in arguments)) == "imported []"


@pytest.mark.parametrize("command", ["show", "report"])
def test_results_do_not_wait_for_scipy(command, toy_run):
    assert light(command, toy_run.path, heavy=("sklearn", "scipy.stats")) == "imported []"


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["extract", "PHOTOS", "-o", "OUT", "-b", SMALL], "-b glyphnet (needs no download) or --weights none (random)"),
        (["quickstart", "PHOTOS", "-o", "OUT", "-b", SMALL], "-b glyphnet (needs no download)"),
        (
            ["recipe", "flower-photos", "PHOTOS", "-o", "OUT", "--set", f"extract.backbone={SMALL}"],
            "--set extract.weights=none (random), or try it with --small",
        ),
    ],
    ids=lambda arguments: arguments[0],
)
def test_no_network_advises_what_the_command_takes(arguments, advice, photos, tmp_path, monkeypatch, cli):
    def refuse(*arguments, **options):
        raise URLError("no route to host")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path / "keras"))
    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", refuse)
    places = {"PHOTOS": str(photos), "OUT": str(tmp_path / "new")}
    done = cli(*(places.get(word, word) for word in arguments))
    assert done.code == 5
    instead = "or use efficientnet_lite0, whose weights are installed"
    assert done.err.splitlines()[-1].endswith(f"; {instead}; or use {advice}")


@pytest.mark.slow
def test_no_network_names_the_file_and_where_to_put_it(photos, tmp_path):
    nothing = "http://127.0.0.1:9"
    env = os.environ | {"KERAS_HOME": str(tmp_path / "keras"), "https_proxy": nothing, "HTTPS_PROXY": nothing}
    arguments = ["extract", photos, "-o", tmp_path / "c.h5", "-b", "mobilenet_v2:alpha=0.35:size=96"]
    done = subprocess.run([*FEATCACHE, *map(str, arguments)], capture_output=True, text=True, env=env)
    assert done.returncode == 5, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("featcache: No network")
    assert f"put mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96_no_top.h5 into {tmp_path / 'keras'}" in last
    assert done.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_extraction_says_how_to_go_on_and_goes_on(number, photos, tmp_path):
    code = (
        "import sys, time; from featcache.extraction.engines import PixelEngine\n"
        "keep = PixelEngine.forward\n"
        "def forward(self, batch):\n"
        "    print('batch', flush=True); time.sleep(0.3); return keep(self, batch)\n"
        "PixelEngine.forward = forward\n"
        "from featcache_cli.app import main; main()"
    )
    arguments = ["extract", str(photos), "-o", str(tmp_path / "c.h5"), "-b", "pixels:size=8", "--batch", "2", "-q"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(3):
        assert process.stdout.readline() == "batch\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.startswith("featcache: Stopped. What was done is kept; run the same command again")
    assert len(said.splitlines()) == 1
    done = subprocess.run([*FEATCACHE, *arguments, "--json"], capture_output=True, text=True)
    facts = json.loads(done.stdout)
    assert facts["images"] == 36
    assert facts["hits"] >= 4
    assert facts["hits"] + facts["computed"] == 36


@pytest.mark.parametrize("arguments", [["backbones", "list"], ["backbones", "list", "--json"], ["--help"]])
def test_a_reader_that_leaves_is_no_fault(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*FEATCACHE, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


# Sweeps


def test_advise_says_the_case_and_the_numbers(cli, toy):
    done = cli("advise", toy.path)
    assert done.code == 0
    assert "Case: small and similar" in done.out
    assert "one left out [95 %]" in done.out
    assert "Next: featcache sweep" in done.out
    facts = json.loads(cli("advise", toy.path, "--json").out)
    assert facts["case"] == "small and similar"
    assert {one["tap"] for one in facts["curve"]} == set(toy.taps)


def test_a_trial_of_a_run_that_was_stopped_is_said_to_be_one(cli, own_run):
    replace(own_run, planned=own_run.planned + 3).save()
    done = cli("compare", f"{own_run.path}@1", f"{own_run.path}@18")
    planned = own_run.planned
    assert f"{own_run.path} was stopped: {planned} of {planned + 3} trials are done. The command that " in done.err


def test_compare_says_what_can_be_said(cli, run):
    done = cli("compare", f"{run}@1", f"{run}@18")
    assert done.code == 0
    assert "McNemar's exact p =" in done.out
    facts = json.loads(cli("compare", f"{run}@1", f"{run}@18", "--metric", "macro_f1", "--json").out)
    assert {"a", "b", "difference", "interval", "p_value", "verdict"} <= facts.keys()
    assert facts["metric"] == "macro_f1"


def test_a_sweep_takes_steps_heads_and_a_budget(cli, toy, tmp_path):
    out = tmp_path / "new.run"
    arguments = ["--tap", TAP, "--heads", "ridge,lda", "--prepare", "standardise,l2", "--cv", "3", "--budget", "10m"]
    done = cli("sweep", toy.path, "-o", out, *arguments, "--metric", "log_loss", "--json")
    facts = json.loads(done.out)
    assert (facts["trials"], facts["failed"], facts["dropped"]) == (18, 0, 0)
    assert facts["best"]["metric"] == "log_loss"
    shown = cli("show", out).out
    assert "after l2" in shown
    assert "log_loss [95 %]" in shown
    assert "std" in shown.splitlines()[1]


@pytest.mark.slow
def test_a_stopped_sweep_keeps_its_trials_and_goes_on(toy, tmp_path):
    code = (
        "import time; from featcache.sweeps import writer\n"
        "add = writer.Writer.add\n"
        "def slow(self, some):\n"
        "    add(self, some); print('added', flush=True); time.sleep(0.5)\n"
        "writer.Writer.add = slow\n"
        "from featcache_cli.app import main; main()"
    )
    arguments = ["sweep", str(toy.path), "-o", str(tmp_path / "run"), "--heads", "ridge,gnb,lda,knn", "--tap", TAP]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "-q"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "added\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.startswith("featcache: Stopped. What was done is kept; run the same command again")
    done = subprocess.run([*FEATCACHE, *arguments, "--json"], capture_output=True, text=True)
    assert json.loads(done.stdout)["trials"] == 15
    done = subprocess.run([*FEATCACHE, *arguments, "--json"], capture_output=True, text=True)
    assert (done.returncode, json.loads(done.stdout)["trials"], "already holds this finished sweep" in done.stderr) == (
        0,
        15,
        True,
    )


@pytest.mark.slow
def test_a_sweep_that_is_stopped_within_a_fit_ends_with_130(toy, tmp_path):
    """Other threads are in native code then, or asleep, and the interpreter must not wait for them."""
    code = (
        "import time; from featcache.heads.solvers import ridge\n"
        "def fit(*args):\n"
        "    print('fitting', flush=True); time.sleep(30); yield\n"
        "ridge.fit = fit\n"
        "from featcache.heads.solvers import paths; from dataclasses import replace\n"
        "paths.PATHS['ridge'] = replace(paths.PATHS['ridge'], fit=fit)\n"
        "from featcache_cli.app import main; main()"
    )
    out = str(tmp_path / "run")
    arguments = ["sweep", str(toy.path), "-o", out, "--heads", "ridge", "--tap", TAP, "--jobs", "2", "-q"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "fitting\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130, said
    assert said.startswith("featcache: Stopped. What was done is kept")


FAILING = """
import threading, time
from featcache.errors import DiskFault
from featcache_cli import app

def command(*arguments, **options):
    threading.Thread(target=time.sleep, args=(600,)).start()
    raise {error}

app.app = command
app.main()
"""


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        ("DiskFault('The disk is full')", 5, "featcache: The disk is full\n"),
        ("OSError(28, 'No space left on device', 'x.run')", 5, "featcache: x.run: No space left on device\n"),
        ("KeyboardInterrupt", 130, "featcache: Stopped. What was done is kept; run the same command again to go on.\n"),
        ("ZeroDivisionError('planted')", 1, "ZeroDivisionError: planted\n"),
    ],
)
def test_an_error_while_threads_are_at_work_ends_with_its_own_exit_code(error, code, told):
    """The end of the interpreter would wait for the thread, or abort it in native code."""
    command = [sys.executable, "-c", FAILING.format(error=error)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr[-len(told) :]) == (code, told)
    assert code == 1 or done.stderr == told


def test_a_run_that_was_edited_cannot_set_options(cli, run, tmp_path):
    path = run / "run.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 7'))
    refused(cli("sweep", "--config", path, "-o", tmp_path / "again"), 4, "run.json was changed after it was written")
    refused(cli("show", run), 4, "run.json was changed after it was written")


def test_a_look_at_test_survives_force(cli, run, tmp_path):
    assert cli("report", run, "--final").code == 0
    cache = Run.open(run).settings.cache
    assert cli("sweep", cache, "-o", run, "--heads", "ridge", "--tap", TAP, "--force").code == 0
    assert "The test split was opened 1 time before" in cli("report", run).out
    assert cli("sweep", cache, "-o", tmp_path / "other", "--heads", "ridge", "--tap", TAP).code == 0
    done = cli("report", tmp_path / "other", "--final")
    assert "The test split was opened 2 times (toy.run, other)" in " ".join(done.out.split())


def test_a_refitted_head_is_handed_over_and_not_to_be_tuned(cli, own_run, tmp_path):
    cli("sweep", own_run.settings.cache, "-o", tmp_path / "run", "--heads", "ridge", "--tap", TAP, "--refit")
    done = cli("handoff", f"{tmp_path / 'run'}@refit", "-o", tmp_path / "m.keras")
    assert (done.code, done.out.splitlines()[-1]) == (0, f"Next: featcache predict {tmp_path / 'm.keras'} IMAGES")
    assert f"Probabilities were calibrated on {Run.open(tmp_path / 'run').num_select} images." in done.out
    assert f"report {tmp_path / 'run'}@refit --final" in cli("report", tmp_path / "run").out
    done = cli("report", f"{tmp_path / 'run'}@refit", "--final")
    assert (done.code, "(ridge, fitted on train and val)" in done.out) == (0, True)
    refused(cli("report", f"{tmp_path / 'run'}@77"), 2, "has trials 1 to 5, 'best' and 'refit'; got '77'")
    refused(cli("finetune", f"{tmp_path / 'run'}@refit", "-o", tmp_path / "t.keras"), 2, "Use RUN@best")


@pytest.mark.slow
def test_json_of_a_fine_tuning_with_controls(cli, run, tmp_path):
    model = tmp_path / "t.keras"
    done = cli("finetune", f"{run}@8", "-o", model, "--epochs", "1", "--controls", "frozen", "--json")
    facts = document(done, {"model", "start", "best", "epochs", "seconds_per_epoch", "parity", "controls", "prefix"})
    assert [one["epoch"] for one in facts["controls"]["frozen"]] == [0, 1]
    apart = facts["best"]["val"] - max(one["val"] for one in facts["controls"]["frozen"])
    assert facts["differences"]["frozen"]["difference"] == pytest.approx(apart)
    assert facts["epochs"] == 1
    assert (facts["unfrozen"], bool(facts["prefix"])) == ("block_4", True)
    assert model.with_suffix(".state").exists()


@pytest.mark.slow
def test_what_fine_tuning_prints(cli, run, tmp_path):
    done = cli("finetune", f"{run}@8", "-o", tmp_path / "t.keras", "--epochs", "1", "--unfreeze", "3", "--wise-ft")
    for part in ("Epoch 0 is the head", "Trained, from block_4 on", "Computed once", "lies inside block block_4"):
        assert part in done.out, part
    again = cli("finetune", f"{run}@8", "-o", tmp_path / "n.keras", "--epochs", "1", "--controls", "scratch")
    assert "images seen" in again.out
    assert re.search(r"fine-tuned - scratch: \+0\.\d{4} \[.*\] on the same images: (a tie|better)", again.out)


def test_bad_options_of_fine_tuning(cli, run, tmp_path):
    out = tmp_path / "t.keras"
    for options, message in {
        ("--lr", "0"): "--lr takes a number above 0; got 0.0",
        ("--lr", "-1e-3"): "--lr takes a number above 0; got -0.001",
        ("--optimizer", "adamv"): "--optimizer takes",
        ("--unfreeze", "block_44"): "block_4",
        ("--views", "3"): "--augment light",
        ("--augment", "lite"): "did you mean light?",
        ("--resume",): "nothing to go on with",
        ("--momentum", "0.5"): "--momentum applies only to --optimizer sgd; adamw has its own",
        ("--controls", "frozn"): "--controls takes frozen",
    }.items():
        refused(cli("finetune", f"{run}@8", "-o", out, *options), 2, message)
    assert not out.exists()


@pytest.mark.slow
def test_a_model_file_is_compared_with_the_head_it_came_from(cli, run, toy_run, tmp_path):
    model = tmp_path / "t.keras"
    assert cli("finetune", f"{run}@6", "-o", model, "--epochs", "2", "--lr", "1e-3").code == 0
    facts = document(cli("compare", f"{run}@6", model, "--json"), {"a", "b", "difference", "interval", "p_value"})
    assert (facts["b"], facts["images"]) == (str(model), len(toy_run.rows(toy_run.cache(), "val")))
    assert facts["scores"][1] >= facts["scores"][0] == toy_run[6].trial.score
    other = shutil.copytree(run, tmp_path / "other.run")
    refused(cli("compare", f"{other}@6", model), 2, "came from the run", "cannot be compared")


@pytest.mark.slow
def test_a_report_for_tensorboard_and_mlflow(cli, run, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = f"file://{tmp_path}/mlruns"
    done = cli("report", run, "--tensorboard", tmp_path / "logs", "--mlflow", store)
    assert f"TensorBoard: tensorboard --logdir {tmp_path / 'logs'}" in done.out
    assert f" in {store}" in done.out
    assert (tmp_path / "logs" / run.name / "trials" / "1").is_dir()
    assert cli("report", run, "--tensorboard", tmp_path / "logs").code == 0
    monkeypatch.setitem(sys.modules, "mlflow", None)
    refused(cli("report", run, "--mlflow", store), 5, "pip install 'featcache[mlflow]'")
    facts = document(cli("report", run, "--json"), {"tensorboard", "mlflow"})
    assert (facts["tensorboard"], facts["mlflow"]) == (None, None)


@pytest.mark.parametrize("command", ["show", "report"])
def test_a_run_whose_images_have_moved_to_other_splits_is_shown_with_a_word(command, cli, run):
    replace(Run.open(run), images_digest="of before leaks --fix").save()
    done = cli(command, run)
    assert done.code == 0
    assert "has changed since" in done.err
    assert "Sweep again" in done.err


def test_a_file_that_this_user_may_not_read_is_one_line_with_what_to_do(cli, monkeypatch, photos):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied", "photos/lily.jpg")

    monkeypatch.setattr("featcache.images.manifest.scan", refuse)
    done = cli("scan", photos)
    assert done.err == "featcache: photos/lily.jpg: Permission denied. Let your user read it, or write to it\n"
    assert done.code == 5


@pytest.mark.parametrize(
    ("folder", "command", "answer"),
    [
        ("", "dir", "turned off\n"),
        ("", "size", "turned off\n"),
        ("", "prune", "Removed 0 files, 0.0 MB\n"),
        ("missing", "size", "0 files, 0.0 MB in missing\n"),
    ],
)
def test_a_folder_of_kept_networks_that_does_not_exist_is_empty(cli, monkeypatch, folder, command, answer):
    monkeypatch.setenv("FEATCACHE_HOME", folder)
    assert cli("cache", command) == (0, answer, "")


def test_a_folder_of_kept_networks_that_cannot_be_read_is_one_line(cli, monkeypatch):
    monkeypatch.setenv("FEATCACHE_HOME", "a" * 300)
    code, out, err = cli("cache", "size")
    assert (code, out, err.count("\n")) == (5, "", 1)
    assert "File name too long" in err
