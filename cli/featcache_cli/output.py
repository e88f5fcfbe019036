"""What commands share: options, progress on stderr, results on stdout as text or as one JSON document."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from shlex import quote
from typing import Annotated, Any

import typer

from featcache.spec import Progress, Tick, silent

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, everything else on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Force = Annotated[
    bool, typer.Option("--force", help="Replace what is there, even if featcache did not write it; never an input.")
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run the code that a model file of yours carries (Lambda layers, SavedModels).")
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="MODULE:NAME",
        help="Import this class or function of yours, which the run or the cache names. Repeat it for several.",
    ),
]

SHOW_AFTER_S = 2.0
PLAIN_EVERY_S = 10.0


def emit(as_json: bool, document: dict[str, Any], text: Callable[[], str]) -> None:
    """Print a result: the document with --json, else the text."""
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    else:
        typer.echo(text())


def allow_flags(names: Sequence[str]) -> str:
    """Return the --allow options, each with a space before it, of a command that needs this code."""
    return "".join(f" --allow {quote(name)}" for name in names)


def in_shell(value: object) -> str:
    """Return a path, or what else a command takes, as it is copied into a shell.

    >>> in_shell("my photos.h5")
    "'my photos.h5'"
    """
    from featcache.reports.text import printable

    return printable(quote(str(value)))


def say(text: str) -> None:
    """Print a remark on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """Give a Progress that draws on stderr what takes over two seconds: a bar in a terminal, plain lines elsewhere."""
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        with _bars() as draw:
            yield draw
    else:
        yield _PlainLines()


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}  {task.fields[note]}", markup=False),
        TimeRemainingColumn(compact=True),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}
        started: dict[str, float] = {}

        def draw(tick: Tick) -> None:
            if not tick.total:
                bars.console.print(tick.note, markup=False, highlight=False)
                return
            began = started.setdefault(tick.step, time.perf_counter())
            elapsed = time.perf_counter() - began
            if tick.step not in tasks and elapsed > SHOW_AFTER_S:
                tasks[tick.step] = bars.add_task(tick.step, rate="", note="")
            if tick.step in tasks:
                rate = f"{tick.done / elapsed:.1f}/s"
                total = tick.total if tick.total > 0 else None
                bars.update(tasks[tick.step], completed=tick.done, total=total, rate=rate, note=tick.note)
            if 0 < tick.total <= tick.done:
                started.pop(tick.step)
                if tick.step in tasks:
                    bars.remove_task(tasks.pop(tick.step))

        yield draw


class _PlainLines:
    """One line per step every ten seconds, for logs."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._said = time.perf_counter()
        self._shown: set[str] = set()

    def __call__(self, tick: Tick) -> None:
        now = time.perf_counter()
        if not tick.total:
            say(tick.note)
            return
        began = self._began.setdefault(tick.step, now)
        ended = 0 < tick.total <= tick.done
        if ended:
            self._began.pop(tick.step)
        shown = tick.step in self._shown
        if now - began < SHOW_AFTER_S or (now - self._said < PLAIN_EVERY_S and not (ended and shown)):
            return
        self._said = now
        self._shown.add(tick.step)
        rate = tick.done / (now - began)
        left = (tick.total - tick.done) / rate if rate else 0.0
        note = f", {tick.note}" if tick.note else ""
        if tick.total > 0:
            say(f"{tick.step}: {tick.done}/{tick.total}, {rate:.1f}/s, {left:.0f} s left{note}")
        else:
            say(f"{tick.step}: {tick.done}, {rate:.1f}/s{note}")
