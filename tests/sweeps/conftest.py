"""A cache whose features do not tell the classes apart easily, so that scores differ and an error shows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featcache.cache import layout
from featcache.cache.reader import Cache
from featcache.cache.rows import content_digest

TAP = "glyphnet:weights=none/top"
WIDTH = 12


def rewrite(group: Any, name: str, values: Any) -> None:
    """Put other values into a dataset."""
    del group[name]
    group[name] = values


def edited(cache: Cache, path: Path, change: Callable[[h5py.File], None]) -> Cache:
    """Return a copy of a cache after `change(file)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(cache.path, path)
    edit(path, change)
    return Cache.open(path)


def edit(path: Path, change: Callable[[h5py.File], None]) -> None:
    """Change a cache in place, as if it had been written like that."""
    with h5py.File(path, "r+") as file:
        change(file)
        layout.put_text(file["images"], "content_digest", layout.images_digest(file["images"]))
        for group in layout.tap_groups(file, path):
            layout.put_text(group, "content_digest", content_digest(group, path))
        layout.put_text(file, "content_digest", layout.held_digest(file, path))


def with_rows(file: h5py.File, cache: Cache, change: Callable[[Any, np.ndarray], np.ndarray]) -> None:
    """Give every row of features the value of `change(image, features)`."""
    group = file["taps"][TAP]
    of_digest = {row.digest.encode(): row for row in cache.rows}
    digests, features = group["digest"][()], group["features"][()]
    rewrite(
        group,
        "features",
        np.stack([change(of_digest[digest], values) for digest, values in zip(digests, features, strict=True)]),
    )


def hard_features(row: Any, _: np.ndarray) -> np.ndarray:
    """Return a class centre in much noise."""
    rng = np.random.default_rng(int(row.digest[:8], 16))
    centre = np.random.default_rng(len(row.label)).normal(0, 0.5, WIDTH)
    return (centre + rng.normal(0, 1, WIDTH)).astype(np.float32)


@pytest.fixture(scope="session")
def hard(toy: Cache, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Return a copy of the toy cache with 12 noisy features. Do not change it."""
    path = tmp_path_factory.mktemp("hard") / "hard.h5"
    return edited(toy, path, lambda file: with_rows(file, toy, hard_features))
