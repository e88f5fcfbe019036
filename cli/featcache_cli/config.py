"""Read options from a file: --config FILE.toml for every command, and for a sweep also the run.json of an earlier run.

A file sets the options of one command, without a table, or of several, each in a table named after its command:

    seed = 1                      [extract]                   [cache.export]
    heads = ["ridge", "logreg"]   backbone = "resnet50"       split = "train"

A value in the file becomes the default of its option, so flags win.
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
_FILE = "featcache.config"  # key of the file in Click's context
_OF_ALL = {"config", "help"}
_ALIASES = {"taps": "tap", "changes": "set"}  # {name in run.json or in Python: name of the flag}
_UNITS = {"memory": "b", "budget": "s"}  # units of plain numbers whose flags take a unit


def use(ctx: typer.Context, value: Path | None) -> Path | None:
    """Make the values in a file the defaults of this command. Raises UsageError if the file does not fit it."""
    if value is not None:
        command = ctx.command_path.split()[1:]  # without "featcache"
        options = {str(option.name): option for option in ctx.command.params if option.name not in _OF_ALL}
        commands: Mapping[str, Any] = getattr(ctx.find_root().command, "commands", {})
        settings = _of_command(_read(value), command, list(options), commands, value)
        defaults: dict[str, Any] = {}
        for name, setting in settings.items():
            if setting is not None:  # run.json writes null for an option that was not given
                defaults[name] = _typed(options[name], setting)
        ctx.default_map = defaults
        ctx.meta[_FILE] = value
    return value


def set_by_file(ctx: Any, name: str) -> str:
    """Return the end of a message: the value of an option and the file that set it. Empty if no file did."""
    defaults = {} if ctx is None else ctx.default_map or {}
    if name not in defaults or ctx.get_parameter_source(name).name == "COMMANDLINE":
        return ""
    return f" ('{defaults[name]}', set by {ctx.meta[_FILE]})"


def set_by_run(ctx: typer.Context) -> tuple[Path, str] | None:
    """Return the run.json that set the options and the digest of its images; None without a run.json."""
    path: Path | None = ctx.meta.get(_FILE)
    if path is None or path.suffix != ".json":
        return None
    content = json.loads(path.read_text("utf-8"))
    return path, str(content.get("images_digest", ""))


def _read(path: Path) -> dict[str, Any]:
    """Return the content of the file; for a run.json its settings, as the table of `sweep`."""
    try:
        text = path.read_text("utf-8")
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--config: cannot read {path}: {why}. {_TAKES}") from error
    if path.suffix != ".json":
        return dict(content)
    if not (isinstance(content, dict) and isinstance(content.get("settings"), dict)):
        raise UsageError(f"--config: {path} has no settings of a run. {_TAKES}")
    if "digest" in content:  # earlier versions wrote none
        from featcache.files import check_seal

        check_seal(content, path, NotARun, "Other settings go into a TOML file, such as: heads = 'ridge,logreg'")
    from featcache.sweeps import Settings

    # A run may be anyone's: its settings must not choose where to write or which code to allow.
    for name in content["settings"]:
        if name not in Settings.__dataclass_fields__:
            raise UsageError(f"--config: {path} sets '{name}', which is no setting of a run. Sweep again")
    return {"sweep": content["settings"]}


def _of_command(
    content: Mapping[str, Any], command: list[str], names: list[str], commands: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """Return {option: value} for one command, from its own table and from the values outside all tables."""
    tables: dict[str, Any] = {}
    flat: dict[str, Any] = {}
    for name, value in content.items():
        # An option may have the name of a command, and then its value is no table.
        if name in commands and isinstance(value, dict):
            tables[name] = value
        else:
            flat[name] = value
    # `cache export` reads the table [cache.export], which lies in the table [cache].
    own_table: Any = tables
    for name in command:
        own_table = own_table.get(name, {}) if isinstance(own_table, dict) else {}
    # A value in the command's own table wins over one outside all tables.
    settings = _known(flat, command, names, list(commands), path)
    settings |= _known(own_table, command, names, [], path)
    return settings


def _known(
    table: Mapping[str, Any], command: list[str], names: list[str], others: list[str], path: Path
) -> dict[str, Any]:
    """Return the values by the names of their options. Raises UsageError for an unknown name, or one set twice."""
    values: dict[str, Any] = {}
    for written, value in table.items():
        plain = written.replace("-", "_")
        name = _ALIASES.get(plain, plain) if plain not in names else plain
        if name not in names:
            suggestion = did_you_mean(written, [*names, *others])
            takes = f"featcache {' '.join(command)} takes {', '.join(names)}"
            raise UsageError(f"--config: {path} sets '{written}'{suggestion}; {takes}")
        if name in values:
            twice = " and ".join(dict.fromkeys([name, written]))
            raise UsageError(f"--config: {path} sets both {twice}, which are the same. Leave one of them out")
        values[name] = value
    return values


def _typed(option: Any, value: Any) -> str | list[str]:
    """Return a value as it would stand on the command line: lists with commas, tables as JSON."""
    words: list[str] = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict):
            words.append(json.dumps(item))
        elif isinstance(item, (int, float)):
            words.append(f"{item}{_UNITS.get(option.name, '')}")
        else:
            words.append(str(item))
    is_list = option.multiple or option.nargs == -1
    return words if is_list else ",".join(words)
