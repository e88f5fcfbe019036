"""The options that each step of a recipe takes, and how `--set` and `--grid` spell them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from inspect import signature
from typing import Any

from featcache.errors import UsageError
from featcache.extraction import extract
from featcache.heads.grids import parse_value
from featcache.heads.softmax import DenseSoftmax
from featcache.images.manifest import scan
from featcache.settings import FeatureOptions, FinetuneOptions, ScanOptions, SweepOptions
from featcache.spec import choose
from featcache.sweeps import sweep
from featcache.tuning import Recipe

Settings = Mapping[str, Mapping[str, Any]]  # {step: {option: value}}


def _names(kind: Any, but: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of the options in a class, but for some."""
    return tuple(field.name for field in fields(kind) if field.name not in but)


# The options of each step, by what takes them, without those that say what is read and where it is written
_TAKEN_BY: dict[str, Callable[..., Any]] = {
    "scan": scan,
    "extract": extract,
    "sweep": sweep,
    "head": DenseSoftmax,
    "finetune": Recipe,
}
OPTIONS = {
    "scan": _names(ScanOptions),
    "extract": (*_names(FeatureOptions), "engine", "device", "batch"),
    "sweep": _names(SweepOptions, but=("taps", "grid", "preset", "budget", "refit")),
    "head": tuple(
        name for name in signature(DenseSoftmax).parameters if name not in ("hidden", "class_weight", "seed")
    ),
    "finetune": _names(FinetuneOptions, but=("resume", "logs")),
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


def checked(settings: Settings, options: Mapping[str, Sequence[str]]) -> Settings:
    """Return the settings. Raises UsageError, with near names, unless they change only options that there are."""
    for step, values in settings.items():
        choose("settings", step, list(options))
        for name in values:
            choose(f"`settings` {step}", name, options[step])
    return settings


def grid_of(head: str, parameters: Mapping[str, Any]) -> list[str]:
    """Return the parameters of one head as `--grid` takes them.

    >>> grid_of("mlp:64", {"epochs": 5, "nesterov": True, "patience": None})
    ['mlp:64.epochs=5', 'mlp:64.nesterov=true', 'mlp:64.patience=none']
    """
    texts = []
    for name, value in parameters.items():
        is_word = value is None or isinstance(value, bool)
        texts.append(f"{head}.{name}={str(value).lower() if is_word else value}")
    return texts
