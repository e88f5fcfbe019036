"""Choose which values of a head's parameters to try: the head's default grid, or the values of --grid in its place.

ridge.alpha=0.1,1,10        these values
logreg.C=1e-6..1e5:45       45 values from the first to the last, in equal ratios
{"ridge": {"alpha": [1]}}   as in a settings file
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

_ASSIGNMENT = re.compile(r"(?P<head>[^=]+)\.(?P<name>\w+)=(?P<values>.*)", re.DOTALL)
_RANGE = re.compile(r"(?P<first>[^:,]+)\.\.(?P<last>[^:,]+):(?P<count>\d+)")


def parse_grid(texts: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """Return the grid written in the texts of --grid. Raises UsageError.

    >>> parse_grid(["ridge.alpha=1..100:3", "knn.n_neighbors=5,1"])
    {'ridge': {'alpha': [1, 10, 100]}, 'knn': {'n_neighbors': [5, 1]}}
    """
    grid: dict[str, dict[str, list[Any]]] = {}
    for text in texts:
        if text.lstrip().startswith("{"):
            for head, axes in _table(text).items():
                grid.setdefault(head, {}).update(axes)
            continue
        match = _ASSIGNMENT.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"`grid` takes HEAD.PARAMETER=VALUES, such as ridge.alpha=1e-6..1e5:45; got '{text}'")
        grid.setdefault(match["head"], {})[match["name"]] = _values(match["values"], text)
    return grid


def _table(text: str) -> dict[str, dict[str, list[Any]]]:
    try:
        table = json.loads(text)
    except ValueError as error:
        raise UsageError(f"`grid`: this is no JSON: {error}; got '{text}'") from error
    if not all(isinstance(axes, dict) for axes in table.values()):
        raise UsageError(f"`grid` takes a table of tables, one per head, as in ridge.alpha = [0.1, 1]; got '{text}'")
    return dict(table)


def _values(text: str, argument: str) -> list[Any]:
    """Return the values of a comma-separated list or of a range. argument: the whole text, for messages."""
    match = _RANGE.fullmatch(text.strip())
    if match is None and ".." in text:
        raise UsageError(f"`grid`: a range is FIRST..LAST:COUNT, such as 1e-6..1e5:45; got '{argument}'")
    if match is None:
        return [parse_value(item.strip()) for item in text.split(",") if item.strip()]
    first = parse_value(match["first"])
    last = parse_value(match["last"])
    count = int(match["count"])
    if not _is_positive(first) or not _is_positive(last) or count < 2:
        raise UsageError(f"`grid`: FIRST..LAST:COUNT takes two numbers above 0 and a count from 2; got '{argument}'")
    # 12 digits, so that 0.1 is 0.1 and not 0.10000000000000002
    values = [float(f"{value:.12g}") for value in np.geomspace(first, last, count)]
    # Parameters such as n_neighbors refuse 5.0.
    ends_are_whole = isinstance(first, int) and isinstance(last, int)
    if ends_are_whole and all(value.is_integer() for value in values):
        return [int(value) for value in values]
    return values


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 < value < float("inf")


def parse_value(text: str) -> Any:
    """Return the number, True, False or None that a text spells, else the text.

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
    head: str, defaults: Sequence[Params], requested: Mapping[str, Sequence[Any]], known: Sequence[str]
) -> list[Params]:
    """Return every combination of values, simple ones first: the requested ones, and defaults for other parameters.

    known: the parameters of the head. Raises UsageError if a requested one is not among them, or has no value.
    """
    axes: dict[str, list[Any]] = {}
    for name in defaults[0]:
        axes[name] = list(dict.fromkeys(params[name] for params in defaults))
    for name, values in requested.items():
        if name not in known:
            raise UsageError(f"`grid`: {head} has no parameter '{name}'{did_you_mean(name, known)}: {', '.join(known)}")
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise UsageError(f"`grid`: {head}.{name} takes a list of values with one at least; got {values!r}")
        by_text = {repr(value): value for value in values}  # a value may be a list, which no set takes
        distinct = list(by_text.values())
        # From simple to complex: in the direction in which the defaults run.
        default_values = axes.get(name, [])
        are_numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in distinct)
        if are_numbers and len(default_values) > 1:
            distinct.sort(reverse=default_values[-1] < default_values[0])
        axes[name] = distinct

    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
