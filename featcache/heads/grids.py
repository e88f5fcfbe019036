"""Which values of a head's parameters are tried: its own grid, with what the user asks for in its place.

ridge.alpha=0.1,1,10        these
logreg.C=1e-6..1e5:45       so many from the first to the last, each a constant multiple of the one before
{"ridge": {"alpha": [1]}}   as a settings file has it
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from featcache.errors import UsageError
from featcache.spec import did_you_mean

Params = Mapping[str, Any]
Grid = Mapping[str, Mapping[str, Sequence[Any]]]  # {head: {parameter: values}}

_ASKED = re.compile(r"(?P<head>[^=]+)\.(?P<name>\w+)=(?P<values>.*)", re.DOTALL)
_RANGE = re.compile(r"(?P<first>[^:,]+)\.\.(?P<last>[^:,]+):(?P<count>\d+)")


def parse_grid(texts: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """Return the grid that the user wrote. Raises UsageError.

    >>> parse_grid(["ridge.alpha=1..100:3", "knn.n_neighbors=5,1"])
    {'ridge': {'alpha': [1, 10, 100]}, 'knn': {'n_neighbors': [5, 1]}}
    """
    grid: dict[str, dict[str, list[Any]]] = {}
    for text in texts:
        if text.lstrip().startswith("{"):
            for head, axes in _table(text).items():
                grid.setdefault(head, {}).update(axes)
            continue
        asked = _ASKED.fullmatch(text.strip())
        if asked is None:
            raise UsageError(f"`grid` takes HEAD.PARAMETER=VALUES, such as ridge.alpha=1e-6..1e5:45; got '{text}'")
        grid.setdefault(asked["head"], {})[asked["name"]] = _values(asked["values"], text)
    return grid


def _table(text: str) -> dict[str, dict[str, list[Any]]]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(f"`grid`: this is no JSON: {error}; got '{text}'") from error
    if not all(isinstance(axes, dict) for axes in found.values()):
        raise UsageError(f"`grid` takes a table of tables, one per head, as in ridge.alpha = [0.1, 1]; got '{text}'")
    return dict(found)


def _values(text: str, asked: str) -> list[Any]:
    between = _RANGE.fullmatch(text.strip())
    if between is None and ".." in text:
        raise UsageError(f"`grid`: a range is FIRST..LAST:COUNT, such as 1e-6..1e5:45; got '{asked}'")
    if between is None:
        return [parse_value(one.strip()) for one in text.split(",") if one.strip()]
    first, last, count = parse_value(between["first"]), parse_value(between["last"]), int(between["count"])
    if not all(isinstance(one, (int, float)) and 0 < one < float("inf") for one in (first, last)) or count < 2:
        raise UsageError(f"`grid`: FIRST..LAST:COUNT takes two numbers above 0 and a count from 2; got '{asked}'")
    found = [float(f"{value:.12g}") for value in np.geomspace(first, last, count)]
    whole = isinstance(first, int) and isinstance(last, int) and all(value.is_integer() for value in found)
    return [int(value) for value in found] if whole else found


def parse_value(text: str) -> Any:
    """Return the number, True, False or None that a text is, else the text.

    >>> parse_value("8"), parse_value("1e-4"), parse_value("none"), parse_value("sgd")
    (8, 0.0001, None, 'sgd')
    """
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def combined(
    head: str, own: Sequence[Params], given: Mapping[str, Sequence[Any]], known: Sequence[str]
) -> list[Params]:
    """Return every combination of values, simple ones first: a head's own, but for the parameters that are given.

    known: the parameters of the head. Raises UsageError if one is unknown, or has no value.
    """
    axes: dict[str, list[Any]] = {}
    for name in own[0]:
        axes[name] = list(dict.fromkeys(params[name] for params in own))
    for name, values in given.items():
        if name not in known:
            raise UsageError(f"`grid`: {head} has no parameter '{name}'{did_you_mean(name, known)}: {', '.join(known)}")
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise UsageError(f"`grid`: {head}.{name} takes a list of values with one at least; got {values!r}")
        axes[name] = _ordered(list({repr(value): value for value in values}.values()), axes.get(name, []))
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def _ordered(values: list[Any], own: Sequence[Any]) -> list[Any]:
    """Return the values from simple to complex, as the head's own are; as they were given where those do not tell."""
    numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in values)
    if not numbers or len(own) < 2:
        return values
    return sorted(values, reverse=own[-1] < own[0])
