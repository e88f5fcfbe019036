"""How far a long step is, in words; and a bar that shows it in a notebook or a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

from featcache.spec import Progress, Tick
from featcache.text import printable

# The first images are slow: files are opened, networks compiled. The time left is shown once they matter little.
ESTIMATE_AFTER_S, ESTIMATE_FROM_SHARE = 5.0, 0.1
ALWAYS_ESTIMATE_AFTER_S = 60.0  # in a job of hours the first tenth takes too long to wait for
REDRAW_S = 0.2


@dataclass
class Step:
    """A step that may take long. total: as in Tick, and 0 if nothing is counted."""

    name: str
    began: float = field(default_factory=time.monotonic)
    first: int = 0  # count at the first Tick: done earlier, so not part of the rate
    done: int = 0
    total: int = 0
    note: str = ""
    is_warm: bool = False  # it was counted before, as training is in each epoch: no slow start to wait for
    named_after: float | None = None  # seconds from the beginning to the latest plain line

    @property
    def seconds(self) -> float:
        """Return the seconds since the step began."""
        return time.monotonic() - self.began

    @property
    def count(self) -> str:
        """Return the count, the rate and the time left, as far as they are known."""
        if not self.total:
            return f"({self.seconds:.0f} s)"
        done = self.done - self.first
        rate = done / self.seconds if done else 0.0
        known = self.total > 0
        parts = [f"{self.done}/{self.total}" if known else f"{self.done}"]
        if rate:
            parts.append(f"{rate:.1f}/s")
        if rate and known and self._can_be_estimated:
            parts.append(_time_left((self.total - self.done) / rate))
        if self.note:
            parts.append(self.note)
        return ", ".join(parts)

    @property
    def _can_be_estimated(self) -> bool:
        """Return whether enough has been done to tell the time left."""
        if self.is_warm or self.seconds >= ALWAYS_ESTIMATE_AFTER_S:
            return True
        share = (self.done - self.first) / (self.total - self.first)
        return self.seconds >= ESTIMATE_AFTER_S and share >= ESTIMATE_FROM_SHARE


def show_progress() -> Progress:
    """Return what draws a bar with images per second and time left, for the `progress` of a long call.

        cache = fc.extract("photos/", out="photos.h5", progress=fc.show_progress())

    A notebook shows a bar below the cell, a terminal a line. The bar vanishes when its step is done; remarks stay.
    Where stderr is a file, only remarks are written.
    """
    return Bar(_notebook_line() or _terminal_line(sys.stderr))


class Bar:
    """Draws Ticks. line: takes the step to show, or None to clear the line, and remarks."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._step: Step | None = None
        self._counted: set[str] = set()  # names of all steps that were counted
        self._drawn = 0.0  # when the line was last drawn

    def __call__(self, tick: Tick) -> None:
        """Show the count of a step; a Tick without one is a remark."""
        if not tick.total:
            self._line.say(printable(tick.note))
            return
        name = printable(tick.step)
        if self._step is None or self._step.name != name:
            self._step = Step(name, first=tick.done, is_warm=name in self._counted)
            self._counted.add(name)
        step = self._step
        step.done, step.total, step.note = tick.done, tick.total, printable(tick.note)
        if 0 < tick.total <= tick.done:
            self._line.clear()
            self._step = None
        elif time.monotonic() - self._drawn > REDRAW_S:
            self._line.draw(step)
            self._drawn = time.monotonic()


@dataclass(frozen=True)
class Line:
    """Where a bar is drawn."""

    draw: Callable[[Step], None]
    clear: Callable[[], None]
    say: Callable[[str], None]


def _terminal_line(stream: TextIO) -> Line:
    """Return the last line of a terminal; of another stream, which keeps what was written, only remarks are written."""
    back = "\r\x1b[2K"  # to the beginning of the line, which is then erased
    if not stream.isatty():
        return Line(lambda step: None, lambda: None, lambda text: print(text, file=stream))

    def write(text: str) -> None:
        stream.write(back + text)
        stream.flush()

    return Line(lambda step: write(f"{step.name}  {step.count}"), lambda: write(""), lambda text: write(f"{text}\n"))


def _notebook_line() -> Line | None:
    """Return the output of the running cell; None outside of a notebook."""
    # A notebook has imported IPython; to import it elsewhere would take a second.
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is None:
        return None
    from IPython.display import HTML, display

    handle: Any = None

    def show(html: str) -> None:
        nonlocal handle
        if handle is None:
            handle = display(HTML(html), display_id=True)
        else:
            handle.update(HTML(html))

    def clear() -> None:
        if handle is not None:
            show("")

    return Line(lambda step: show(_bar_html(step)), clear, print)


def _bar_html(step: Step) -> str:
    """Return a step as HTML; a bar without a value moves until the total is known."""
    from markupsafe import escape

    value = f' value="{step.done}" max="{step.total}"' if step.total > 0 else ""
    return f"<div>{escape(step.name)} <progress{value}></progress> {escape(step.count)}</div>"


def _time_left(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s left"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min left"
    return f"{seconds / 3600:.0f} h left"
