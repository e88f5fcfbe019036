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
        asked = json.loads(text)["settings"] if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--config: cannot read {path}: {error}") from error
    known = [field.name for field in fields(Settings)]
    for name in asked:
        if name not in known:
            raise UsageError(
                f"--config: {path} sets '{name}'; a sweep has {', '.join(known)}{did_you_mean(name, known)}"
            )
    return {name: value for name, value in asked.items() if value is not None}
