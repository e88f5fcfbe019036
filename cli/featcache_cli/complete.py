"""Offer the values of options after TAB in a shell, without importing Keras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import Field
from typing import Any, Literal, get_args, get_origin

from featcache.settings import SplitName

Words = Callable[[str], list[str]]

SPLITS = get_args(SplitName)


def words(*names: str) -> Words:
    """Return a function that completes these names, again after each comma.

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
# Options whose names come from a registry, because they are too many to declare in featcache.settings.
NAMES: dict[str, Words] = {"backbone": backbones, "heads": heads}


def of_field(field: Field[Any]) -> Words | None:
    """Return a function that completes the values of an option of featcache.settings; None if it takes any value."""
    choices: list[str] = []
    # The choices may be the type itself or a part of a union: Literal[..] | None.
    for kind in (field.type, *get_args(field.type)):
        if get_origin(kind) is Literal:
            choices += get_args(kind)
    suggestions = field.metadata["suggestions"] or choices
    return words(*suggestions) if suggestions else NAMES.get(field.name)
