"""The diagnosis of this very installation, and of installations broken on purpose."""

import json
import sys

import pytest

from featcache.extras.doctor import diagnose, library_facts
from featcache.extras.doctor import diagnose as room

# What works without network: what comes with featcache, and what pip installs for the tests
OFFLINE = ["glyphnet", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Return a function that puts a module of this content before the real one."""
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))

    def put(name: str, content: str) -> None:
        (tmp_path / f"{name}.py").write_text(content)
        monkeypatch.syspath_prepend(tmp_path)

    return put


@pytest.mark.slow
def test_this_installation_is_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    diagnosis = diagnose(speed=False)
    assert (diagnosis.broken, diagnosis.facts["faults"]) == ((), {})
    assert diagnosis.facts["offline"] == OFFLINE
    assert diagnosis.facts["versions"]["hdf5"].count(".") == 2
    assert diagnosis.facts["keras"]["devices"]
    assert json.loads(json.dumps(diagnosis.facts)) == diagnosis.facts


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("raise ImportError('libcudart is not here')", "ImportError: libcudart is not here"),
        pytest.param(
            "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
            "the process was ended by SIGILL",
            marks=pytest.mark.slow,
        ),
        pytest.param("import sys; sys.exit(7)", "SystemExit: 7", marks=pytest.mark.slow),
        pytest.param("import os; os._exit(9)", "the process ended with 9", marks=pytest.mark.slow),
    ],
)
def test_a_broken_tensorflow_is_reported_and_the_other_facts_are_kept(content, said, broken):
    broken("tensorflow", content)
    diagnosis = diagnose(speed=False)
    [fault] = diagnosis.broken
    assert "Keras on tensorflow does not start" in fault.what
    assert said in fault.what
    assert diagnosis.facts["offline"] == OFFLINE
    assert diagnosis.facts["threads"]


@pytest.mark.slow
def test_a_process_that_prints_other_lines_or_fails_while_it_exits_loses_no_facts(broken):
    broken("sitecustomize", """print('{"section": "pack')""")
    broken("tensorflow", "import atexit, os; atexit.register(os._exit, 9)")
    diagnosis = diagnose(speed=False)
    assert list(diagnosis.facts["faults"]) == ["keras"]
    assert diagnosis.facts["packages"]


@pytest.mark.slow
def test_a_broken_library_is_reported_by_its_package(broken):
    broken("sklearn", "raise ImportError('_check_build')")
    diagnosis = diagnose(speed=False)
    assert diagnosis.broken[0].what == "scikit-learn cannot be imported: ImportError: _check_build"


@pytest.mark.slow
def test_a_library_that_hangs_is_reported(broken, monkeypatch):
    broken("tensorflow", "import time; time.sleep(60)")
    monkeypatch.setattr(sys.modules[room.__module__], "PROBING_S", 8)
    diagnosis = diagnose(speed=False)
    assert "took longer than 8 s" in diagnosis.broken[0].what
    assert diagnosis.facts["locking"] == "works"


@pytest.mark.slow
def test_the_speed_is_measured_with_the_engine_that_extracts():
    speed = library_facts.speed()
    assert speed["engine"].startswith("keras ")
    assert 0.1 < speed["images_per_s"] < 1e5
