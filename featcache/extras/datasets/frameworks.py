"""Which library a dataset is for. Each is imported only when a dataset of its kind is made."""

from __future__ import annotations

from typing import Any

from featcache.cache.labelled import LabelledRows
from featcache.cache.reader import Cache
from featcache.errors import EnvironmentFault, UsageError
from featcache.spec import choose

KINDS = ("tf", "torch")
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
    choose("kind", kind, KINDS)
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"`batch_size` takes a number from 1; got {batch_size}")
    if kind == "torch" and not (batch_size is None and shuffle is None):
        raise UsageError("With `kind='torch'`, give batch_size and shuffle to the DataLoader, not to the dataset")
    rows = LabelledRows(cache, split, tap)
    if kind == "torch":
        try:
            from featcache.extras.datasets.torch_rows import TorchRows
        except ImportError as error:
            raise EnvironmentFault(f"`kind='torch'` needs PyTorch ({error}): pip install torch") from error
        return TorchRows(rows)
    try:
        from featcache.extras.datasets.tf_batches import tf_batches
    except ImportError as error:
        raise EnvironmentFault(f"`kind='tf'` needs TensorFlow ({error}): pip install tensorflow") from error
    is_shuffled = split == "train" if shuffle is None else shuffle
    return tf_batches(rows, batch_size or BATCH, seed if is_shuffled else None)
