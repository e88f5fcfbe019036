"""Options from a file: --config FILE.toml of every command, and of a sweep also the run.json of an earlier run.

A file sets the options of one command, flat, or of several, each in a table that is called as the command is:

    seed = 1                      [extract]                   [cache.export]
    heads = ["ridge", "logreg"]   backbone = "resnet50"       split = "train"

What it sets becomes the default of that option, so flags win.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from featcache.errors import NotARun, UsageError
from featcache.spec import did_you_mean

_TAKES = "It takes the run.json of a run, or a TOML file such as: heads = 'ridge,logreg'"
_FILE = "featcache.config"  # under which a context knows the file
_OF_ALL = {"config", "help"}
_ALIASES = {"taps": "tap"}  # as run.json calls what the flag calls otherwise
_UNITS = {"memory": "b", "budget": "s"}  # of numbers whose flag takes a unit


def use(ctx: typer.Context, value: Path | None) -> Path | None:
    """Make what a file sets the defaults of this command. Raises UsageError naming what is wrong."""
    if value is not None:
        command = ctx.command_path.split()[1:]
        names = {str(one.name): one for one in ctx.command.params if one.name not in _OF_ALL}
        asked = _of_command(_read(value), command, list(names), _commands(ctx), value)
        ctx.default_map = {name: _typed(names[name], one) for name, one in asked.items() if one is not None}
        ctx.meta[_FILE] = value
    return value


def set_by_file(ctx: Any, name: str) -> str:
    """Return the value of an option and the file it stands in, to be said behind a message; nothing if in none."""
    value = {} if ctx is None else ctx.default_map or {}
    if name not in value or ctx.get_parameter_source(name).name == "COMMANDLINE":
        return ""
    return f" ('{value[name]}', set by {ctx.meta[_FILE]})"


def set_by_run(ctx: typer.Context) -> tuple[Path, str] | None:
    """Return the run.json that set the options and the digest of its images, if one did."""
    path: Path | None = ctx.meta.get(_FILE)
    if path is None or path.suffix != ".json":
        return None
    return path, str(json.loads(path.read_text("utf-8")).get("images_digest", ""))


def _read(path: Path) -> dict[str, Any]:
    """Return the content of the file; of a run.json the settings, as a table of sweep."""
    try:
        text = path.read_text("utf-8")
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--config: cannot read {path}: {why}. {_TAKES}") from error
    if path.suffix != ".json":
        return dict(found)
    if not (isinstance(found, dict) and isinstance(found.get("settings"), dict)):
        raise UsageError(f"--config: {path} has no settings of a run. {_TAKES}")
    if "digest" in found:  # earlier versions wrote none
        from featcache.files import check_seal

        check_seal(found, path, NotARun, "Other settings go into a TOML file, such as: heads = 'ridge,logreg'")
    from featcache.sweeps import Settings

    # A run may be anyone's: it says what was swept, and neither where to write nor which code to allow.
    for name in found["settings"]:
        if name not in Settings.__dataclass_fields__:
            raise UsageError(f"--config: {path} sets '{name}', which is no setting of a run. Sweep again")
    return {"sweep": found["settings"]}


def _commands(ctx: typer.Context) -> Mapping[str, Any]:
    """Return all commands and groups of commands."""
    found: Mapping[str, Any] = getattr(ctx.find_root().command, "commands", {})
    return found


def _of_command(
    found: Mapping[str, Any], command: list[str], names: list[str], commands: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """Return {option: value} of one command: what its own table sets, and what stands in no table."""
    tables = {name: value for name, value in found.items() if name in commands and isinstance(value, dict)}
    flat = {name: value for name, value in found.items() if name not in tables}
    own: Any = tables
    for name in command:
        own = own.get(name, {}) if isinstance(own, dict) else {}
    return {**_known(flat, command, names, list(commands), path), **_known(own, command, names, [], path)}


def _known(
    asked: Mapping[str, Any], command: list[str], names: list[str], others: list[str], path: Path
) -> dict[str, Any]:
    """Return the settings by the names of options. Raises UsageError for another name, or one set twice."""
    found: dict[str, Any] = {}
    for written, value in asked.items():
        plain = written.replace("-", "_")
        name = _ALIASES.get(plain, plain) if plain not in names else plain
        if name not in names:
            said = did_you_mean(written, [*names, *others])
            takes = f"featcache {' '.join(command)} takes {', '.join(names)}"
            raise UsageError(f"--config: {path} sets '{written}'{said}; {takes}")
        if name in found:
            twice = " and ".join(dict.fromkeys([name, written]))
            raise UsageError(f"--config: {path} sets both {twice}, which are the same. Leave one of them out")
        found[name] = value
    return found


def _typed(option: Any, value: Any) -> str | list[str]:
    """Return a value as it would stand on the command line: lists with commas, tables as JSON."""
    if option.multiple or option.nargs == -1:
        return [_word(option, one) for one in (value if isinstance(value, list) else [value])]
    if isinstance(value, list):
        return ",".join(_word(option, one) for one in value)
    return _word(option, value)


def _word(option: Any, value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    unit = _UNITS.get(option.name, "") if isinstance(value, (int, float)) else ""
    return f"{value}{unit}"
