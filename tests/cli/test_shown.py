"""What stands on a terminal: within 80 columns, no colour in a pipe, none with NO_COLOR, nothing to obey."""

import sys

import pytest
import typer
from tiny import TOY, write_images

from featcache.extraction import extract
from featcache.sweeps import sweep
from featcache.text import fields, folded, table, wrapped
from featcache_cli.app import app
from featcache_cli.output import emit


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Return (cache, run, photos) with long names of everything."""
    folder = tmp_path_factory.mktemp("a folder with quite a long name for images of several classes")
    photos = write_images(folder / "photos")
    for label in ("blue", "red"):
        (photos / label).rename(photos / f"{label}: a class whose name is as long as a sentence that says something")
    cache = extract(photos, f"{TOY},pixels:size=8", tap="auto", out=folder / "cache.h5")
    run = sweep(cache, "ridge,knn,mlpclassifier", taps=[*list(cache.taps)[:3], f"{TOY}/top+pixels:size=8/top"], cv=2)
    return cache, run, photos


@pytest.mark.parametrize(
    "arguments",
    [
        ["scan", "PHOTOS"],
        ["extract", "PHOTOS", "-o", "CACHE", "-b", TOY, "--tap", "auto"],
        ["cache", "info", "CACHE"],
        ["show", "RUN"],
        ["show", "RUN@best"],
        ["report", "RUN"],
        ["advise", "CACHE"],
        ["sweep", "--list-heads"],
        ["backbones", "list"],
        ["backbones", "show", "glyphnet", "--layers"],
        ["recipe", "list"],
    ],
)
def test_tables_keep_to_80_columns_without_colour(arguments, cli, wide, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    cache, run, photos = wide
    for name, place in {"PHOTOS": photos, "CACHE": cache.path, "RUN": run.path}.items():
        arguments = [one.replace(name, str(place)) for one in arguments]
    done = cli(*arguments, *(["--quiet"] if arguments[0] in ("extract", "advise") else []))
    assert done.code == 0, done
    assert all(one.isprintable() or one == "\n" for one in done.out)
    in_table = [line for line in done.out.splitlines() if "  " in line.strip()]
    assert [line for line in in_table if len(line) > 80] == []


def test_nothing_of_a_long_cell_is_lost():
    name = "mobilenet_v2:alpha=0.35/block_13_project_BN+a/" + "x" * 40
    shown = table(["tap", "what it is", "n"], [[name, "one two three four", 12345]], width=40)
    assert max(map(len, shown.splitlines())) <= 40
    column = len(shown.splitlines()[1].partition(" ")[0])
    assert "".join(line[:column].strip() for line in shown.splitlines()[2:]) == name
    assert "12345" in shown


def test_columns_that_may_be_spared_are_left_out_only_where_room_lacks():
    rows = [["a-long-name-of-a-trial", 12345, 67890]]
    assert "MB" in table(["name", "score", "MB"], rows, width=40, spare=["MB"])
    shown = table(["name", "score", "MB"], rows, width=26, spare=["MB"])
    assert ("MB" in shown, "12345" in shown) == (False, True)


def test_commands_and_paths_in_a_sentence_stay_whole():
    path = "/photos/" + "x" * 100
    assert path in wrapped(f"The features of {path} are old.", width=40)
    assert fields({"weights": path}).endswith(path)


def test_in_a_terminal_errors_break_between_words(cli, tmp_path, monkeypatch):
    place = tmp_path / "none.h5"
    refused = cli("sweep", place).err
    assert refused.splitlines() == [f"featcache: No cache at {place}. Make one: featcache extract IMAGES -o {place}"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    lines = cli("sweep", place).err.splitlines()
    assert lines[-1] == f"  featcache extract IMAGES -o {place}"
    assert " ".join(line.strip() for line in lines) == refused.strip()


@pytest.mark.parametrize("name", typer.main.get_command(app).commands)
def test_each_command_stays_on_one_line(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    command = f"featcache {name} a_folder_with_quite_a_long_name.h5 --seed 1"
    assert folded(f"The cache is damaged. Make it again: {command}. Then go on").splitlines()[1] == f"  {command}."


def test_a_sentence_on_featcache_is_no_command(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = folded("It carries code, which featcache does not run unless told to trust the file: --trust").splitlines()
    assert lines == ["It carries code, which featcache does", "  not run unless told to trust the file:", "  --trust"]


def test_in_a_terminal_sentences_break_between_words_and_commands_not_at_all(capsys, monkeypatch):
    sentence = "On the same images this head is better than the other by chance or not: nobody can tell."
    command = "Next: featcache handoff a_folder_with_a_name.run@best -o model.keras"
    table_line = "logreg   0.95   a cell that is long, which is cut by nobody"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    back = "To take it back: featcache leaks a_folder_with_a_name.h5 --unfix"
    emit(False, {}, lambda: "\n".join([sentence, table_line, back, command]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-5:] == [
        table_line,
        "To take it back:",
        "  featcache leaks a_folder_with_a_name.h5 --unfix",
        "Next:",
        "  featcache handoff a_folder_with_a_name.run@best -o model.keras",
    ]
    assert max(map(len, lines[:-5])) <= 40
    assert " ".join(line.strip() for line in lines[:-5]) == sentence
