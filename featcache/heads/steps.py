"""Prepare features for a classifier: steps, and chains of steps.

standardise         zero mean and unit variance over the images that the head is fitted on
l2                  unit length, image by image
pca:64              the first 64 principal components; pca:0.95 enough of them for 95 % of the variance
pca:64:whiten       the same, each scaled to unit variance
l2+pca:64           one step after the other
none                features unchanged

The affine steps are absorbed into the first layer of a head; l2 becomes a separate layer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from featcache.arrays import Features
from featcache.errors import UsageError
from featcache.heads.row_blocks import row_slices
from featcache.spec import did_you_mean

STANDARDISE = "standardise"
NONE = "none"
BLOCK = 4096  # rows that a step works on at a time: scikit-learn's temporary arrays are three times as large
STEPS = (STANDARDISE, "l2", "pca:N", "pca:N:whiten", NONE)
_PCA = re.compile(r"pca:(?P<size>\d+|0?\.\d+)(?P<whiten>:whiten)?")


def parse_chains(text: str | Sequence[str]) -> tuple[str, ...]:
    """Return the chains in a comma-separated text, each in its canonical spelling. Raises UsageError.

    >>> parse_chains("standardise, l2 + pca:64,l2+pca:64")
    ('standardise', 'l2+pca:64')
    """
    chains = []
    texts = text.split(",") if isinstance(text, str) else text
    for chain in texts:
        if chain.strip():
            steps = [_checked_step(step.strip()) for step in chain.split("+")]
            chains.append("+".join(steps))
    if not chains:
        raise UsageError(f"`prepare` takes one chain at least of {', '.join(STEPS)}")
    return tuple(dict.fromkeys(chains))


def make_steps(chain: str) -> list[tuple[str, Any]]:
    """Return the named, unfitted scikit-learn transformers of a chain.

    >>> [name for name, _ in make_steps("standardise+l2")]
    ['standardise', 'l2']
    """
    steps = [step for step in chain.split("+") if step != NONE]
    kinds = [step.partition(":")[0] for step in steps]
    named = []
    for number, (kind, step) in enumerate(zip(kinds, steps, strict=True), 1):
        # A Pipeline refuses two steps of one name.
        name = kind if kinds.count(kind) == 1 else f"{kind}{number}"
        named.append((name, _transformer(step)))
    return named


def fit_steps(chain: str, X: Features, others: Features) -> tuple[list[tuple[str, Any]], Features, Features]:
    """Return the steps of a chain, fitted on X (N, D), and both arrays after them. The arrays may be overwritten.

    others: (M, D), images that the steps are not fitted on; there may be none.
    """
    from sklearn.decomposition import PCA

    steps = make_steps(chain)
    for _, step in steps:
        if isinstance(step, PCA):
            X = step.fit_transform(X)
            others = step.transform(others) if len(others) else X[:0]  # scikit-learn refuses arrays without rows
        else:
            _fit_in_blocks(step, X)
            for array in (X, others):
                for block in row_slices(len(array), BLOCK):
                    array[block] = step.transform(array[block])
    return steps, X, others


def _fit_in_blocks(step: Any, X: Features) -> None:
    if len(X) <= BLOCK or not hasattr(step, "partial_fit"):  # l2 learns nothing from the features
        step.fit(X)
        return
    for block in row_slices(len(X), BLOCK):
        step.partial_fit(X[block])


def _checked_step(step: str) -> str:
    if step in (STANDARDISE, "l2", NONE):
        return step
    match = _PCA.fullmatch(step)
    if match is None or float(match["size"]) == 0:
        near = did_you_mean(step.partition(":")[0], [STANDARDISE, "l2", NONE, "pca"])
        raise UsageError(f"`prepare` takes {', '.join(STEPS)}, joined by + into chains; got '{step}'{near}")
    return step


def _transformer(step: str) -> Any:
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import Normalizer, StandardScaler

    if step == STANDARDISE:
        return StandardScaler()
    if step == "l2":
        return Normalizer()
    match = _PCA.fullmatch(step)
    assert match is not None  # parse_chains has checked it
    # scikit-learn takes a whole number as a number of components, and a fraction as a share of the variance.
    size = float(match["size"]) if "." in match["size"] else int(match["size"])
    # The full solver: the others are random or less exact.
    return PCA(size, whiten=bool(match["whiten"]), svd_solver="full")
