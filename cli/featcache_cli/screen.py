"""Show on stderr what a command is doing: a moving line in a terminal, plain lines in a log.

The library names a long step in a log record (`Starting TensorFlow ..`), and reports counts in a `Tick`. The line shows
the latest of both with the seconds so far, and a bar if something is counted. It never mixes with results: it is
cleared before anything is printed, and drawn again below.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from featcache.progress import Step
from featcache.spec import Tick
from featcache.text import folded, printable
from featcache_cli.options import in_flags

SHOWN_AFTER_S = 0.5  # after the start or the last output: a shorter step shows nothing
REFRESH_S = 0.1
# In a log a step is named after 2 seconds, and a counted step every 10 seconds.
PLAIN_AFTER_S, PLAIN_EVERY_S = 2.0, 10.0
BAR = 24  # most characters of the bar
LEAST_BAR = 6
NARROWEST = 10  # fewest characters of a name
SPINNER = "|/-\\"


class Screen:
    """The step of a command, drawn by a thread until the command ends."""

    def __init__(self, command: str, stream: TextIO) -> None:
        self._command = command
        self._stream = stream
        self._step = self._rest = Step(command)  # at rest the line shows only the command
        self._counted: set[str] = set()  # names of all steps that were counted
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._live: Any = None  # rich.live.Live while the line is drawn
        self._cleared = time.monotonic()
        self._is_terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._thread = threading.Thread(target=self._watch, name="screen", daemon=True)
        self._thread.start()

    def begin(self, name: str) -> None:
        """Show a step that is not counted."""
        with self._lock:
            self._step = Step(printable(name))

    def draw(self, tick: Tick) -> None:
        """Show the count of a step; print the Tick if it is a remark."""
        if not tick.total:
            self.say(in_flags(tick.note))
            return
        with self._lock:
            name = printable(tick.step)
            if name != self._step.name:
                self._step = Step(name, first=tick.done, is_warm=name in self._counted)
                self._counted.add(name)
            step = self._step
            step.done, step.total, step.note = tick.done, tick.total, printable(tick.note)
            if 0 < tick.total <= tick.done:
                if step.named_after is not None:
                    self._name_plainly(step)
                self._step = self._rest = Step(self._command)

    def say(self, text: str) -> None:
        """Print a remark above the line."""
        with self.cleared():
            line = folded(text) if self._is_terminal else text
            self._stream.write(f"{line}\n")
            self._stream.flush()

    @contextmanager
    def cleared(self) -> Iterator[None]:
        """Remove the line while something is printed."""
        with self._lock:
            if self._live is not None:
                self._live.stop()
                self._live = None
            yield
            self._cleared = time.monotonic()

    def end(self) -> None:
        """Remove the line for good."""
        self._ended.set()
        self._thread.join()
        with self.cleared():
            pass

    def _watch(self) -> None:
        while not self._ended.wait(REFRESH_S):
            with self._lock, suppress(OSError, ValueError):  # the reader of stderr has gone
                if self._is_terminal:
                    if time.monotonic() - self._cleared > SHOWN_AFTER_S:
                        self._show_line()
                elif self._is_due():
                    self._name_plainly(self._step)

    def _is_due(self) -> bool:
        """Return whether a log should name the step now: once, and regularly if it is counted."""
        step = self._step
        if step.named_after is None:
            return step is not self._rest and step.seconds > PLAIN_AFTER_S
        return bool(step.total) and step.seconds - step.named_after > PLAIN_EVERY_S

    def _name_plainly(self, step: Step) -> None:
        step.named_after = step.seconds
        self.say(f"{step.name}: {step.count}" if step.total else step.name)

    def _show_line(self) -> None:
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            # By default rich would redirect results from stdout to this stream.
            self._live = Live(
                console=Console(file=self._stream, highlight=False),
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        self._live.update(_line(self._step, self._live.console), refresh=True)


def _line(step: Step, console: Any) -> Any:
    """Return a step as rich's text: its name, which is shortened first, a bar if it is counted, and the count."""
    from rich.text import Text

    spinner = SPINNER[int(time.monotonic() / REFRESH_S) % len(SPINNER)]
    count = step.count  # once, because it changes with the time
    room = console.width - len(f"{spinner}    {count}") - 1
    name = step.name
    if len(name) > room:
        name = name[: max(room - 2, NARROWEST)] + ".."
    line = Text(f"{spinner} {name}  ", no_wrap=True, overflow="crop")
    width = min(BAR, room - len(name))
    if step.total > 0 and width >= LEAST_BAR:
        filled = min(width, width * step.done // step.total)
        sign = "━" if console.encoding.startswith("utf") else "="
        line.append(sign * filled, "green")
        line.append(sign * (width - filled), "bright_black")
        line.append(" ")
    return line.append(count)


class _Steps(logging.Handler):
    """Shows the steps that the library names in its log records, and prints its warnings."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.INFO)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self._screen.say(printable(record.getMessage()))
        else:
            self._screen.begin(record.getMessage())


_shown: list[Screen] = []  # the running command's screen, if it has one


def current() -> Screen | None:
    """Return the running command's screen; None with --quiet."""
    return _shown[-1] if _shown else None


@contextmanager
def screen(command: str) -> Iterator[None]:
    """Show on stderr what the command does inside the block."""
    with _own_stderr() as stream:
        shown = Screen(command, stream)
        steps = _Steps(shown)
        logger = logging.getLogger("featcache")
        level = logger.level
        logger.addHandler(steps)
        logger.setLevel(logging.INFO)
        _shown.append(shown)
        try:
            yield
        finally:
            _shown.remove(shown)
            logger.setLevel(level)
            logger.removeHandler(steps)
            shown.end()


@contextmanager
def _own_stderr() -> Iterator[TextIO]:
    """Yield a copy of stderr, because stderr itself is silenced while Keras is imported."""
    try:
        copy = os.dup(sys.stderr.fileno())
    except (OSError, ValueError):  # stderr is not a file
        yield sys.stderr
        return
    with os.fdopen(copy, "w", encoding=sys.stderr.encoding, errors=sys.stderr.errors) as stream:
        yield stream
