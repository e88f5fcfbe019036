"""The command line inside this process: the exit code, and what stands on stdout and on stderr."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from featcache_cli.app import main


class Result(NamedTuple):
    code: int
    out: str
    err: str


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
        return Result(int(leaving.value.code or 0), *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, handler)
