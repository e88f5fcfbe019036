"""What every command has, put on in one place: --config, --quiet, the screen, and values that a TAB offers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.models import CommandFunctionType, ParameterInfo

from featcache_cli.complete import CHOICES
from featcache_cli.config import use
from featcache_cli.output import Quiet
from featcache_cli.screen import screen

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Options from a TOML file, flat or a table per command; flags win.",
        callback=use,
        is_eager=True,
    ),
]


class App(typer.Typer):
    """A Typer whose commands have what all commands have."""

    def __init__(self, help: str, **settings: Any) -> None:
        super().__init__(help=help, no_args_is_help=True, rich_markup_mode=None, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[CommandFunctionType], CommandFunctionType]:
        """Register a function as a command."""

        def add(function: CommandFunctionType) -> CommandFunctionType:
            summary = (function.__doc__ or "").partition("\n\n")[0]  # Click would cut it off to one line
            register = super(App, self).command(name, short_help=summary, **settings)
            register(_with_shared_options(function, name or function.__name__))
            return function

        return add


def _with_shared_options(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return the function with a parameter for each option that every command has, which it may have itself.

    While it runs, the screen says what it does.
    """
    signature = inspect.signature(function, eval_str=True)
    own = list(signature.parameters.values())
    for parameter in own:
        _offer(parameter)
    given = {"quiet": (Quiet, False), "config": (Config, None)}
    added = [
        inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for option, (kind, default) in given.items()
        if option not in signature.parameters
    ]

    @wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        of_function = {option: value for option, value in options.items() if option in signature.parameters}
        with nullcontext() if options["quiet"] else screen(name):
            return function(*args, **of_function)

    run.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in [*own, *added]}
    return run


def _offer(parameter: inspect.Parameter) -> None:
    """Have the shell offer the values of a parameter whose name tells them."""
    for info in get_args(parameter.annotation):
        if isinstance(info, ParameterInfo) and info.autocompletion is None:
            info.autocompletion = CHOICES.get(parameter.name)
