"""What is missing or too old, by what a package declares."""

import sys
from email.message import Message

import pytest

from featcache.extras.doctor import requirements

DECLARED = [
    "numpy>=1.26",
    "scipy<1",
    "no-such-thing>=2",
    'no-such-thing-here; sys_platform == "another"',
    'no-such-engine>=1; extra == "fast"',
    'numpy>=1; extra == "fast"',
    'pytest; extra == "test"',
]


@pytest.fixture(autouse=True)
def declared(monkeypatch):
    """Have the package declare these requirements."""
    package = Message()
    for text in DECLARED:
        package["Requires-Dist"] = text
    for extra in ("fast", "test"):
        package["Provides-Extra"] = extra
    monkeypatch.setattr(requirements, "metadata", lambda name: package)


def test_requirements_that_are_missing_are_named():
    assert requirements.missing() == ["no-such-thing>=2"]


def test_requirements_that_are_too_old_or_too_new_are_named_with_what_is_installed():
    assert requirements.outdated() == {"scipy<1": requirements.installed_version("scipy")}


def test_extras_are_those_of_users():
    assert requirements.extras() == {
        "fast": {
            "installed": False,
            "packages": {"no-such-engine": None, "numpy": requirements.installed_version("numpy")},
            "install": "pip install 'featcache[fast]'",
        }
    }


def test_without_packaging_only_packaging_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    assert requirements.missing() == ["packaging"]
    assert (requirements.outdated(), requirements.extras()) == ({}, {})
