"""The command line inside this process: the exit code, and what stands on stdout and on stderr.

Every command that ends a line of a result, such as "Next: featcache sweep photos.h5", is parsed as it stands.
"""

from __future__ import annotations

import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import typer

from featcache_cli.app import app, main

PRINTED_COMMAND = re.compile(r"^(?:.*: )?featcache ([a-z]+ .*)$", re.MULTILINE)


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def commands(self) -> list[list[str]]:
        """Return the arguments of each command of featcache that ends a line of stdout."""
        return [shlex.split(command) for command in PRINTED_COMMAND.findall(self.out)]


def parse(arguments: list[str]) -> None:
    """Parse the arguments of featcache without running anything. Raises click.UsageError."""
    group: Any = typer.main.get_command(app)
    while True:
        context = group.make_context("featcache", [], resilient_parsing=True)
        name, command, arguments = group.resolve_command(context, arguments)
        if not hasattr(command, "commands"):
            command.make_context(name, list(arguments))
            return
        group = command


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Result]]:
    """Return a function that runs `featcache` with these arguments."""
    handler = signal.getsignal(signal.SIGTERM)
    # On a slow machine a step may last long enough to be named on stderr; only test_screen.py is about that.
    monkeypatch.setattr("featcache_cli.screen.PLAIN_AFTER_S", 1e9)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["featcache", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            main()
        done = Result(int(leaving.value.code or 0), *capsys.readouterr())
        if not {"--help", "--json"}.intersection(arguments):
            for command in done.commands:
                parse(command)
        return done

    yield run
    signal.signal(signal.SIGTERM, handler)
