"""Which library a dataset is for."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from featcache.cache.labelled import LabelledRows
from featcache.cache.reader import Cache
from featcache.errors import EnvironmentFault, UsageError
from featcache.extras.datasets.tf_batches import tf_batches
from featcache.extras.datasets.torch_rows import TorchRows
from featcache.spec import choose

PACKAGES = {"tf": "tensorflow", "torch": "torch"}
BATCH = 32


def make_dataset(
    cache: Cache,
    split: str | None,
    tap: str | None,
    *,
    kind: str,
    batch_size: int | None,
    shuffle: bool | None,
    seed: int,
) -> Any:
    """Return a dataset of (features, class index): see `Cache.dataset`."""
    choose("kind", kind, PACKAGES)
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"`batch_size` takes a number from 1; got {batch_size}")
    if kind == "torch" and not (batch_size is None and shuffle is None):
        raise UsageError("With `kind='torch'`, give batch_size and shuffle to the DataLoader, not to the dataset")
    package = PACKAGES[kind]
    if find_spec(package) is None:
        raise EnvironmentFault(f"`kind='{kind}'` needs {package}, which is not installed: pip install {package}")
    rows = LabelledRows(cache, split, tap)
    if kind == "torch":
        return TorchRows(rows)
    is_shuffled = split == "train" if shuffle is None else shuffle
    return tf_batches(rows, batch_size or BATCH, seed if is_shuffled else None)
