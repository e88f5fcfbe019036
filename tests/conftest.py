"""What tests share: tiny images, and the embedded backbone with random weights. No download, no GPU."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest
from hypothesis import settings
from tiny import TOY, write_images

from featcache import trust
from featcache.cache.reader import Cache
from featcache.extraction import extract
from featcache.sweeps import Run, sweep

settings.register_profile("featcache", deadline=None)  # how fast the machine is says nothing about the promise
settings.load_profile("featcache")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def forget_what_was_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what a test allows: it holds for the process, which the tests of many files share in an order by chance."""
    monkeypatch.setattr(trust, "_ALLOWED", set(trust._ALLOWED))


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
