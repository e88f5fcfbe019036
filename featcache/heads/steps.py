"""What is done to features before a classifier: steps, and chains of them.

standardise         zero mean and unit variance, as of the images that fit
l2                  unit length, image by image
pca:64              the first 64 principal components; pca:0.95 as many as hold 95 % of the variance
pca:64:whiten       the same, each of unit variance
l2+pca:64           one after the other
none                features as they are

The affine steps are absorbed into the first layer of a head; l2 is a layer of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from featcache.errors import UsageError
from featcache.spec import did_you_mean

STANDARDISE = "standardise"
NONE = "none"
STEPS = (STANDARDISE, "l2", "pca:N", "pca:N:whiten", NONE)
_PCA = re.compile(r"pca:(?P<size>\d+|0?\.\d+)(?P<whiten>:whiten)?")


def parse_chains(text: str | Sequence[str]) -> tuple[str, ...]:
    """Return the chains that are named, comma between them, each as it is written everywhere. Raises UsageError.

    >>> parse_chains("standardise, l2 + pca:64,l2+pca:64")
    ('standardise', 'l2+pca:64')
    """
    asked = text.split(",") if isinstance(text, str) else text
    chains = ["+".join(_checked(step.strip()) for step in chain.split("+")) for chain in asked if chain.strip()]
    if not chains:
        raise UsageError(f"`prepare` takes one chain at least of {', '.join(STEPS)}")
    return tuple(dict.fromkeys(chains))


def make_steps(chain: str) -> list[tuple[str, Any]]:
    """Return the named, unfitted scikit-learn transformers of a chain.

    >>> [name for name, _ in make_steps("standardise+l2")]
    ['standardise', 'l2']
    """
    steps = [step for step in chain.split("+") if step != NONE]
    named = [step.partition(":")[0] for step in steps]
    return [
        (name if named.count(name) == 1 else f"{name}{number}", _transformer(step))
        for number, (name, step) in enumerate(zip(named, steps, strict=True), 1)
    ]


def _checked(step: str) -> str:
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
    assert match is not None  # _checked has seen it
    size = float(match["size"]) if "." in match["size"] else int(match["size"])
    return PCA(size, whiten=bool(match["whiten"]), svd_solver="full")  # the others are random, or less exact
