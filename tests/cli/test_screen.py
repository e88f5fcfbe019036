"""What a command says while it works: something moves, on stderr alone, and nothing of it stays."""

import fcntl
import io
import logging
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

import pytest
from tiny import TOY

from featcache.progress import Step
from featcache.spec import Tick
from featcache_cli import screen as screen_module
from featcache_cli.output import emit, progress
from featcache_cli.screen import current, screen

COLUMNS = 60
CLEAR = "\x1b[2K"  # what takes the line away


@pytest.fixture
def terminal():
    """Return a function that starts a command with stderr, and stdout if it is to, in a terminal of 60 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    started = []

    def start(*arguments, env=None, stdout=None):
        process = subprocess.Popen(
            [sys.executable, "-m", "featcache_cli.app", *map(str, arguments)],
            stdout=theirs if stdout is None else stdout,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", **(env or {})},
        )
        started.append(process)
        os.close(theirs)
        return process, Shown(ours)

    yield start
    for process in started:
        process.kill()
        process.wait()
    os.close(ours)


class Recorded(io.StringIO):
    """A stream that can be waited on. encoding: as of a terminal."""

    encoding = "utf-8"

    def until(self, words):
        """Wait until the words have been written."""
        until = time.monotonic() + 60
        while words not in self.getvalue():
            assert time.monotonic() < until, f"'{words}' did not come: {self.getvalue()!r}"
            time.sleep(0.01)


def terminal_stderr(monkeypatch):
    """Make stderr a terminal that nobody has to read, and return it. Not a fixture: pytest sets stderr after those."""
    stream = Recorded()
    stream.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(screen_module, "SHOWN_AFTER_S", -1.0)
    monkeypatch.setenv("TERM", "xterm")
    return stream


class Shown:
    """What comes out of a terminal."""

    def __init__(self, descriptor):
        self.descriptor, self.text = descriptor, ""

    def until(self, words=None):
        """Read until the words have come, or to the end; return all text so far."""
        while words is None or words not in self.text:
            assert select.select([self.descriptor], [], [], 60)[0], f"'{words}' did not come: {self.text!r}"
            try:
                piece = os.read(self.descriptor, 4096)
            except OSError:  # Linux says the end so
                piece = b""
            if not piece:
                assert words is None, f"'{words}' did not come: {self.text!r}"
                break
            self.text += piece.decode()
        return self.text


@pytest.fixture
def slow_keras(tmp_path):
    """Return (folder for PYTHONPATH, function that lets its Keras go on): the import waits, and then fails."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    package = tmp_path / "modules" / "keras"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"open({str(gate)!r}).read()\nraise ImportError('as it was to')\n")
    return str(package.parent), lambda: gate.write_text("on")


def test_a_slow_import_is_announced_before_it_begins(terminal, slow_keras):
    modules, go_on = slow_keras
    process, shown = terminal("backbones", "show", TOY, "--layers", env={"PYTHONPATH": modules})
    shown.until("Starting tensorflow takes 5 to 20 s")
    shown.until("(1 s)")  # and it moves
    go_on()
    *_, last = shown.until().rstrip().split(CLEAR)
    assert process.wait() == 5
    assert last.startswith("featcache: Keras is set to the backend tensorflow")


def test_quiet_shows_nothing_but_errors(terminal, slow_keras):
    modules, go_on = slow_keras
    process, shown = terminal("backbones", "show", TOY, "--layers", "--quiet", env={"PYTHONPATH": modules})
    go_on()
    assert shown.until().startswith("featcache: Keras is set to the backend tensorflow")
    assert process.wait() == 5


@pytest.mark.parametrize("as_json", [True, False])
def test_results_go_to_stdout_while_the_line_is_on_stderr(as_json, monkeypatch, capsys):
    stderr = terminal_stderr(monkeypatch)
    with screen("work"):
        stderr.until("| work")
        emit(as_json, {"found": 1}, lambda: "one was found")
    assert capsys.readouterr().out == ('{\n  "found": 1\n}\n' if as_json else "one was found\n")
    assert "found" not in stderr.getvalue()


def test_a_bar_says_how_far_it_is_within_the_width_of_the_terminal(monkeypatch):
    stderr = terminal_stderr(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    with screen("work"), progress(quiet=False) as draw:
        draw(Tick("extract a_backbone:with=many:options=of/a_long_layer", 3, 12, "0 cached"))
        stderr.until("3/12, 0 cached")
        draw(Tick("train", 3, 12))
        stderr.until("train")
        draw(Tick("train", 12, 12))
        draw(Tick("remark", 0, 0, "which stays"))
        stderr.until("which stays")
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "\n", stderr.getvalue()).splitlines()
    assert max(map(len, lines)) < COLUMNS
    assert "━━" in stderr.getvalue()


def test_logs_get_plain_lines(monkeypatch):
    log = Recorded()
    monkeypatch.setattr("sys.stderr", log)
    monkeypatch.setattr(screen_module, "PLAIN_AFTER_S", 0.0)
    with screen("work"):
        logging.getLogger("featcache.anything").info("Thinking of \x1b[31m")
        log.until("Thinking of")
        current().draw(Tick("extract", 0, 10))
        log.until("extract: 0/10")
        current().draw(Tick("extract", 10, 10, "2 cached"))
    first, *others = log.getvalue().splitlines()
    assert first == "Thinking of \\x1b[31m"
    assert [line.partition(",")[0] for line in others] == ["extract: 0/10", "extract: 10/10"]
    assert others[-1].endswith("2 cached")


def test_warnings_of_the_library_stay_when_the_next_step_begins(monkeypatch):
    log = Recorded()
    monkeypatch.setattr("sys.stderr", log)
    with screen("work"):
        logging.getLogger("featcache.anything").warning("Downloading, under terms \x1b[31m")
        logging.getLogger("featcache.anything").info("Starting")
    assert log.getvalue() == "Downloading, under terms \\x1b[31m\n"


def test_rate_and_rest_are_those_of_what_was_watched():
    step = Step("train", began=time.monotonic() - 10, first=100, done=150, total=400)
    assert step.count == "150/400, 5.0/s, 50 s left"


@pytest.mark.parametrize(
    ("seconds", "done", "time_left"),
    [
        (2.5, 1, ""),
        (4, 900, ""),  # too early, however much is done
        (8, 40, ""),  # the first batch, for which a network was compiled
        (50, 99, ""),
        (8, 100, ", 72 s left"),
        (64, 1, ", 18 h left"),  # such a long job should say so within a minute
    ],
)
def test_the_time_left_is_shown_once_it_means_something(seconds, done, time_left, monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0 + seconds)
    step = Step("extract", began=1000.0, done=done, total=1000)
    assert step.count == f"{done}/1000, {done / seconds:.1f}/s{time_left}"


def test_a_later_epoch_shows_the_time_left_at_once(monkeypatch):
    log = Recorded()
    monkeypatch.setattr("sys.stderr", log)
    monkeypatch.setattr(screen_module, "PLAIN_AFTER_S", 0.0)
    monkeypatch.setattr(screen_module, "PLAIN_EVERY_S", 0.0)
    with screen("work"):
        for step in (Tick("train", 0, 300), Tick("judge", 0, 9), Tick("train", 10, 300)):
            current().draw(step)
        assert "left" not in log.getvalue()
        current().draw(Tick("train", 20, 300))
        log.until("s left")


@pytest.mark.parametrize("no_color", [True, False])
def test_the_bar_has_no_colour_with_no_color(no_color, monkeypatch):
    stderr = terminal_stderr(monkeypatch)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    with screen("work"):
        current().draw(Tick("extract", 1, 3))
        stderr.until("1/3")
    assert ("\x1b[32m" in stderr.getvalue()) != no_color


def test_in_a_terminal_remarks_of_the_library_break_between_words(monkeypatch):
    stream = terminal_stderr(monkeypatch)
    monkeypatch.setenv("COLUMNS", "40")
    shown = screen_module.Screen("extract", stream)
    shown.draw(Tick("engine", 0, 0, "OpenVINO is half as fast as Keras on these images and agrees with it"))
    shown.end()
    assert "OpenVINO is half as fast as Keras on\n  these images and agrees with it\n" in stream.getvalue()
