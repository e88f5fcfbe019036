"""featcache doctor: the exit code, and that every finding says what to do."""

import json

import pytest

from featcache.extras import doctor
from featcache.extras.doctor import Diagnosis, Finding, diagnose

pytestmark = pytest.mark.slow  # a diagnosis of this very machine


@pytest.fixture(scope="module")
def facts():
    return diagnose(speed=False).facts


@pytest.fixture
def found(facts, monkeypatch):
    """Return a function that makes the diagnosis of this machine have other findings."""

    def with_findings(*findings):
        monkeypatch.setattr(doctor, "diagnose", lambda speed: Diagnosis(facts, findings))

    return with_findings


def test_what_is_broken_exits_with_5_after_everything_is_told(cli, found):
    found(Finding("broken", "h5py cannot be imported", "pip install h5py"), Finding("slow", "One core", "take two"))
    done = cli("doctor", "--quiet")
    assert done.code == 5
    assert done.err == "featcache: featcache cannot work here. h5py cannot be imported. Do: pip install h5py\n"
    assert "Broken: h5py cannot be imported.\n  Do: pip install h5py\n" in done.out
    assert "Slow: One core.\n  Do: take two\n" in done.out
    facts = json.loads(cli("doctor", "--json", "--quiet").out)
    assert (facts["usable"], facts["findings"][0]["do"]) == (False, "pip install h5py")


def test_what_is_slow_is_no_error(cli, found):
    found(Finding("slow", "One core", "take two"))
    done = cli("doctor", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert json.loads(cli("doctor", "--json", "--quiet").out)["usable"] is True


def test_the_text_names_versions_devices_weights_and_disks(cli, found):
    found()
    shown = cli("doctor", "--quiet").out
    assert shown.endswith("Nothing is broken, and nothing would be slower than it must be.\n")
    for word in ("keras ", "numpy ", "hdf5 ", "computes on ", "cores ", "memory ", "without network glyphnet", "disk "):
        assert f"\n{word}" in shown
