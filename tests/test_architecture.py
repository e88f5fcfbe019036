"""docs/architecture.md, the import rules and the folders tell one story; no file and no class has another's name."""

import ast
import configparser
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PACKAGES = ROOT / "featcache", ROOT / "cli" / "featcache_cli"
WING = "featcache.extras"


def contracts() -> dict[str, dict[str, str]]:
    """Return the import rules by their short names."""
    rules = configparser.ConfigParser()
    rules.read(ROOT / ".importlinter")
    prefix = "importlinter:contract:"
    return {name.removeprefix(prefix): dict(rules[name]) for name in rules.sections() if name.startswith(prefix)}


def layers() -> list[set[str]]:
    """Return the rooms of each row of the import rules, from the last row of the flow to the first."""
    return [set(row.split(" | ")) for row in contracts()["flow"]["layers"].split("\n") if row]


def modules_in(folder: Path, package: str) -> set[str]:
    """Return the modules and packages that lie in a folder."""
    files = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("__")}
    folders = {path.parent.name for path in folder.glob("*/__init__.py")}
    return {f"{package}.{name}" for name in files | folders}


def rooms() -> set[str]:
    """Return every room that exists: what lies in featcache/ and in its wing, and the command line."""
    return (
        (modules_in(PACKAGES[0], "featcache") - {WING}) | modules_in(PACKAGES[0] / "extras", WING) | {"featcache_cli"}
    )


def test_every_room_has_a_place_in_the_import_rules():
    assert set().union(*layers()) == rooms()


def test_the_picture_shows_the_import_rules():
    [picture] = re.findall(r"```text\n(.*?)```", PAGE, flags=re.DOTALL)
    drawn = [set(row.split(" | ")) for row in picture.strip().split("\n")]
    assert drawn == [{room.removeprefix("featcache.") for room in row} for row in layers()]


def test_the_table_describes_the_rooms():
    table = re.findall(r"^\| (`.*?) \|", PAGE.partition("## ")[0], flags=re.MULTILINE)
    described = {name for row in table for name in re.findall(r"`(.*?)`", row)}
    folders = {f"{path.parent.relative_to(PACKAGES[0])}/" for path in PACKAGES[0].glob("*/__init__.py")}
    folders |= {f"{path.parent.relative_to(PACKAGES[0])}/" for path in PACKAGES[0].glob("extras/*/__init__.py")}
    assert folders - {"extras/"} <= described
    assert [name for name in described if not (PACKAGES[0] / name).exists()] == []


# Rooms that may do what a rule forbids to the others
MAY_USE_HDF5 = {"featcache.cache"}
MAY_USE_KERAS = {"featcache.backbones", "featcache.backend", "featcache.models", "featcache.tuning", f"{WING}.export"}


@pytest.mark.parametrize(("rule", "allowed"), [("h5py", MAY_USE_HDF5), ("keras", MAY_USE_KERAS)])
def test_a_rule_that_forbids_names_every_other_room(rule, allowed):
    forbidden = set(contracts()[rule]["source_modules"].split())
    covered = {room for room in rooms() if room in forbidden or room.rpartition(".")[0] in forbidden}
    assert rooms() - covered == allowed


def used_twice(places: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the names that stand in more than one place."""
    return {name: files for name, files in sorted(places.items()) if len(files) > 1}


def test_no_two_files_have_one_name():
    places = defaultdict(list)
    for package in PACKAGES:
        for path in package.rglob("*.py"):
            if not path.stem.startswith("__"):
                places[path.stem].append(str(path.relative_to(ROOT)))
    assert used_twice(places) == {}


def test_no_two_classes_have_one_name():
    places = defaultdict(list)
    for package in PACKAGES:
        for path in package.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(str(path.relative_to(ROOT)))
    assert used_twice(places) == {}
