"""What tests share: tiny images, and the embedded backbone with random weights. No download, no GPU."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["FEATCACHE_HOME"] = ""  # keep nothing of one test for another; tests of what is kept set a folder

import pytest
from hypothesis import settings
from tiny import TOY, write_images

from featcache import trust
from featcache.cache.reader import Cache
from featcache.extraction import extract
from featcache.sweeps import Run, sweep

# How fast the machine is says nothing about the promise, so no deadline.
settings.register_profile("featcache", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=20)

TESTS = Path(__file__).parent
SHARED = TESTS.parents[1] / "shared"

# What one runs while editing, with `pytest -m quick`: files that never import Keras and take a few seconds each.
NOT_QUICK = {TESTS / "images" / "test_zoo.py", TESTS / "heads" / "test_dense.py"}
QUICK = {
    *(TESTS / "images").glob("test_*.py"),
    *(TESTS / "heads").glob("test_*.py"),
    *(TESTS / "cache" / f"test_{name}.py" for name in ("check", "exchange", "golden", "layout")),
    *(
        TESTS / f"test_{name}.py"
        for name in ("architecture", "files", "locks", "messages", "outputs", "public_names", "spec")
    ),
} - NOT_QUICK


def is_quick_session(config: pytest.Config) -> bool:
    """Return whether only quick tests were asked for."""
    return bool(config.option.markexpr == "quick")


def pytest_configure(config: pytest.Config) -> None:
    """Choose how many examples Hypothesis tries. Every import of Keras or TensorFlow fails in a quick session."""
    settings.load_profile("quick" if is_quick_session(config) else "featcache")
    if is_quick_session(config):
        for name in ("keras", "tensorflow"):
            sys.modules[name] = None  # type: ignore[assignment]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the other files of a quick session: to collect a file imports it, and many import Keras."""
    leads_to_quick = any(path.is_relative_to(collection_path) for path in QUICK)
    return True if is_quick_session(config) and not leads_to_quick else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of quick files, but for their slow ones."""
    for item in items:
        if item.path in QUICK and not item.get_closest_marker("slow"):
            item.add_marker("quick")


@pytest.fixture(autouse=True)
def forget_what_was_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what a test allows: it holds for the process, which the tests of many files share in an order by chance."""
    monkeypatch.setattr(trust, "ALLOWED", set(trust.ALLOWED))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of 3 classes x 12 images."""
    return write_images(tmp_path / "photos")


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Return a cache of 3 classes x 30 images with the taps of the toy backbone and of raw pixels. Do not change it."""
    folder = tmp_path_factory.mktemp("toy")
    photos = write_images(folder / "photos", per_class=30)
    return extract(photos, [TOY, "pixels:size=8"], out=folder / "toy.h5")


@pytest.fixture(scope="session")
def toy_run(toy: Cache) -> Run:
    """Return a run with every kind of head on the toy cache. Do not change it."""
    return sweep(toy, "ridge,logreg,svm,softmax,knn,mlp:8", taps=["glyphnet:weights=none/top"])


@pytest.fixture
def own_run(toy_run: Run, tmp_path: Path) -> Run:
    """Return a copy of that run, on a copy of its cache, to change: looks at test are recorded beside the cache."""
    cache = shutil.copy(toy_run.settings.cache, tmp_path / "toy.h5")
    run = Run.open(shutil.copytree(toy_run.path, tmp_path / "toy.run"))
    replace(run, settings=replace(run.settings, cache=str(cache))).save()
    return Run.open(run.path)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real photographs and weights, or skip."""
    if not SHARED.is_dir():
        pytest.skip("the real photographs and weights (../shared) are not on this machine")
    return SHARED
