"""The options that each step of a recipe takes, and how they are written on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from shlex import quote
from typing import Any

from featcache.errors import UsageError
from featcache.extraction import extract
from featcache.heads.grids import parse_value
from featcache.heads.softmax import DenseSoftmax
from featcache.images.manifest import scan
from featcache.sweeps import sweep
from featcache.tuning import Recipe

Settings = Mapping[str, Mapping[str, Any]]  # {step: {option: value}}

# The options of each step, by what takes them, without those that say what is read and where it is written
_TAKEN_BY: dict[str, Callable[..., Any]] = {
    "scan": scan,
    "extract": extract,
    "sweep": sweep,
    "head": DenseSoftmax,
    "finetune": Recipe,
}
_OF_SCAN = ("split", "group_from", "seed", "allow_outside", "label_column", "path_column")
_OF_EXTRACT = (
    *("backbone", "tap", "weights", "size", "pool", "resize", "decode", "bits", "views", "precision", "dtype"),
    *("engine", "device", "batch"),
)
_OF_SWEEP = ("heads", "prepare", "cv", "metric", "class_weight", "shots", "train_views", "seed", "jobs", "memory")
_OF_HEAD = tuple(name for name in signature(DenseSoftmax).parameters if name not in ("hidden", "class_weight", "seed"))
_OF_FINETUNE = (
    *(name for name in signature(Recipe).parameters if name not in ("metric", "max_seconds")),
    "controls",
)
OPTIONS = {
    "scan": _OF_SCAN,
    "extract": _OF_EXTRACT,
    "sweep": _OF_SWEEP,
    "head": _OF_HEAD,
    "finetune": _OF_FINETUNE,
}
OF_NAMING = {"predict": ("weights", "top")}


def parse_settings(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what `--set STEP.OPTION=VALUE` says, option names as in Python. Raises UsageError.

    >>> parse_settings(["finetune.lr=1e-4", "finetune.unfreeze=8", "head.epochs=5"])
    {'finetune': {'learning_rate': 0.0001, 'unfreeze': '8'}, 'head': {'epochs': 5}}
    """
    settings: dict[str, dict[str, Any]] = {}
    for text in texts:
        option, is_set, value = text.partition("=")
        step, dot, name = option.strip().partition(".")
        if not (is_set and dot and name):
            raise UsageError(f"`settings` takes STEP.OPTION=VALUE, such as finetune.epochs=5; got '{text}'")
        name = {"lr": "learning_rate"}.get(name, name).replace("-", "_")
        settings.setdefault(step, {})[name] = _typed(step, name, value.strip())
    return settings


def _typed(step: str, name: str, text: str) -> Any:
    """Return a value as its option takes it: a text where no number can be meant, so that "8" stays the last 8."""
    if step == "predict":
        return text if name == "weights" else parse_value(text)
    parameter = signature(_TAKEN_BY[step]).parameters.get(name) if step in _TAKEN_BY else None
    is_text = parameter is not None and not re.search(r"\b(int|float|bool)\b", str(parameter.annotation))
    return text if is_text else parse_value(text)


def flags_of(options: Mapping[str, Any]) -> list[str]:
    """Return options as words on the command line. A switch that is off, as all are by default, is left out.

    >>> flags_of({"backbone": "vgg16", "class_weight": "balanced", "train_views": True, "allow_outside": False})
    ['-b vgg16', '--class-weight balanced', '--train-views']
    """
    flags = []
    for name, value in options.items():
        flag = "-b" if name == "backbone" else f"--{name.replace('_', '-')}"
        if value is True:
            flags.append(flag)
        elif value is not False:
            flags.append(f"{flag} {quote(str(value))}")
    return flags


def word(value: Any) -> str:
    """Return a value as `--grid` and `--set` take it."""
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
