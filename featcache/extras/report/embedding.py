"""Features as points on a map: images that lie close look alike to the backbone.

t-SNE (van der Maaten and Hinton 2008) of the first 50 principal components. It starts at the first two, so that the
same features give the same map. Distances between far groups, and sizes of groups, mean nothing.
"""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_limits

from featcache.arrays import Features, Floats

MOST = 2_000  # images on a map
COMPONENTS = 50
PERPLEXITY = 30.0
EQUAL = 1e-6  # share of the largest value; features that differ by less are equal
LEAST = 10  # with fewer images neighbours mean nothing


def places(features: Features) -> Floats:
    """Return (N, 2), places from 0 to 1. features: (N, D), N at least 1."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    centred = features.astype(np.float64)
    centred -= centred.mean(axis=0)
    spread = float(np.abs(centred).max())
    largest = float(np.abs(features).max())
    if spread <= EQUAL * largest:
        return np.zeros((len(centred), 2))
    # Scaled to 1, because the squares of very large or small features leave the range of floats.
    reduced = PCA(min(COMPONENTS, *centred.shape), random_state=0).fit_transform(centred / spread)
    if len(centred) >= LEAST:
        perplexity = min(PERPLEXITY, (len(centred) - 1) / 3)  # scikit-learn wants less than N
        # One thread: threads that wait for one another take minutes if another process uses a core.
        with threadpool_limits(1):
            reduced = TSNE(2, max_iter=500, perplexity=perplexity, init="pca", random_state=0).fit_transform(reduced)
    flat = np.zeros((len(centred), 2))  # one component gives a line
    num_components = min(2, reduced.shape[1])
    flat[:, :num_components] = reduced[:, :num_components]
    sides = np.ptp(flat, axis=0)
    sides[sides == 0] = 1.0  # points on a line stay on it
    return np.asarray((flat - flat.min(axis=0)) / sides)
