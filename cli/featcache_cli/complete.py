"""What the shell offers after TAB as the value of an option; answers without Keras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import Field
from typing import Any, Literal, get_args, get_origin

from featcache.settings import SplitName

Words = Callable[[str], list[str]]

SPLITS = get_args(SplitName)


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
NAMES: dict[str, Words] = {"backbone": backbones, "heads": heads}  # by the name of an option: too many to declare


def of_field(field: Field[Any]) -> Words | None:
    """Return what offers the values of an option of featcache.settings; None where any value may stand."""
    kinds = (field.type, *get_args(field.type))
    choices = [name for kind in kinds if get_origin(kind) is Literal for name in get_args(kind)]
    suggestions = field.metadata["suggestions"] or choices
    return words(*suggestions) if suggestions else NAMES.get(field.name)
