"""How far a long step is, in words; and a bar that shows it in a notebook or a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, field
from typing import Any, TextIO

from featcache.spec import Progress, Tick
from featcache.text import printable

# The first images are slow: files are opened, networks compiled. The time left is shown once they matter little.
ESTIMATE_AFTER_S, ESTIMATE_FROM_SHARE = 5.0, 0.1
ALWAYS_ESTIMATE_AFTER_S = 60.0  # in a job of hours the first tenth takes too long to wait for
REDRAW_S = 0.2
ERASED = "\r\x1b[2K"  # to the beginning of the line, which is then erased


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
    """Return what draws a bar with the images per second and the time left, for the `progress` of a long call.

        cache = fc.extract("photos/", out="photos.h5", progress=fc.show_progress())

    A notebook shows it below the cell, a terminal in its last line. The bar vanishes when its step is done; remarks
    stay. Where stderr is a file, only remarks are written.
    """
    # A notebook has imported IPython; to import it elsewhere would take a second.
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is not None:
        return NotebookBar()
    return TerminalBar(sys.stderr) if sys.stderr.isatty() else Bar(sys.stderr)


class Bar:
    """Takes Ticks and writes their remarks to a stream; subclasses also draw the step."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._step: Step | None = None
        self._counted: set[str] = set()  # names of all steps that were counted
        self._drawn = 0.0  # when the step was last drawn

    def __call__(self, tick: Tick) -> None:
        """Draw the count of a step; a Tick without one is a remark."""
        if not tick.total:
            self.clear()
            self._stream.write(f"{printable(tick.note)}\n")
            self._stream.flush()
            return
        name = printable(tick.step)
        if self._step is None or self._step.name != name:
            self._step = Step(name, first=tick.done, is_warm=name in self._counted)
            self._counted.add(name)
        step = self._step
        step.done, step.total, step.note = tick.done, tick.total, printable(tick.note)
        if 0 < tick.total <= tick.done:
            self.clear()
            self._step = None
        elif time.monotonic() - self._drawn > REDRAW_S:
            self.draw(step)
            self._drawn = time.monotonic()

    def draw(self, step: Step) -> None:
        """Show a step, in place of what was drawn before."""

    def clear(self) -> None:
        """Remove what was drawn."""


class TerminalBar(Bar):
    """Draws in the last line of a terminal."""

    def draw(self, step: Step) -> None:
        """Show a step, in place of what was drawn before."""
        width = shutil.get_terminal_size().columns
        self._rewrite(f"{step.name}  {step.count}"[: width - 1])

    def clear(self) -> None:
        """Remove what was drawn."""
        self._rewrite("")

    def _rewrite(self, text: str) -> None:
        self._stream.write(f"{ERASED}{text}")
        self._stream.flush()


class NotebookBar(Bar):
    """Draws below the running cell, and prints remarks there."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)
        self._shown: Any = None  # IPython's handle of what was drawn

    def draw(self, step: Step) -> None:
        """Show a step, in place of what was drawn before."""
        from markupsafe import escape

        # A bar without a value moves, until the total is known.
        value = f' value="{step.done}" max="{step.total}"' if step.total > 0 else ""
        self._show(f"<div>{escape(step.name)} <progress{value}></progress> {escape(step.count)}</div>")

    def clear(self) -> None:
        """Remove what was drawn."""
        if self._shown is not None:
            self._show("")
            self._shown = None  # the next step may belong to another cell

    def _show(self, html: str) -> None:
        from IPython.display import HTML, display

        if self._shown is None:
            self._shown = display(HTML(html), display_id=True)
        else:
            self._shown.update(HTML(html))


def _time_left(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s left"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min left"
    return f"{seconds / 3600:.0f} h left"
