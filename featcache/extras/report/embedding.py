"""Features as points on a map: those that lie close are alike to the backbone.

t-SNE (van der Maaten and Hinton 2008) of the first 50 principal components, begun at the first two, so that the same
features give the same map. Distances between far groups, and sizes of groups, mean nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from featcache.arrays import Features, Floats

MOST = 2_000  # images on a map
COMPONENTS = 50
PERPLEXITY = 30.0
EQUAL = 1e-6  # of the largest value: features that differ by less are the same
LEAST = 10  # images from which neighbours say anything


def places(features: Features) -> Floats:
    """Return (N, 2) places from 0 to 1 of features (N, D), N at least 1."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    wide = features.astype(np.float64)
    wide -= wide.mean(axis=0)
    spread = float(np.abs(wide).max())
    if spread <= EQUAL * float(np.abs(features).max()):
        return np.zeros((len(wide), 2))
    reduced = PCA(min(COMPONENTS, *wide.shape), random_state=0).fit_transform(wide / spread)
    if len(wide) >= LEAST:
        how: dict[str, Any] = {"perplexity": min(PERPLEXITY, (len(wide) - 1) / 3), "init": "pca", "random_state": 0}
        with threadpool_limits(1):  # threads that wait for one another take minutes where a core is busy otherwise
            reduced = TSNE(2, max_iter=500, **how).fit_transform(reduced)
    flat = np.zeros((len(wide), 2))
    flat[:, : min(2, reduced.shape[1])] = reduced[:, :2]
    low, sides = flat.min(axis=0), np.ptp(flat, axis=0)
    return np.asarray((flat - low) / np.where(sides > 0, sides, 1.0))
