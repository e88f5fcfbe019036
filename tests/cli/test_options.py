"""What every command has: --json, --quiet, --config, and refusals that say where to look."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from featcache.files import write_sealed
from featcache_cli.app import app
from featcache_cli.config import _typed


def leaves(group=None, path=()):
    """Yield (name as typed, command) of every command."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(leaves())
every_command = pytest.mark.parametrize("name", COMMANDS)


@pytest.fixture
def config(tmp_path):
    """Return a function that writes a settings file and gives its path."""

    def write(text: str) -> Path:
        (tmp_path / "f.toml").write_text(text)
        return tmp_path / "f.toml"

    return write


def refused(done, *said):
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1), done
    for words in said:
        assert words in done.err


@every_command
def test_it_has_json_quiet_and_config(name):
    options = {option for one in COMMANDS[name].params for option in one.opts}
    assert {"--json", "--quiet", "-q", "--config"} <= options


@every_command
def test_its_settings_file_may_not_set_what_it_does_not_have(name, cli, config):
    done = cli(*name.split(), "--config", config("jsno = true"))
    refused(done, "f.toml sets 'jsno' (did you mean json", f"featcache {name} takes ", "json")


@every_command
def test_each_of_its_options_may_stand_in_its_own_table(name, cli, config, tmp_path, monkeypatch):
    """All are read before one of them, which has a wrong value, is refused with the name of the file."""
    monkeypatch.chdir(tmp_path)
    table = ".".join(name.split())
    options = [one for one in COMMANDS[name].params if one.name not in ("config", "help", "json")]
    lines = [f"{one.name} = {'true' if getattr(one, 'is_flag', False) else 1}" for one in options]
    done = cli(*name.split(), "--config", config("\n".join([f"[{table}]", "json = 'perhaps'", *lines])))
    refused(done, "'--json'", "('perhaps', set by ", f"f.toml). See: featcache {name} --help")


def test_the_file_is_utf8_whatever_the_locale(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("io.text_encoding", lambda encoding, level=2: encoding or "ascii")
    (tmp_path / "f.toml").write_text('images = "nirgends-für-niemanden"', "utf-8")
    assert "nirgends-für-niemanden" in cli("scan", "--config", tmp_path / "f.toml").err


def test_flags_win_over_the_file(cli, photos, config):
    file = config(f'images = "{photos}"\nsplit = "50/25/25"\njson = true\n')
    facts = json.loads(cli("scan", "--config", file).out)
    assert (facts["images"], facts["splits"].keys()) == (36, {"train", "val", "test"})
    facts = json.loads(cli("scan", "--config", file, "--split", "60/40/0").out)
    assert facts["splits"].keys() == {"train", "val"}


def test_a_file_may_have_a_table_for_each_command_and_the_own_one_wins(cli, toy, config):
    cache = toy.path
    file = config(f'json = true\n[cache.info]\ncache = "{cache}"\n[backbones.show]\nname = "vgg16"\njson = false\n')
    assert json.loads(cli("cache", "info", "--config", file).out)["images"] == 90
    assert "vgg16" in cli("backbones", "show", "--config", file).out.splitlines()[0]
    assert "backbones" in json.loads(cli("backbones", "list", "--config", file).out)


def test_a_table_is_checked_when_its_command_runs(cli, config):
    file = config("[backbones.list]\njason = true\n")
    refused(cli("backbones", "list", "--config", file), "sets 'jason'", "did you mean json")
    refused(cli("backbones", "list", "--config", config("[backbnes]\nlist = 1")), "did you mean backbones")


def test_a_whole_extraction_may_be_written_down(cli, photos, tmp_path, config):
    file = config(f"""
[extract]
images = "{photos}"
out = "{tmp_path / "c.h5"}"
backbone = ["pixels:size=8", "pixels:size=4"]
group-from = "regex:([0-9])[.]png$"
quiet = true
json = true
""")
    facts = json.loads(cli("extract", "--config", file).out)
    assert [one["tap"] for one in facts["taps"]] == ["pixels:size=8/top", "pixels:size=4/top"]
    facts = json.loads(cli("extract", "--config", file, "-b", "pixels:size=4").out)
    assert ([one["tap"] for one in facts["taps"]], facts["hits"]) == (["pixels:size=4/top"], 36)


def test_a_grid_of_a_file_keeps_its_values(cli, toy, tmp_path, config):
    file = config(f"""
cache = "{toy.path}"
heads = ["ridge", "knn"]
tap = ["glyphnet:weights=none/top"]
budget = 60
memory = 4e9
[grid.ridge]
alpha = [0.1, 1e-7]
[grid.knn]
metric = ["cosine"]
n_neighbors = [1]
""")
    assert cli("sweep", "--config", file, "-o", tmp_path / "run").code == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["settings"]["grid"] == {
        "ridge": {"alpha": [0.1, 1e-7]},
        "knn": {"metric": ["cosine"], "n_neighbors": [1]},
    }
    assert (run["settings"]["budget"], run["settings"]["memory"]) == (60.0, 4e9)
    assert cli("sweep", "--config", tmp_path / "run" / "run.json", "-o", tmp_path / "again").code == 0
    assert json.loads((tmp_path / "again" / "run.json").read_text())["settings"] == run["settings"]
    facts = {name: value for name, value in run.items() if name != "digest"}
    write_sealed(tmp_path / "old.json", facts | {"images_digest": "of before leaks --fix"})
    said = cli("sweep", "--config", tmp_path / "old.json", "-o", tmp_path / "other").err
    assert f"{tmp_path / 'old.json'} was made from other images, labels or splits" in said


def test_values_are_read_as_on_the_command_line():
    size, grid = (
        {one.name: one for one in COMMANDS[name].params}[of] for name, of in (("extract", "size"), ("sweep", "grid"))
    )
    assert _typed(size, True) == "True"  # which is no number of pixels
    assert _typed(size, [1, 2]) == "1,2"
    assert _typed(grid, {"ridge": {"alpha": [1.0]}}) == ['{"ridge": {"alpha": [1.0]}}']
    assert _typed(grid, ["ridge.alpha=1"]) == ["ridge.alpha=1"]


def test_a_wrong_value_of_a_file_is_told_with_the_file(cli, config):
    done = cli("extract", "photos", "-o", "c.h5", "--config", config("size = true"))
    refused(done, "'--size'", f"('True', set by {config('size = true')}). See", "See: featcache extract --help")
    done = cli("extract", "photos", "-o", "c.h5", "--config", config("size = true"), "--size", "big")
    assert "set by" not in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["scan", "--jsn"], "--jsn"),
        (["scan", "--xyzzy"], "No such option: --xyzzy. See"),
        (["scan"], "Missing argument"),
        (["extrct"], "Did you mean 'extract', 'export'? See"),
        (["sweep", "--jobs", "many"], "'--jobs'"),
    ],
)
def test_a_refusal_is_whole_sentences(arguments, said, cli):
    """What Typer says, and where to look; its versions differ in words."""
    done = cli(*arguments)
    refused(done, said)
    command = "featcache" if "extrct" in arguments else f"featcache {arguments[0]}"
    message, see, page = done.err.partition(" See: ")
    assert (see, page) == (" See: ", f"{command} --help\n")
    assert message[-1] in ".?"
    assert message[-2] not in ".?"


def test_the_settings_file_of_the_docs_runs_three_commands(cli, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    text = page.split("```toml\n")[1].split("```")[0]
    Path("photos.toml").write_text(
        text.replace("mobilenet_v2", "pixels:size=8").replace("resnet50_v2", "pixels:size=4")
    )
    assert cli("extract", "--config", "photos.toml").code == 0
    done = cli("sweep", "--config", "photos.toml", "--json")
    assert json.loads(done.out)["trials"] > 3, done
    assert cli("cache", "export", "--config", "photos.toml", "-o", "f.npz", "--tap", "pixels:size=8/top").code == 0
    assert Path("f.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["sweep", "CACHE", "--metric", "f1"], "(did you mean macro_f1?)"),
        (["sweep", "CACHE", "--heads", "logistic_regression"], "(did you mean logreg?)"),
        (
            ["finetune", "RUN@best", "-o", "x.keras", "--learning-rate", "1"],
            "(did you mean --lr?). See: feat",
        ),
        (["finetune", "RUN@best", "-o", "x.keras", "--batch-size", "8"], "(Possible options: --batch)"),
        (["report", "RUN", "-o", "x.html"], "No such option: -o. See: featcache report --help"),
    ],
)
def test_names_of_other_libraries_lead_to_ours(arguments, meant, cli, toy):
    refused(cli(*(one.replace("CACHE", str(toy.path)) for one in arguments)), meant)


def test_help_names_every_command_with_its_whole_summary(cli):
    page = "".join(cli("--help").out.partition("Commands:")[2].split())  # Click breaks lines at hyphens, too
    assert "..." not in page
    for name, command in COMMANDS.items():
        if " " not in name:
            assert "".join(command.help.split("\n\n")[0].split()) in page


def test_python_m_featcache_is_the_command():
    done = subprocess.run([sys.executable, "-m", "featcache", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("featcache ")
