"""Shared by all commands: options, remarks on stderr, results on stdout as text or as one JSON document."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.errors import DataError, NotDownloaded
from featcache.spec import Progress, silent
from featcache.text import folded_for
from featcache_cli.options import in_flags, shared
from featcache_cli.screen import current

if TYPE_CHECKING:
    from pathlib import Path

    from featcache.cache.reader import Cache
    from featcache.sweeps import Chosen, Run
    from featcache.sweeps.metrics import Score

LISTED = 20  # most rows of a table that may be long; --json lists all

Json = Annotated[bool, shared("json")]
Quiet = Annotated[bool, shared("quiet")]
Force = Annotated[bool, shared("force")]
Trust = Annotated[bool, shared("trust")]
Allow = Annotated[list[str] | None, shared("allow")]


def emit(as_json: bool, document: dict[str, Any], text: Callable[[], str]) -> None:
    """Print a result: the document with --json, otherwise the text."""
    if as_json:
        with cleared():
            typer.echo(json.dumps(document, indent=2))
    else:
        print_text(text())


def print_text(text: str) -> None:
    """Print a result, or a part of it, for people to read."""
    with cleared():
        typer.echo(folded_for(sys.stdout, text))


def in_shell(value: object) -> str:
    """Return a path or another argument, quoted so that a user can paste it into a shell.

    >>> in_shell("my photos.h5")
    "'my photos.h5'"
    """
    from featcache.text import printable

    return printable(quote(str(value)))


def listed_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return a table of the first rows and a line on how many more there are; nothing if there are no rows."""
    from featcache.text import table

    if not rows:
        return []
    lines = [table(header, rows[:LISTED])]
    if len(rows) > LISTED:
        lines.append(f"{len(rows) - LISTED} more: --json lists all.")
    return lines


def shape_text(shape: Iterable[int | None]) -> str:
    """Return a shape as a person reads it.

    >>> shape_text([None, 7, 7])
    '? x 7 x 7'
    """
    return " x ".join("?" if side is None else str(side) for side in shape)


def path_document(path: Path | None) -> str | None:
    """Return a path that may be missing as it stands in JSON."""
    return None if path is None else str(path)


def score_document(score: Score) -> dict[str, Any]:
    """Return a score and its interval as they stand in JSON."""
    return {"score": score.value, "interval": [score.low, score.high]}


def failures_document(failures: Iterable[Any]) -> list[dict[str, str]]:
    """Return images or files that could not be read as they stand in JSON."""
    return [
        {"path": failure.path, "status": failure.status, "reason": in_flags(failure.reason)} for failure in failures
    ]


def remarks_in_flags(remarks: Iterable[str]) -> list[str]:
    """Return notes and remarks of the library with its arguments written as flags."""
    return [in_flags(remark) for remark in remarks]


def say(text: str) -> None:
    """Print a remark on stderr."""
    screen = current()
    if screen is not None:
        screen.say(text)
        return
    sys.stderr.write(folded_for(sys.stderr, text) + "\n")
    sys.stderr.flush()


@contextmanager
def without_download(advice: str) -> Iterator[None]:
    """Add to the error of a failed download what this command can do without it."""
    try:
        yield
    except NotDownloaded as error:
        raise NotDownloaded(f"{error}; or {advice}") from error


def open_trial(name: str) -> Chosen:
    """Return the trial with this name, such as RUN@best. Print a remark if its run was stopped early."""
    from featcache.sweeps import open_trial

    chosen = open_trial(name)
    done, planned = len(chosen.run.trials), chosen.run.planned
    if done < planned:
        say(f"{chosen.run.path} was stopped: {done} of {planned} trials are done. The command that began it goes on")
    return chosen


def cache_or_remark(run: Run) -> Cache | None:
    """Return the cache of a run; None, with a remark, if it is gone or has changed: the run still has its scores."""
    try:
        return run.cache()
    except DataError as error:
        say(in_flags(str(error)))
        return None


@contextmanager
def cleared() -> Iterator[None]:
    """Remove the moving line while a result is printed: stdout and stderr may be the same terminal."""
    screen = current()
    with nullcontext() if screen is None else screen.cleared():
        yield


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """Yield a Progress that draws the moving line on stderr; a silent one with --quiet."""
    screen = current()
    yield silent if quiet or screen is None else screen.draw
