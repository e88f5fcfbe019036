"""The `featcache` command: the list of its commands, and the only place where errors become exit codes."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

import typer

from featcache.errors import DataError, EnvironmentFault, FeatcacheError, GateError, UsageError
from featcache.spec import near_names
from featcache_cli import (
    advise,
    backbones,
    cache,
    compare,
    doctor,
    export,
    extract,
    finetune,
    handoff,
    leaks,
    predict,
    quickstart,
    rank,
    recipe,
    report,
    scan,
    show,
    similar,
    sweep,
)
from featcache_cli.base import App
from featcache_cli.config import set_by_file

EXIT_CODES: dict[type[FeatcacheError], int] = {UsageError: 2, GateError: 3, DataError: 4, EnvironmentFault: 5}
STOPPED = 130
GRACE_S = 0.5  # time for threads to end after an error

app = App(
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run a frozen Keras backbone once over your images, try many heads in seconds, fine-tune from the best.\n\n"
    "Start with: featcache quickstart",
)
for module in (
    quickstart,
    recipe,
    scan,
    rank,
    extract,
    advise,
    leaks,
    similar,
    sweep,
    show,
    compare,
    handoff,
    finetune,
    predict,
    export,
    report,
    doctor,
):
    app.command(module.__name__.rpartition(".")[2])(module.command)
app.add_typer(backbones.app, name="backbones", short_help="List backbones, download weights, import your own model.")
app.add_typer(cache.app, name="cache", short_help="Show, check, compare, merge and export caches.")


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"featcache {installed('featcache')}")
        raise typer.Exit


def exit_code_of(error: FeatcacheError) -> int:
    """Return the exit code of an error: 2 usage, 3 gate, 4 data, 5 environment, 1 a fault of ours."""
    for kind, code in EXIT_CODES.items():
        if isinstance(error, kind):
            return code
    return 1


def main() -> None:
    """Run the command line and leave with its exit code."""
    # First, because it may start the whole command again.
    _use_utf8()
    # A batch system stops jobs with SIGTERM: what Ctrl-C keeps is then kept, too.
    signal.signal(signal.SIGTERM, _interrupt)
    before = set(threading.enumerate())
    code = _run()
    if code:
        _end_threads(set(threading.enumerate()) - before, code)
    # Otherwise the interpreter searches all of TensorFlow for garbage as it ends, which takes seconds.
    gc.freeze()
    raise SystemExit(code)


def _run() -> int:
    """Run the command, print its error if it fails, and return the exit code."""
    try:
        code = app(prog_name="featcache", standalone_mode=False)
        if code == STOPPED:  # Typer's answer to Ctrl-C
            return _say_stopped()
        return int(code or 0)
    except FeatcacheError as error:
        return _say(str(error), exit_code_of(error))
    except (KeyboardInterrupt, typer.Abort):
        return _say_stopped()
    except SystemExit as leaving:  # Typer raises it after completion, and when the reader of stdout has gone
        return 0 if isinstance(leaving.__context__, BrokenPipeError) else int(leaving.code or 0)
    except OSError as error:
        cure = ". Let your user read it, or write to it" if isinstance(error, PermissionError) else ""
        return _say(f"{error.filename or 'The system'}: {error.strerror or error}{cure}", EXIT_CODES[EnvironmentFault])
    except Exception as error:
        if hasattr(error, "format_message"):
            return _say_usage(error)
        sys.excepthook(type(error), error, error.__traceback__)
        return 1


def _end_threads(threads: Iterable[threading.Thread], code: int) -> None:
    """Leave at once if threads do not end soon.

    A thread in native code that outlives the interpreter aborts the process, and the exit code would report a crash.
    """
    deadline = time.monotonic() + GRACE_S
    with suppress(KeyboardInterrupt):  # a second Ctrl-C ends the waiting
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # its reader has gone
                stream.flush()
        os._exit(code)


def _use_utf8() -> None:
    """Start the command again in Python's UTF-8 mode if the locale has another encoding.

    Names of files and classes are UTF-8 nearly everywhere. Read as Latin-1 they would enter runs and models as
    different names, and ASCII cannot represent them. Output stays in the encoding of the terminal.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"  # for processes that this one starts
    os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _say_stopped() -> int:
    return _say("Stopped. What was done is kept; run the same command again to go on.", STOPPED)


def _say_usage(error: Any) -> int:
    message = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the page of help
        sys.stderr.write(f"{message}\n")
        return 2
    context = getattr(error, "ctx", None)
    option = getattr(getattr(error, "param", None), "name", "")
    message = message.rstrip(".") + set_by_file(context, option) + _hint(error, context)
    end = "" if message.endswith("?") else "."
    command = getattr(context, "command_path", "featcache")
    return _say(f"{message}{end} See: {command} --help", 2)


def _hint(error: Any, context: Any) -> str:
    """Return a suggestion for an option that does not exist, if Click has none."""
    name = getattr(error, "option_name", "")
    if type(error).__name__ != "NoSuchOption" or error.possibilities or context is None:
        return ""
    if not name.startswith("--"):
        return ""  # every name is near a single letter
    options = []
    for parameter in context.command.params:
        options += [option.removeprefix("--") for option in parameter.opts if option.startswith("--")]
    near = [f"--{option}" for option in near_names(name.removeprefix("--"), options)]
    return f" (did you mean {', '.join(near)}?)" if near else ""


def _say(message: str, code: int) -> int:
    """Print an error on one line, folded only in a narrow terminal, and return the exit code."""
    from featcache.text import folded_for, printable
    from featcache_cli.options import in_flags

    line = f"featcache: {printable(in_flags(' '.join(message.split())))}"
    sys.stderr.write(f"{folded_for(sys.stderr, line)}\n")
    return code


if __name__ == "__main__":
    main()
