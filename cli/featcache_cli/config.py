"""Settings of a sweep from a file: TOML, or the run.json of an earlier run."""

from __future__ import annotations

import json
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from featcache.errors import UsageError
from featcache.spec import did_you_mean


def read_settings(path: Path | None) -> dict[str, Any]:
    """Return what the file sets, or nothing without a file. Raises UsageError naming what is wrong."""
    if path is None:
        return {}
    from featcache.sweeps import Settings

    try:
        text = path.read_text()
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--config: cannot read {path}: {why}. {_TAKES}") from error
    if path.suffix == ".json" and not (isinstance(found, dict) and isinstance(found.get("settings"), dict)):
        raise UsageError(f"--config: {path} has no settings of a run. {_TAKES}")
    asked = _one_name(path, found["settings"] if path.suffix == ".json" else found)
    known = [field.name for field in fields(Settings)]
    for name in asked:
        if name not in known:
            raise UsageError(
                f"--config: {path} sets '{name}'; a sweep has {', '.join(known)}{did_you_mean(name, known)}"
            )
    return {name: value for name, value in asked.items() if value is not None}


_TAKES = "It takes the run.json of a run, or a TOML file such as: heads = 'ridge,logreg'"


def _one_name(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with `tap`, as the flag is called, for `taps`. Raises UsageError if both are set."""
    if {"tap", "taps"} <= asked.keys():
        raise UsageError(f"--config: {path} sets both tap and taps, which are the same. Leave one of them out")
    return {"taps" if name == "tap" else name: value for name, value in asked.items()}
