"""Add to every command what all commands have: --config, --quiet, the screen, and the options of featcache.settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.models import CommandFunctionType

from featcache_cli.config import use
from featcache_cli.options import collected, parameters_of, shared
from featcache_cli.output import Quiet
from featcache_cli.screen import screen

Config = Annotated[Path | None, shared("config", callback=use, is_eager=True)]


class App(typer.Typer):
    """A Typer that gives its commands the shared options and the screen."""

    def __init__(self, help: str, **settings: Any) -> None:
        super().__init__(help=help, no_args_is_help=True, rich_markup_mode=None, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[CommandFunctionType], CommandFunctionType]:
        """Register a function as a command."""

        def add(function: CommandFunctionType) -> CommandFunctionType:
            # Click would cut the summary off to one line.
            summary = (function.__doc__ or "").partition("\n\n")[0]
            register = super(App, self).command(name, short_help=summary, **settings)
            register(_with_shared_options(function, name or function.__name__))
            return function

        return add


def _with_shared_options(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return the function as Typer takes it: one parameter per option, with the options that every command has.

    A parameter whose type is a class of featcache.settings stands for all options of that class. While the function
    runs, the screen shows its progress.
    """
    signature = inspect.signature(function, eval_str=True)
    settings: dict[str, Any] = {}  # {parameter: class of featcache.settings}
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if is_dataclass(parameter.annotation):
            settings[parameter.name] = parameter.annotation
            parameters += parameters_of(parameter.annotation)
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    for option, (kind, default) in {"quiet": (Quiet, False), "config": (Config, None)}.items():
        if option not in signature.parameters:
            parameters.append(
                inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            )

    @wraps(function)
    def run(**values: Any) -> Any:
        # The function gets only the options that it declares: --config has done its work, --quiet chooses the screen.
        arguments = {name: value for name, value in values.items() if name in signature.parameters}
        for name_of_settings, kind in settings.items():
            arguments[name_of_settings] = collected(kind, values)
        shown = nullcontext() if values["quiet"] else screen(name)
        with shown:
            return function(**arguments)

    # Typer reads the options from the signature and their types from the annotations.
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
