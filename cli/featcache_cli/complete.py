"""What the shell offers after TAB as the value of an option; answers without Keras.

Options that are called alike take the same values, so they are told by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Words = Callable[[str], list[str]]

SPLITS = ("train", "val", "test")


def words(*names: str) -> Words:
    """Return what offers these names; after a comma again.

    >>> words("ridge", "rbf", "knn")("knn,r")
    ['knn,ridge', 'knn,rbf']
    """
    return lambda incomplete: _continued(names, incomplete)


def backbones(incomplete: str) -> list[str]:
    """Offer the backbones of the registry."""
    from featcache.backbones.registry import REGISTRY

    return _continued(list(REGISTRY), incomplete)


def heads(incomplete: str) -> list[str]:
    """Offer the kinds of heads."""
    from featcache.heads.estimators import FAMILIES

    return _continued(list(FAMILIES), incomplete)


def _continued(names: Sequence[str], incomplete: str) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in names if name.startswith(last)]


RECIPES = words("list", "flowers", "hotdog", "flower-photos", "cifar", "imagenet", "own-model")

# tests/cli/test_completion.py holds each to what the library takes
CHOICES: dict[str, Words] = {
    "augment": words("none", "light", "strong", "tutorial"),
    "backbone": backbones,
    "class_weight": words("balanced"),
    "controls": words("frozen", "unfrozen", "scratch"),
    "decode": words("exact", "draft"),
    "device": words("auto", "cpu", "gpu"),
    "dtype": words("float32", "float16"),
    "engine": words("auto", "keras", "openvino"),
    "heads": heads,
    "layout": words("file", "parts"),
    "metric": words("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece"),
    "names": backbones,
    "optimizer": words("adamw", "adam", "sgd", "rmsprop", "adagrad"),
    "pool": words("avg", "max", "flatten", "none"),
    "precision": words("float32", "bfloat16", "float16"),
    "prepare": words("standardise", "l2", "l2+pca:64", "none"),
    "preset": words("kornblith", "clip", "dinov2", "fewshot"),
    "resize": words("stretch", "crop", "pad"),
    "schedule": words("cosine", "constant"),
    "unfreeze": words("none", "last", "all", "gradual"),
    "views": words("1", "flip", "8"),
    "weights": words("imagenet", "none"),
}
