"""The labelled images of a split with the features of one tap, read from the file a few rows at a time."""

from __future__ import annotations

import numpy as np

from featcache.arrays import Classes, Features
from featcache.cache.layout import DIGEST_WIDTH
from featcache.cache.reader import Cache, stored_rows
from featcache.cache.rows import TapRows
from featcache.errors import UsageError
from featcache.files import Overtaken, again


class LabelledRows:
    """N images in the order of `Cache.arrays`, of which any rows can be read by their numbers.

    It holds no file open and no features, so it can be sent to other processes.
    """

    def __init__(self, cache: Cache, split: str | None, tap: str | None) -> None:
        """Raise UsageError if the split does not exist or has no labelled images, UnknownTap if the tap lacks some."""
        rows = [row for row in cache.usable(split) if row.label]
        if not rows:
            place = "" if split is None else f" in {split}"
            raise UsageError(
                f"{cache.path} has no labelled images{place}. Its splits: {', '.join(cache.splits) or '-'}"
            )
        self._path = cache.path
        self._fingerprint = cache.tap(tap).fingerprint
        self._digests = np.array([row.digest for row in rows], f"S{DIGEST_WIDTH}")
        self._stored: TapRows | None = None
        self.class_names = cache.classes
        self.classes = cache.labels(rows)
        self.shape = cache.require_features(rows, tap)

    def __len__(self) -> int:
        return len(self.classes)

    def read(self, numbers: Classes) -> tuple[Features, Classes]:
        """Return (B, D) float32 and (B,) int64 of the images with these numbers (B,), in their order."""
        digests = self._digests[numbers]
        return again(lambda: self._features(digests)), self.classes[numbers]

    def _features(self, digests: np.ndarray) -> Features:
        # Where the rows lie is looked up once; another process may have replaced the file since.
        if self._stored is None:
            self._stored = stored_rows(self._path, self._fingerprint)[self._fingerprint]
        try:
            return self._stored.features(digests)
        except Overtaken:
            self._stored = None
            raise
