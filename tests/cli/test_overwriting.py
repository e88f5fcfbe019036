"""Every command that writes a file keeps what it did not write itself, and replaces its own output of yesterday."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny import TOY, write_images

from featcache.extraction import extract
from featcache.models import handoff
from featcache.sweeps import Run, sweep

pytestmark = pytest.mark.slow  # every command on every file of the user

GOLDEN = Path(__file__).parents[1] / "backbones" / "golden"
MINE = b"my own work\n"
SLOW = pytest.mark.slow


class Place(NamedTuple):
    """A small project: paths of all that commands read."""

    home: Path
    photos: Path
    cache: Path
    run: Path
    model: Path


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    home = tmp_path_factory.mktemp("project")
    cache = extract(write_images(home / "photos"), TOY, out=home / "c.h5")
    run = sweep(cache, "ridge", grid={"ridge": {"alpha": [1.0]}})
    handoff(run.best, home / "model.keras")
    return Place(home, home / "photos", cache.path, run.path, home / "model.keras")


@pytest.fixture
def place(project, tmp_path, monkeypatch):
    """Return a copy of the project, in which commands run."""
    monkeypatch.chdir(tmp_path)
    home = shutil.copytree(project.home, tmp_path / "home")
    run = Run.open(home / project.run.name)
    replace(run, settings=replace(run.settings, cache=str(home / project.cache.name))).save()
    again = extract(home / "photos", TOY, out=home / "c.h5")  # its images are here now
    assert again.report.computed == 0
    return Place(home, home / "photos", home / "c.h5", run.path, home / "model.keras")


class Case(NamedTuple):
    """A command that writes `output`."""

    output: str
    command: Callable[[Place], list[Any]]
    code: int = 0
    replaces_its_own: bool = True


CASES = {
    "predict --csv": Case("p.csv", lambda at: ["predict", at.model, at.photos, "--csv", "p.csv"]),
    "predict -o jsonl": Case("p.jsonl", lambda at: ["predict", at.model, at.photos, "-o", "p.jsonl"]),
    "predict -o parquet": Case("p.parquet", lambda at: ["predict", at.model, at.photos, "-o", "p.parquet"]),
    "handoff": Case("m.keras", lambda at: ["handoff", f"{at.run}@best", "-o", "m.keras"]),
    "finetune": Case("t.keras", lambda at: ["finetune", f"{at.run}@best", "-o", "t.keras", "--epochs", 1]),
    "export keras": Case("e.keras", lambda at: ["export", at.model, "--to", "keras", "-o", "e.keras", "--run", at.run]),
    "extract": Case("x.h5", lambda at: ["extract", at.photos, "-o", "x.h5", "-b", "pixels:size=8"]),
    "cache merge": Case("merged.h5", lambda at: ["cache", "merge", at.cache, "-o", "merged.h5"]),
    "cache export npz": Case("f.npz", lambda at: ["cache", "export", at.cache, "-o", "f.npz"]),
    "cache export parquet": Case("f.parquet", lambda at: ["cache", "export", at.cache, "-o", "f.parquet"]),
    "report --html": Case("r.html", lambda at: ["report", at.run, "--html", "r.html"]),
    "report --tensorboard": Case("logs/c.run", lambda at: ["report", at.run, "--tensorboard", "logs"]),
    "leaks --fix-to": Case("f.csv", lambda at: ["leaks", at.cache, "--fix-to", "f.csv"], replaces_its_own=False),
    "leaks --csv": Case("l.csv", lambda at: ["leaks", at.cache, "--labels", "--csv", "l.csv"]),
    "leaks --html": Case("l.html", lambda at: ["leaks", at.cache, "--labels", "--html", "l.html"]),
    "backbones import": Case("i.keras", lambda at: ["backbones", "import", GOLDEN / "sequential.h5", "-o", "i.keras"]),
}
EXPORTS = {
    f"export {to}": Case(output, lambda at, to=to, output=output: [*_export(at, to), "-o", output])
    for to, output in {"savedmodel": "s", "litert": "s.tflite", "onnx": "s.onnx", "openvino": "s.xml"}.items()
}
TRAINED = ["handoff", "finetune"]
BESIDE = {
    "openvino's weights": Case("s.bin", lambda at: [*_export(at, "openvino"), "-o", "s.xml"]),
    "the state of finetune": Case("t.state", lambda at: ["finetune", f"{at.run}@best", "-o", "t.keras"]),
    "quickstart's model": Case("q/model.keras", lambda at: ["quickstart", at.photos, "-o", "q"]),
    "quickstart's report": Case("q/report.html", lambda at: ["quickstart", "-o", "q"]),
    "quickstart's cache": Case("q/features.h5", lambda at: ["quickstart", "-o", "q"]),
    "quickstart's images": Case("q/digits/0/0000.png", lambda at: ["quickstart", "-o", "q"]),
    "a recipe's model": Case("q/model.keras", lambda at: ["recipe", "flowers", at.photos, "-o", "q", "--small"]),
    "a recipe's cache": Case("q/features.h5", lambda at: ["recipe", "flowers", at.photos, "-o", "q", "--small"]),
}


def _export(at: Place, to: str) -> list[Any]:
    return ["export", at.model, "--to", to, "--run", at.run]


def cases(*tables, slow=()):
    merged = {name: case for table in tables for name, case in table.items()}
    return [pytest.param(case, id=name, marks=SLOW if name in slow else ()) for name, case in merged.items()]


def refused(done, *words):
    assert (done.code, done.out) == (2, ""), done
    assert len(done.err.splitlines()) == 1, done.err
    for word in words:
        assert word in done.err


def put(path: Path, content: bytes = MINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("case", cases(CASES, EXPORTS, BESIDE))
def test_a_file_of_the_user_is_kept(case, cli, place):
    output = put(Path(case.output))
    before = sorted(Path().rglob("*"))
    refused(cli(*case.command(place), "-q"), f"{output}", "there already", "--force")
    assert output.read_bytes() == MINE
    assert sorted(Path().rglob("*")) == before  # and nothing was begun


@pytest.mark.parametrize("case", cases(CASES, EXPORTS, slow=[*TRAINED, "export keras", *EXPORTS]))
def test_force_replaces_it_and_the_same_command_its_own_output(case, cli, place):
    output = put(Path(case.output))
    done = cli(*case.command(place), "--force", "-q")
    assert done.code == case.code, done
    assert not output.is_file() or output.read_bytes() != MINE
    again = cli(*case.command(place), "-q")
    if case.replaces_its_own:
        assert again.code == case.code, again
    else:
        refused(again, f"{output}", "--force")
        assert cli(*case.command(place), "--force", "-q").code == case.code


@pytest.mark.parametrize(
    ("command", "read"),
    [
        (lambda at: ["predict", at.model, at.photos, "--csv", at.model], "model.keras"),
        (lambda at: ["predict", f"{at.model}:mode=unit", at.photos, "--csv", at.model], "model.keras"),
        (lambda at: ["predict", at.model, at.photos, "--csv", at.photos / "red/000.png"], "photos/red/000.png"),
        (lambda at: ["predict", at.model, at.photos / "red/000.png", "-o", at.photos / "red/000.png"], None),
        (lambda at: ["predict", at.model, at.home / "t.csv", "--csv", at.home / "t.csv"], "t.csv"),
        (lambda at: ["predict", at.model, at.home / "t.csv", "--csv", at.photos / "red/000.png"], "photos/red/000.png"),
        (lambda at: ["extract", at.photos, "-o", at.photos / "red/000.png", "-b", "pixels:size=8"], None),
        (lambda at: ["extract", at.home / "t.csv", "-o", at.home / "t.csv", "-b", "pixels:size=8"], "t.csv"),
        (lambda at: ["cache", "merge", at.cache, "-o", at.cache], "c.h5"),
        (lambda at: ["report", at.run, "--html", at.run / "run.json"], "c.run/run.json"),
        (lambda at: ["report", at.run, "--html", at.cache], "c.h5"),
        (lambda at: ["report", at.run, "--html", at.photos / "red/000.png"], "photos/red/000.png"),
        (lambda at: ["report", at.run, "--tensorboard", at.home], "c.run/run.json"),
        (lambda at: ["export", at.model, "--to", "keras", "-o", at.model, "--run", at.run], "model.keras"),
        (lambda at: ["export", at.model, "--to", "savedmodel", "-o", at.home, "--run", at.run], "model.keras"),
        (lambda at: ["export", at.model, "--to", "savedmodel", "-o", at.photos, "--run", at.run], "photos/red/000.png"),
        (lambda at: ["export", at.model, "--to", "savedmodel", "-o", Path.cwd(), "--run", at.run], "model.keras"),
        (lambda at: ["backbones", "import", at.home / "s.keras", "-o", at.home / "s.keras"], "s.keras"),
    ],
)
def test_what_the_command_reads_is_kept_even_by_force(command, read, cli, place):
    put(place.home / "t.csv", b"path,label\nphotos/red/000.png,red\nphotos/blue/000.png,blue\n")
    shutil.copy(GOLDEN / "sequential.keras", place.home / "s.keras")
    kept = place.home / (read or "photos/red/000.png")
    before = kept.read_bytes()
    done = cli(*command(place), "--force", "-q")
    assert (done.code, kept.read_bytes()) == (2, before), done
    assert read is None or "even with --force" in done.err


def test_an_image_of_a_list_on_standard_input_is_kept(cli, place, monkeypatch):
    import io
    import sys

    image = place.photos / "red/000.png"
    before = image.read_bytes()
    names = "\n".join(map(str, [place.photos / "blue/000.png", image]))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(names.encode())))
    done = cli("predict", place.model, "-", "--csv", image, "--force", "-q")
    assert (done.code, image.read_bytes()) == (2, before), done


def test_two_outputs_have_two_names(cli, place):
    refused(cli("predict", place.model, place.photos, "--csv", "p.csv", "-o", "p.csv"), "p.csv is named twice")


@pytest.mark.parametrize(
    "case", cases({name: CASES[name] for name in ("predict --csv", "handoff", "report --html")}, slow=TRAINED)
)
def test_a_link_stays_a_link_and_its_file_is_judged(case, cli, place):
    link, file = Path(case.output), Path("elsewhere", case.output)
    file.parent.mkdir()
    link.symlink_to(file.resolve())
    for force in ([], ["--force"]):
        put(file)
        done = cli(*case.command(place), *force, "-q")
        assert (done.code, file.read_bytes() == MINE) == ((0, False) if force else (2, True)), done
        assert link.is_symlink()
    assert cli(*case.command(place), "-q").code == 0
    assert link.is_symlink()


def test_a_link_to_an_exported_folder_stays_a_link(cli, place):
    Path("elsewhere").mkdir()
    Path("s").symlink_to("elsewhere")
    for _ in range(2):
        assert cli(*EXPORTS["export savedmodel"].command(place), "-q").code == 0
    assert Path("s").is_symlink()
    assert Path("elsewhere/saved_model.pb").is_file()
    put(Path("elsewhere/notes.txt"))
    refused(cli(*EXPORTS["export savedmodel"].command(place), "-q"), "is no savedmodel export of featcache")


def test_pipes_stay_pipes(cli, place):
    os.mkfifo("pipe")
    for pipe in ("pipe", "/dev/stdout"):
        for case in (CASES["predict --csv"], CASES["report --html"]):
            *command, _ = case.command(place)
            refused(cli(*command, pipe, "--force", "-q"), f"{pipe} is a device or a pipe")
    assert Path("pipe").is_fifo()


def test_a_handoff_does_not_replace_hours_of_fine_tuning_nor_they_each_other(cli, place):
    tune = ["finetune", f"{place.run}@best", "-o", "m.keras", "--epochs", 1, "-q"]
    assert cli(*tune).code == 0
    before = Path("m.keras").read_bytes()
    refused(cli("handoff", f"{place.run}@best", "-o", "m.keras"), "m.keras", "no model that featcache handed off")
    refused(cli(*tune, "--lr", 0.1), "m.keras", "no model that was fine-tuned with these options from this head")
    assert Path("m.keras").read_bytes() == before
    assert cli(*tune, "--lr", 0.1, "--force").code == 0


def test_a_merge_replaces_a_cache_only_if_nothing_of_it_is_lost(cli, place):
    other = write_images(Path("others"), 4, first=50)
    extract(other, TOY, out=Path("o.h5"))
    before = Path("o.h5").read_bytes()
    refused(cli("cache", "merge", place.cache, "-o", "o.h5"), "no cache whose images and features are all in these")
    assert Path("o.h5").read_bytes() == before
    assert cli("cache", "merge", place.cache, "-o", "o.h5", "--force").code == 0
    write_images(place.photos, 2, first=90)
    extract(place.photos, TOY, out=place.cache)
    assert cli("cache", "merge", place.cache, "-o", "o.h5").code == 0  # the day after


def test_a_table_leads_to_the_images_wherever_it_is(cli, place):
    done = cli("leaks", place.cache, "--fix-to", "tables/t.csv", "-q")
    assert done.code == 0, done
    line = done.out.splitlines()[-1].removeprefix("Next: featcache ")
    assert line == "extract tables/t.csv --allow-outside -b glyphnet --weights none --size 32 --tap top -o tables/t.h5"
    assert cli(*line.split(), "-q").code == 0
    done = cli("leaks", place.cache, "--fix-to", "t.csv", "-q")
    assert (
        done.out.splitlines()[-1]
        == "Next: featcache extract t.csv -b glyphnet --weights none --size 32 --tap top -o t.h5"
    )
    assert cli("extract", "t.csv", "-b", "pixels:size=8", "-o", "t.h5", "-q").code == 0


def test_a_table_cannot_name_what_lies_in_an_archive(cli, place):
    shutil.make_archive("photos", "zip", place.photos)
    extract(Path("photos.zip"), "pixels:size=8", out="z.h5")
    refused(cli("leaks", "z.h5", "--fix-to", "t.csv"), "photos.zip, and a table can only name files", "z.h5 --fix")
    assert not Path("t.csv").exists()


def test_logs_for_tensorboard_with_a_file_of_the_user_among_them_are_kept(cli, place):
    command = CASES["report --tensorboard"].command(place)
    assert cli(*command, "-q").code == 0
    for name in ("logs/c.run/mine.txt", "logs/c.run/trials/1/mine.txt"):
        mine = put(Path(name))
        refused(cli(*command, "-q"), "logs/c.run is there already", "--force")
        assert mine.read_bytes() == MINE
        mine.unlink()
    assert cli(*command, "-q").code == 0


def test_a_report_and_logs_keep_the_images_that_have_moved(cli, place):
    moved = shutil.copytree(place.photos, Path("moved") / place.run.name)
    image = moved / "red/000.png"
    before = image.read_bytes()
    for command in (["--html", image], ["--tensorboard", "moved"]):
        refused(cli("report", place.run, *command, "--images", moved, "--force", "-q"), "because this command uses")
        assert image.read_bytes() == before


def test_a_fine_tuning_of_another_head_is_kept(cli, place):
    grid = {"ridge": {"alpha": [100.0]}}
    other = sweep(place.cache, "ridge", grid=grid, out=place.home / "other.run")
    tune = ["-o", "t.keras", "--epochs", 1, "-q"]
    assert cli("finetune", f"{place.run}@best", *tune).code == 0
    before = Path("t.keras").read_bytes()
    refused(cli("finetune", f"{other.path}@best", *tune), "t.keras is there already", "from this head")
    assert Path("t.keras").read_bytes() == before


def test_a_file_of_the_user_is_no_run(cli, place):
    mine = put(Path("labels.csv"))
    for force in ([], ["--force"]):
        refused(
            cli("sweep", place.cache, "-o", "labels.csv", *force, "-q"), "labels.csv is there already and is no run"
        )
        assert mine.read_bytes() == MINE


def test_a_merged_cache_remembers_who_looked_at_its_test_images(cli, place):
    for name in ("test-a.json", "test-b.json"):
        put(Path(f"{place.cache}.looks", name), name.encode())
    assert cli("cache", "merge", place.cache, "-o", "merged.h5").code == 0
    assert sorted(path.name for path in Path("merged.h5.looks").iterdir()) == ["test-a.json", "test-b.json"]
    assert Path("merged.h5.looks/test-a.json").read_bytes() == b"test-a.json"
