"""Make the command line's options from featcache.settings: flags, types, help, and completion after TAB."""

from __future__ import annotations

import inspect
import re
from dataclasses import Field, fields
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from featcache.settings import COMMANDS, SharedOptions, flag_of, name_on_command_line
from featcache_cli import complete

# An argument in a message of the library, but not a part of a user's name such as x`cv`.png
ARGUMENT = re.compile(r"(?<![\w./\\-])`(\w+)(?:=([^`]*))?`(?![\w/\\-]|\.\w)")
QUOTES = "'\""


def shared(name: str, **details: Any) -> Any:
    """Return the Typer option, without its type, for an option that several commands have."""
    return _typer_option(SharedOptions.__dataclass_fields__[name], **details)


def parameters_of(kind: Any) -> list[inspect.Parameter]:
    """Return a parameter for each option in a class of settings, named as in a configuration file."""
    parameters: list[inspect.Parameter] = []
    for field in fields(kind):
        parameter = inspect.Parameter(
            name_on_command_line(field),
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=Annotated[_typer_type(field.type), _typer_option(field)],
        )
        parameters.append(parameter)
    return parameters


def collected(kind: Any, values: dict[str, Any]) -> Any:
    """Return the settings made from the values that a command got, by the names that `parameters_of` declares."""
    arguments = {field.name: values[name_on_command_line(field)] for field in fields(kind)}
    return kind(**arguments)


def in_flags(message: str) -> str:
    """Return a message of the library with its arguments written as flags.

    >>> in_flags("`learning_rate` takes a number above 0; got -1. Or `cv=5`, `metric='ece'`, `prefix=False`")
    '--lr takes a number above 0; got -1. Or --cv 5, --metric ece, --no-prefix'
    >>> in_flags("photos/`cv`.png is not there")
    'photos/`cv`.png is not there'
    """
    flags = {}
    for kind in (SharedOptions, *COMMANDS.values()):
        for field in fields(kind):
            flags[field.name] = field.metadata["short"] or flag_of(field)

    def translated(match: re.Match[str]) -> str:
        name, value = match.groups()
        if name not in flags:
            return match[0].strip("`")  # an argument without a flag, such as the name of a recipe
        if value in (None, "True"):
            return flags[name]
        if value == "False":
            return flags[name].replace("--", "--no-")
        return f"{flags[name]} {value.strip(QUOTES)}"

    return ARGUMENT.sub(translated, message)


def _typer_option(field: Field[Any], **details: Any) -> Any:
    flag = flag_of(field)
    # A switch that is off by default needs no --no- form.
    is_switch = bool in (field.type, *get_args(field.type))
    if is_switch and field.default is not False:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    return typer.Option(
        *filter(None, [flag, field.metadata["short"]]),
        help=field.metadata["help"],
        metavar=field.metadata["metavar"] or None,
        autocompletion=complete.of_field(field),
        **details,
    )


def _typer_type(kind: Any) -> Any:
    """Return the type for Typer. A choice of names becomes text: the library checks it, and suggests near names."""
    if get_origin(kind) is Literal:
        return str
    if isinstance(kind, UnionType) or type(None) in get_args(kind):
        [value_type] = [part for part in get_args(kind) if part is not type(None)]
        return _typer_type(value_type) | None
    return kind
