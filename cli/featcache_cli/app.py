"""The `featcache` command: which commands there are, and the one place where errors become exit codes."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

import typer

from featcache.errors import DataError, EnvironmentFault, FeatcacheError, GateError, UsageError
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
    recipe,
    report,
    scan,
    show,
    sweep,
)
from featcache_cli.base import App
from featcache_cli.config import set_by_file

EXIT_CODES: dict[type[FeatcacheError], int] = {UsageError: 2, GateError: 3, DataError: 4, EnvironmentFault: 5}
STOPPED = 130

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
    extract,
    advise,
    leaks,
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
app.add_typer(backbones.app, name="backbones")
app.add_typer(cache.app, name="cache")


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"featcache {installed('featcache')}")
        raise typer.Exit


def exit_code_of(error: FeatcacheError) -> int:
    """Return the exit code of an error: 2 usage, 3 gate, 4 data, 5 environment, 1 a fault of ours."""
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)


def main() -> None:
    """Run the command line."""
    _use_utf8()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow greets with four lines on stderr
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of every new model that it traces
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(prog_name="featcache", standalone_mode=False)
    except FeatcacheError as error:
        _leave(str(error), exit_code_of(error))
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except SystemExit as leaving:  # of Typer's own: completion, and a reader of stdout that has gone
        code = 0 if isinstance(leaving.__context__, BrokenPipeError) else leaving.code
    except OSError as error:
        _leave(f"{error.filename or 'The system'}: {error.strerror or error}", EXIT_CODES[EnvironmentFault])
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        _leave_usage(error)
    if code == STOPPED:  # so Typer answers Ctrl-C
        _stop()
    raise SystemExit(code or 0)


def _use_utf8() -> None:
    """Start the command again in Python's UTF-8 mode where the locale has another encoding.

    Names of files and classes are UTF-8 nearly everywhere. Read as Latin-1 they would enter runs and models as other
    names, and ASCII has no letters for them at all. What is printed stays in the encoding of the terminal.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"  # for processes that this one starts
    os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _stop() -> NoReturn:
    """Leave at once: threads may still be in native code, which does not survive the end of the interpreter."""
    try:
        _leave("Stopped. What was done is kept; run the same command again to go on.", STOPPED)
    finally:
        if threading.active_count() > 1:
            sys.stderr.flush()
            os._exit(STOPPED)


def _leave_usage(error: Any) -> NoReturn:
    message = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the page of help
        sys.stderr.write(f"{message}\n")
        raise SystemExit(2)
    context = getattr(error, "ctx", None)
    message = f"{message.rstrip('.')}{set_by_file(context, getattr(getattr(error, 'param', None), 'name', ''))}"
    end = "" if message.endswith("?") else "."
    _leave(f"{message}{end} See: {getattr(context, 'command_path', 'featcache')} --help", 2)


def _leave(message: str, code: int) -> NoReturn:
    from featcache.reports.text import printable

    sys.stderr.write(f"featcache: {printable(' '.join(message.split()))}\n")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
