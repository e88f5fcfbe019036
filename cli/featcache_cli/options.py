"""The command line's options, made from featcache.settings: flags, types, help, and what the shell offers after TAB."""

from __future__ import annotations

import inspect
import re
from dataclasses import Field, fields
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from featcache.settings import COMMANDS, SharedOptions, flag_of, name_on_command_line
from featcache_cli import complete

ARGUMENT = re.compile(r"`(\w+)(?:=([^`]*))?`")  # as messages of the library name one
QUOTES = "'\""


def shared(name: str, **details: Any) -> Any:
    """Return what Typer needs to know, beside its type, of an option that several commands have."""
    return _typer_option(SharedOptions.__dataclass_fields__[name], **details)


def parameters_of(kind: Any) -> list[inspect.Parameter]:
    """Return a parameter for each option of a class of settings, called as in a configuration file."""
    return [
        inspect.Parameter(
            name_on_command_line(field),
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=Annotated[_typer_type(field.type), _typer_option(field)],
        )
        for field in fields(kind)
    ]


def collected(kind: Any, values: dict[str, Any]) -> Any:
    """Return the settings made from the values that a command got, by the names that `parameters_of` declares."""
    return kind(**{field.name: values[name_on_command_line(field)] for field in fields(kind)})


def in_flags(message: str) -> str:
    """Return a message of the library in the words of the command line.

    >>> in_flags("`learning_rate` takes a number above 0; got -1. Or `cv=5`, `metric='ece'`, `prefix=False`")
    '--lr takes a number above 0; got -1. Or --cv 5, --metric ece, --no-prefix'
    """
    flags = {
        field.name: field.metadata["short"] or flag_of(field)
        for kind in (SharedOptions, *COMMANDS.values())
        for field in fields(kind)
    }

    def translated(match: re.Match[str]) -> str:
        name, value = match.groups()
        if name not in flags:
            return match[0]
        if value in (None, "True"):
            return flags[name]
        return flags[name].replace("--", "--no-") if value == "False" else f"{flags[name]} {value.strip(QUOTES)}"

    return ARGUMENT.sub(translated, message)


def _typer_option(field: Field[Any], **details: Any) -> Any:
    flag = flag_of(field)
    if _has_opposite(field):
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    return typer.Option(
        *filter(None, [flag, field.metadata["short"]]),
        help=field.metadata["help"],
        metavar=field.metadata["metavar"] or None,
        autocompletion=complete.of_field(field),
        **details,
    )


def _has_opposite(field: Field[Any]) -> bool:
    """Tell whether there is a --no- form: not of a switch that is off anyway."""
    return field.default is not False and bool in (field.type, *get_args(field.type))


def _typer_type(kind: Any) -> Any:
    """Return the type with text in place of names to choose from: the library checks them, and offers near names."""
    if get_origin(kind) is Literal:
        return str
    if isinstance(kind, UnionType) or type(None) in get_args(kind):
        [only] = [part for part in get_args(kind) if part is not type(None)]
        return _typer_type(only) | None
    return kind
